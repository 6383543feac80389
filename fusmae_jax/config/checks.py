"""Rules between the settings of a pretraining run, as sentences about what cannot be together.

The range of a single number stands beside its field.
"""

import re
from collections.abc import Mapping

from fusmae_jax import sensors
from fusmae_jax.config.dino import Crops
from fusmae_jax.config.run import JOINT, RESERVED, SIZES, Augment, Config, Modality, Model, dino_mm
from fusmae_jax.config.setting import range_problems
from fusmae_jax.errors import nearest


def check_run(config: Config) -> list[str]:
    """Everything that makes a run impossible, of a model that is possible and has its size filled in."""
    problems = [*_check_masking(config), *augment_problems(config.augment)]
    if not any(modality.loss_weight for modality in config.model.modalities.values()):
        problems.append('model.modalities: every loss_weight is 0, so nothing would be learned')
    if config.loss.balance == 'uncertainty' and len(config.model.modalities) < 2:
        problems.append("loss.balance='uncertainty' weighs modalities against each other; there is only one")
    if config.log.knn.every_steps and not config.log.knn.path:
        problems.append('log.knn.path is empty: name a labelled set, or set log.knn.every_steps=0')
    if not config.train.steps and not config.train.epochs:
        problems.append('train.steps and train.epochs are both 0: give one of them')
    if config.data.mixture and (config.data.path or config.data.val_split):
        problems.append(
            'data.path and data.val_split mean nothing beside data.mixture; set them in its parts'
        )
    for name in config.data.mixture:
        if '/' in name or not name:
            problems.append(f'data.mixture: {name!r} must be a word without a slash')
    if config.preset:
        problems.append('preset: imported encoders have one, a pretraining run makes its own inputs')
    return problems or (_check_dino(config) if config.dino else [])


def check_model(model: Model) -> list[str]:
    """Everything that makes a model impossible, as sentences."""
    problems = range_problems(model, 'model.')
    if problems:
        return problems
    if model.size not in SIZES and not (model.width and model.depth and model.heads):
        problems.append(f'model.size={model.size!r}; {nearest(model.size, SIZES)}')
        return problems
    for name, length in zip(('rows', 'columns'), model.image_size):
        if length % model.patch_size:
            problems.append(
                f'model.image_size={model.image_size}: {length} {name} are not a whole number of '
                f'patches of model.patch_size={model.patch_size}'
            )
    for part, width, heads in (
        ('model', model.width, model.heads),
        ('model.decoder', model.decoder.width, model.decoder.heads),
    ):
        if width < 1 or heads < 1:
            problems.append(f'{part}.width={width} and {part}.heads={heads} must be at least 1')
        elif width % heads:
            problems.append(f'{part}.width={width} is not a multiple of {part}.heads={heads}')
        if width % 4:
            problems.append(f'{part}.width={width} is not a multiple of 4 (2-D sine-cosine positions)')
    if int(model.width * model.mlp_ratio) < 1:
        problems.append(
            f'model.mlp_ratio={model.mlp_ratio} of model.width={model.width} leaves no hidden unit'
        )
    if model.norm == 'pallas' and model.numerics.norm_variance == 'fast':
        problems.append(
            "model.norm='pallas' has no model.numerics.norm_variance='fast': its variance takes two passes; "
            "use model.norm='xla'"
        )
    if not model.modalities:
        problems.append('model.modalities is empty: name at least one')
    if model.fusion.encoder == 'xae' and len(model.modalities) < 2:
        problems.append("model.fusion.encoder='xae' needs two modalities or more; use 'none' for one")
    if model.fusion.decoder == 'xad' and len(model.modalities) < 2:
        problems.append("model.fusion.decoder='xad' needs two modalities or more; use 'none' for one")
    if not model.cls and model.fusion.encoder != 'stack':
        problems.append("model.cls=False: only with model.fusion.encoder='stack'")
    if model.decoder.cls and not model.cls:
        problems.append('model.decoder.cls=True passes on a CLS token, and model.cls=False leaves none')
    if model.fusion.encoder == 'stack':
        if len(model.modalities) < 2:
            problems.append("model.fusion.encoder='stack' needs two modalities or more; use 'none' for one")
        if model.fusion.decoder != 'none':
            problems.append(
                f'model.fusion.decoder={model.fusion.decoder!r} needs tokens of each modality; with '
                "model.fusion.encoder='stack' a token holds all of them: use 'none'"
            )
    for name, modality in model.modalities.items():
        problems += _check_modality(name, modality)
    return problems


def _check_modality(name: str, modality: Modality) -> list[str]:
    path, problems = f'model.modalities.{name}', _check_name(name)
    if not modality.bands:
        problems.append(f'{path}.bands is empty')
    if modality.sensor:
        if modality.sensor not in sensors.SENSORS:
            problems.append(f'{path}.sensor={modality.sensor!r}; {nearest(modality.sensor, sensors.SENSORS)}')
        else:
            known = sensors.SENSORS[modality.sensor].bands
            problems += [
                f'{path}.bands: {b!r}; {nearest(b, known)}' for b in modality.bands if b not in known
            ]
    for field in ('mean', 'std'):
        values = getattr(modality, field)
        if (values or not modality.sensor) and len(values) != len(modality.bands):
            problems.append(f'{path}.{field} must have one number for each of {len(modality.bands)} bands')
    return problems


def _check_name(name: str) -> list[str]:
    if not re.fullmatch(r'[a-z][a-z0-9_]*', name):
        return [f'model.modalities: {name!r} must be small letters, digits and _, a letter first']
    if name in RESERVED or name.startswith('other_'):
        return [
            f'model.modalities: {name!r} is a name that the model uses itself; call the modality otherwise'
        ]
    return []


def _check_masking(config: Config) -> list[str]:
    problems = []
    masking, model = config.masking, config.model
    ratio, patches, strategy = masking.ratio, model.num_patches, masking.strategy
    if not 0 < int(patches * (1 - ratio)) < patches:
        problems.append(
            f'masking.ratio={ratio} of {patches} patches: at least one must be visible and one masked'
        )
    if model.fusion.encoder == 'stack' and strategy != 'consistent':
        problems.append(
            f"masking.strategy={strategy!r}: with model.fusion.encoder='stack' a token holds all modalities, "
            "so they are hidden together; use 'consistent'"
        )
    if strategy in JOINT and masking.decode_ratio < 1:
        problems.append(
            f'masking.decode_ratio={masking.decode_ratio} needs fixed counts: strategy independent or '
            f'consistent, found {strategy!r}'
        )
    if strategy in JOINT and len(model.modalities) < 2:
        problems.append(
            f"masking.strategy={strategy!r} needs two modalities or more; use 'independent' for one"
        )
    if strategy == 'modality' and model.fusion.absent == 'zero_image':
        problems.append(
            "masking.strategy='modality' leaves no slot for the mean image of a hidden modality; use "
            "model.fusion.absent='self' or 'bypass'"
        )
    return problems


def augment_problems(augment: Augment) -> list[str]:
    """What cannot be in the settings of the augmentation, which fine-tuning has too."""
    return _low_first({name: getattr(augment, name) for name in ('crop_scale', 'crop_ratio')}, 'augment.')


def _check_dino(config: Config) -> list[str]:
    problems = []
    default, dino = dino_mm(), config.distillation
    for path, value, wanted in (
        ('model.fusion.encoder', config.model.fusion.encoder, 'stack'),
        ('model.positions', config.model.positions, 'learned'),
        ('model.cls', config.model.cls, True),
        ('model.final_norm', config.model.final_norm, True),
        ('data.normalisation', config.data.normalisation, 'mean_2sigma'),
        ('augment.crop', config.augment.crop, True),
        ('optimizer.decay_all', config.optimizer.decay_all, False),
        # There is no held-out loss without masks, and nothing is reconstructed.
        ('data.val_split', config.data.val_split, ''),
        ('log.images_every_steps', config.log.images_every_steps, 0),
        # The share of a crop's area is that of `dino.*_crops.scale`.
        ('augment.crop_scale', config.augment.crop_scale, default.augment.crop_scale),
    ):
        if value != wanted:
            problems.append(f'{path}={value!r}: DINO-MM needs {wanted!r}')
    for name in ('masking', 'loss'):
        if getattr(config, name) != getattr(default, name):
            problems.append(f'{name}: DINO-MM has no masks and reconstructs nothing; leave it as it is')
    problems += _check_crops('dino.global_crops', dino.global_crops, config.model.patch_size)
    problems += _check_crops('dino.local_crops', dino.local_crops, config.model.patch_size)
    modality = dino.quantile_clip_modality
    if modality and modality not in config.model.modalities:
        hint = nearest(modality, config.model.modalities)
        problems.append(f'dino.quantile_clip_modality={modality!r}; {hint}')
    if dino.global_crops.count < 2:
        problems.append(f'dino.global_crops.count={dino.global_crops.count} must be at least 2')
    low, high = dino.quantile_clip
    if not low < high:
        problems.append(f'dino.quantile_clip={dino.quantile_clip} must have the low one first')
    return problems + _low_first({'blur_sigma': dino.distortion.blur_sigma}, 'dino.distortion.')


def _check_crops(name: str, crops: Crops, patch: int) -> list[str]:
    problems = _low_first({'scale': crops.scale}, f'{name}.')
    if crops.size % patch:
        problems.append(f'{name}.size={crops.size} is not a multiple of model.patch_size={patch}')
    for field in ('blur', 'solarize'):
        values = getattr(crops, field)
        if len(values) not in (1, crops.count):
            problems.append(f'{name}.{field}={values} must be one probability, or {crops.count}')
    return problems


def _low_first(pairs: Mapping[str, tuple[float, float]], path: str) -> list[str]:
    return [
        f'{path}{name}={pair} must have the low one first'
        for name, pair in pairs.items()
        if pair[0] > pair[1]
    ]
