"""From an ml_collections file to a checked configuration, and back to plain data.

`build` refuses unknown keys (naming the nearest valid one), wrong types and impossible values, and
reports all of them at once.
"""

import dataclasses
import functools
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

import ml_collections

from fusmae_jax import sensors
from fusmae_jax.config import JOINT, SIZES, Augment, Config, Model
from fusmae_jax.errors import nearest, raise_all

T = TypeVar('T')

# The smallest value of settings that have one.
AT_LEAST = {
    'train.batch_size': 1,
    'train.max_skips': 1,
    'log.every_steps': 1,
    'checkpoint.every_steps': 1,
    'checkpoint.keep': 1,
    'data.threads': 1,
    'data.prefetch': 1,
    'seed': 0,
    'train.steps': 0,
    'train.epochs': 0,
    'train.accumulation': 1,
    'train.ema': 0,
    'parallel.num_processes': 0,
    'parallel.process_id': -1,
    'parallel.heartbeat_seconds': 1,
    'checkpoint.preempt_exit_code': 0,
    'checkpoint.keep_every_steps': 0,
    'checkpoint.checksum_every_steps': 0,
    'log.num_images': 1,
    'log.images_every_steps': 0,
    'log.eval_every_steps': 1,
    'log.eval_batches': 0,
    'log.knn.every_steps': 0,
    'log.knn.k': 1,
    'optimizer.learning_rate': 0,
    'optimizer.weight_decay': 0,
    'optimizer.warmup_epochs': 0,
    'optimizer.warmup_steps': 0,
    'optimizer.clip_norm': 0,
}


def to_dict(config: Any) -> Any:
    """Plain dicts, tuples and scalars of a configuration (for JSON and ConfigDict)."""
    if dataclasses.is_dataclass(config):
        return {f.name: to_dict(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, Mapping):
        return {key: to_dict(value) for key, value in config.items()}
    if isinstance(config, tuple | list):
        return tuple(to_dict(value) for value in config)
    return config


def config_dict(config: Any) -> ml_collections.ConfigDict:
    """A ConfigDict with every field of a configuration, for the files in configs/ to change.

    Everything keeps its order, which ml_collections sorts by default: in a stack modalities are channels, and
    the tables of a study are shown one after the other.
    """
    return _ordered(to_dict(config))


def _ordered(values: Mapping[str, Any]) -> ml_collections.ConfigDict:
    groups = {key: _ordered(value) if isinstance(value, dict) else value for key, value in values.items()}
    return ml_collections.ConfigDict(groups, sort_keys=False)


def from_dict(cls: type[T], values: Mapping[str, Any], title: str = 'config') -> T:
    """An instance of the dataclass `cls`; raises InputError with every unknown key and wrong type."""
    problems: list[str] = []
    result = _dataclass(cls, values, title, problems)
    raise_all(f'{title}: these settings cannot be used', problems)
    return result


def build(values: Mapping[str, Any]) -> Config:
    """The checked Config of a pretraining run, with the model size filled in."""
    config = from_dict(Config, values)
    config = dataclasses.replace(config, model=resolve(config.model))
    problems = check_model(config.model)
    raise_all('config: these settings cannot be used', problems or _check_run(config))
    return config


def resolve(model: Model) -> Model:
    """The same model with width, depth and heads taken from its named size where they are 0."""
    width, depth, heads = SIZES.get(model.size, (0, 0, 0))
    return dataclasses.replace(
        model, width=model.width or width, depth=model.depth or depth, heads=model.heads or heads
    )


def _dataclass(cls: type[T], values: Any, path: str, problems: list[str]) -> T:
    if not isinstance(values, Mapping):
        problems.append(f'{path} must be a group of settings, found {values!r}')
        return cls()
    before, hints = len(problems), typing.get_type_hints(cls)
    for key in values:
        if key not in hints:
            problems.append(f'{path}.{key} is not a setting; {nearest(key, hints)}')
    known = {
        key: _value(hints[key], value, f'{path}.{key}', problems)
        for key, value in values.items()
        if key in hints
    }
    return cls(**known) if len(problems) == before else cls()


def _value(hint: Any, value: Any, path: str, problems: list[str]) -> Any:
    if dataclasses.is_dataclass(hint):
        return _dataclass(typing.cast(type, hint), value, path, problems)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if value not in args:
            problems.append(f'{path}={value!r}; {nearest(str(value), map(str, args))}')
        return value
    if origin is types.UnionType:
        # None, or a value of the other type.
        return None if value is None else _value(args[0], value, path, problems)
    if origin is tuple:
        return _tuple(args, value, path, problems)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            problems.append(f'{path} must be a group of settings, found {value!r}')
            return {}
        return {key: _value(args[1], item, f'{path}.{key}', problems) for key, item in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not hint:
        name = hint.__name__ if isinstance(hint, type) else hint
        problems.append(f'{path}={value!r} must be of type {name}, found {type(value).__name__}')
    return value


def _tuple(args: tuple[Any, ...], value: Any, path: str, problems: list[str]) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        problems.append(f'{path}={value!r} must be a list')
        return ()
    many = len(args) == 2 and args[1] is Ellipsis
    if not many and len(value) != len(args):
        problems.append(f'{path}={value!r} must have {len(args)} entries, found {len(value)}')
        return tuple(value)
    kinds = [args[0]] * len(value) if many else list(args)
    return tuple(_value(k, v, f'{path}[{i}]', problems) for i, (k, v) in enumerate(zip(kinds, value)))


def check_model(model: Model) -> list[str]:
    """Everything that makes a model impossible, as sentences."""
    problems = []
    if model.size not in SIZES and not (model.width and model.depth and model.heads):
        problems.append(f'model.size={model.size!r}; {nearest(model.size, SIZES)}')
        return problems
    for name, length in zip(('rows', 'columns'), model.image_size):
        if model.patch_size < 1 or length < 1 or length % model.patch_size:
            problems.append(
                f'model.image_size={model.image_size}: {length} {name} are not a whole number of '
                f'patches of model.patch_size={model.patch_size}'
            )
    for part, width, heads in (
        ('model', model.width, model.heads),
        ('model.decoder', model.decoder.width, model.decoder.heads),
    ):
        if heads < 1 or width < 1 or width % heads:
            problems.append(f'{part}.width={width} is not a multiple of {part}.heads={heads}')
        if width % 4:
            problems.append(f'{part}.width={width} is not a multiple of 4 (2-D sine-cosine positions)')
    if model.depth < 1:
        problems.append(f'model.depth={model.depth} must be at least 1')
    if model.decoder.depth < 0:
        problems.append(f'model.decoder.depth={model.decoder.depth} must be at least 0')
    if not model.modalities:
        problems.append('model.modalities is empty: name at least one')
    if model.fusion.encoder == 'xae' and len(model.modalities) < 2:
        problems.append("model.fusion.encoder='xae' needs two modalities or more; use 'none' for one")
    if model.fusion.decoder == 'xad' and len(model.modalities) < 2:
        problems.append("model.fusion.decoder='xad' needs two modalities or more; use 'none' for one")
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


def _check_modality(name: str, modality: Any) -> list[str]:
    path, problems = f'model.modalities.{name}', []
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
    if any(value <= 0 for value in modality.std):
        problems.append(f'{path}.std={modality.std} must be positive')
    return problems


def _check_masking(config: Config) -> list[str]:
    problems = []
    masking, model = config.masking, config.model
    ratio, patches, strategy = masking.ratio, model.num_patches, masking.strategy
    if not 0 < ratio < 1 or not 0 < int(patches * (1 - ratio)) < patches:
        problems.append(
            f'masking.ratio={ratio} of {patches} patches: at least one must be visible and one masked'
        )
    if model.fusion.encoder == 'stack' and strategy != 'consistent':
        problems.append(
            f"masking.strategy={strategy!r}: with model.fusion.encoder='stack' a token holds all modalities, "
            "so they are hidden together; use 'consistent'"
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
    if not masking.concentration > 0:
        problems.append(f'masking.concentration={masking.concentration} must be positive')
    if not 0 <= masking.hide <= 1:
        problems.append(f'masking.hide={masking.hide} must be a probability')
    return problems


def augment_problems(augment: Augment) -> list[str]:
    """What cannot be in the settings of the augmentation, which fine-tuning has too."""
    problems = []
    low, high = augment.crop_scale
    if not 0 < low <= high <= 1:
        problems.append(f'augment.crop_scale={augment.crop_scale} must lie in (0, 1], low first')
    low, high = augment.crop_ratio
    if not 0 < low <= high:
        problems.append(f'augment.crop_ratio={augment.crop_ratio} must be positive, low first')
    for name in ('hflip', 'vflip'):
        if not 0 <= getattr(augment, name) <= 1:
            problems.append(f'augment.{name}={getattr(augment, name)} must be a probability')
    return problems


def _check_run(config: Config) -> list[str]:
    problems = [*_check_masking(config), *augment_problems(config.augment)]
    for path, low in AT_LEAST.items():
        value: Any = functools.reduce(getattr, path.split('.'), config)
        if not value >= low:  # so that NaN is refused too
            problems.append(f'{path}={value} must be at least {low}')
    if config.log.knn.every_steps and not config.log.knn.path:
        problems.append('log.knn.path is empty: name a labelled set, or set log.knn.every_steps=0')
    if not config.train.ema < 1:
        problems.append(f'train.ema={config.train.ema} must be below 1')
    if not config.train.steps and not config.train.epochs:
        problems.append('train.steps and train.epochs are both 0: give one of them')
    if config.data.mixture and (config.data.path or config.data.val_split):
        problems.append(
            'data.path and data.val_split mean nothing beside data.mixture; set them in its parts'
        )
    for name, part in config.data.mixture.items():
        if not part.weight > 0:
            problems.append(f'data.mixture.{name}.weight={part.weight} must be positive')
        if '/' in name or not name:
            problems.append(f'data.mixture: {name!r} must be a word without a slash')
    if not config.data.clip > 0:
        problems.append(f'data.clip={config.data.clip} must be positive')
    return problems
