"""Rows of `finetune`: what they say of a run, and what each point of it is known by."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fusmae_jax import storage
from fusmae_jax.config.build import to_dict
from fusmae_jax.encoders.systems import System
from fusmae_jax.eval.config import metric_of
from fusmae_jax.eval.finetune.config import Finetune, Tuning, changed, recipe_of
from fusmae_jax.eval.task import LabelledSet
from fusmae_jax.input import presets
from fusmae_jax.input.compatibility import Fitted
from fusmae_jax.input.contract import Contract

NAME = 'finetune'


def identity(
    config: Any,
    task: LabelledSet,
    system: System,
    fitted: Fitted,
    recipe: Sequence[str],
    **more: Any,
) -> dict[str, Any]:
    """Everything that decides what a point comes to, but for its records, rate and seed.

    `recipe` names the settings that say how it is trained; `more` is what else tells points apart.
    """
    assert system.model is not None
    data, model = config.data, fitted.config.model
    return {
        'weights': system.fingerprint,
        'data': task.contract.digest,
        'splits': [data.train_split, data.val_split],
        'labels': [data.labels, data.kind],
        'validation': [metric_of(config), digest(task.val.labels)],
        'modalities': list(model.modalities),
        'absent': model.fusion.absent,
        'input': to_dict(model.modalities),
        'normalisation': [fitted.config.data.normalisation, fitted.config.data.clip],
        'preset': presets.preset_fields(fitted.config),
        'compute': str(system.model.dtype),
        'recipe': {name: to_dict(getattr(config, name)) for name in recipe} | to_dict(changed(config)),
        **more,
    }


def point_identity(
    shared: Mapping[str, Any],
    positions: np.ndarray,
    labels: np.ndarray,
    rate: float,
    seed: int,
    steps: Sequence[int],
) -> dict[str, Any]:
    """`identity` of one point, as it comes back from a JSON file."""
    about = {**shared, 'examples': digest(positions, labels), 'learning_rate': rate, 'seed': seed}
    about['steps'] = list(steps)
    # Through JSON, so that tuples and numbers compare with what was stored.
    return json.loads(json.dumps(about))


def digest(*arrays: np.ndarray) -> str:
    """16 hexadecimal digits that change with any number."""
    return storage.digest(
        part
        for array in arrays
        for part in (f'{array.dtype} {array.shape}', np.ascontiguousarray(array).view(np.uint8).data)
    )


def system_fields(config: Finetune, fitted: Fitted, contract: Contract) -> dict[str, Any]:
    """The fields of a row that tell what the encoder saw.

    Args:
        config: the run.
        fitted: how the system that every point started from reads the data.
        contract: of one image; for `crops` a quarter of a record.
    """
    model = fitted.config.model
    return {
        'modalities': tuple(model.modalities),
        'absent': model.fusion.absent,
        'image': presets.describe_image(fitted.config, contract, config.image == 'crops'),
        'statistics': presets.describe_statistics(fitted.config),
        'accepted': fitted.shifts,
    }


def method_fields(config: Finetune, feature: str) -> dict[str, Any]:
    """The fields of a row that tell how it was trained."""
    return {
        'method': NAME,
        'preset': recipe_of(config),
        'pooled': feature,
        'batch_norm': None,
        'head_seeds': config.head_seeds,
        'sweep': sweep(config),
        'settled_on': f'{config.data.val_split}, {metric_of(config)}; {config.epoch} epoch',
    }


def added(config: Tuning) -> dict[str, tuple[float, ...]]:
    """Of `changed` every number."""
    settings = changed(config)
    dropout = settings.pop('modality_dropout', ())
    numbers = {name: (float(value),) for name, value in settings.items()}
    return numbers | {f'modality_dropout_{name}': (share,) for name, share in dropout}


def sweep(config: Finetune) -> dict[str, tuple[float, ...]]:
    """Every setting of the training that is a number."""
    names = ('weight_decay', 'layer_decay', 'drop_path', 'epochs', 'warmup_epochs')
    fixed = {name: (float(getattr(config, name)),) for name in names}
    fixed |= {'batch_size': (float(config.batch_size),), 'b1': (config.b1,), 'b2': (config.b2,)}
    augment = config.augment
    fixed |= {'hflip': (augment.hflip,), 'vflip': (augment.vflip,)}
    if augment.crop:
        smallest, largest = augment.crop_scale
        narrow, wide = augment.crop_ratio
        fixed |= {'crop_scale_min': (smallest,), 'crop_scale_max': (largest,)}
        fixed |= {'crop_ratio_min': (narrow,), 'crop_ratio_max': (wide,)}
    if config.data.kind == 'single_label':
        fixed['label_smoothing'] = (config.label_smoothing,)
    return {'learning_rate': config.learning_rates} | fixed | added(config)
