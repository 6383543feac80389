"""What the rows of `finetune` say of a run, and what each point of it is known by."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fusmae_jax import storage
from fusmae_jax.config.build import to_dict
from fusmae_jax.encoders.settings import BANDS
from fusmae_jax.encoders.systems import Fitted, System, open_system
from fusmae_jax.eval import cells
from fusmae_jax.eval.cells import Cell
from fusmae_jax.eval.evaluation_config import metric_of
from fusmae_jax.eval.finetune.config import RECIPE, Finetune, as_probe, recipe_of
from fusmae_jax.eval.metrics import train_prior
from fusmae_jax.eval.task import Labelled, leaks, measure
from fusmae_jax.input import presets
from fusmae_jax.input.contract import Contract

NAME = 'finetune'


def identity(
    config: Finetune, task: Labelled, system: System, fitted: Fitted, feature: str
) -> dict[str, Any]:
    """Everything that decides what a point comes to, but for its records, rate and seed."""
    assert system.model is not None
    data, model = config.data, fitted.config.model
    preset = presets.preset_of(fitted.config)
    return {
        'weights': system.fingerprint,
        'data': task.contract.digest,
        'splits': [data.train_split, data.val_split],
        'labels': [data.labels, data.kind],
        'validation': [metric_of(as_probe(config)), digest(task.val.labels)],
        'modalities': list(model.modalities),
        'absent': model.fusion.absent,
        'input': to_dict(model.modalities),
        'normalisation': [fitted.config.data.normalisation, fitted.config.data.clip],
        'preset': to_dict(preset),
        'feature': feature,
        'compute': str(system.model.dtype),
        'recipe': {name: to_dict(getattr(config, name)) for name in RECIPE},
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
    return json.loads(json.dumps(about))


def digest(*arrays: np.ndarray) -> str:
    """16 hexadecimal digits that change with any number."""
    return storage.digest(
        part
        for array in arrays
        for part in (f'{array.dtype} {array.shape}', np.ascontiguousarray(array).view(np.uint8).data)
    )


def system_fields(config: Finetune, system: System, fitted: Fitted, contract: Contract) -> dict[str, Any]:
    """The fields of a row that tell what was trained and what it saw.

    Args:
        config: the run.
        system: what every point started from.
        fitted: how it reads the data.
        contract: of one image; for `crops` a quarter of a record.
    """
    model = fitted.config.model
    return {
        'system': system.name,
        'checkpoints': (system.fingerprint,),
        'leaks': leaks(config.data, system.seen),
        'modalities': tuple(model.modalities),
        'absent': model.fusion.absent,
        'image': presets.describe_image(fitted.config, contract, config.image == 'crops'),
        'statistics': presets.describe_statistics(fitted.config),
        'accepted': fitted.shifts,
    }


def method_fields(config: Finetune, task: Labelled, feature: str) -> dict[str, Any]:
    """The fields of a row that tell how it was trained."""
    return {
        'method': NAME,
        'preset': recipe_of(config),
        'pooled': feature,
        'batch_norm': None,
        'head_seeds': config.head_seeds,
        'sweep': sweep(config),
        'settled_on': f'{task.val.name}, {metric_of(as_probe(config))}; {config.epoch} epoch',
    }


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
    return {'learning_rate': config.learning_rates} | fixed


def prior(
    config: Finetune, task: Labelled, positions: Mapping[int, np.ndarray], about: Mapping[str, Any]
) -> Cell:
    """The shares of the classes among the labelled records, the same scores for every record."""
    count = len(task.test.keys)
    measures = {
        (seed, 0): measure(
            task, task.test, train_prior(task.train.labels[part], count), config.data.kind, 0.5
        )
        for seed, part in positions.items()
    }
    nothing = dict.fromkeys(('absent', 'pooled', 'batch_norm', 'settled_on'))
    fields: dict[str, Any] = {
        'system': 'train prior',
        'method': 'prior',
        'preset': 'none',
        'leaks': leaks(config.data, open_system(BANDS, config.encoder).seen),
        'image': 'none',
        'statistics': 'none',
        'sweep': {},
        'chosen': {},
    }
    for name in ('checkpoints', 'modalities', 'accepted', 'head_seeds'):
        fields[name] = ()
    runs = cells.summarise(measures, task.test.clusters, config.intervals)
    return Cell({**about, **fields, **nothing}, runs, True)
