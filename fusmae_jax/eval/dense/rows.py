"""Rows of dense tasks: what the encoder saw, and how a head was trained."""

from collections.abc import Sequence
from typing import Any

from fusmae_jax.errors import InputError
from fusmae_jax.eval.config import metric_of
from fusmae_jax.eval.dense.config import DenseFinetune, DenseProbe
from fusmae_jax.eval.dense.heads import CONVOLUTIONAL
from fusmae_jax.eval.finetune.rows import added
from fusmae_jax.input import presets
from fusmae_jax.input.compatibility import Fitted
from fusmae_jax.input.contract import Contract


def system_fields(fitted: Fitted | None, modalities: Sequence[str], contract: Contract) -> dict[str, Any]:
    """The fields of a row that tell what the encoder saw; `fitted` is None for the bands of each pixel."""
    if fitted is None:
        return {
            'modalities': tuple(modalities),
            'absent': None,
            'image': 'grid of the labels',
            'statistics': f'those of the split {contract.statistics_split}',
            'accepted': (),
        }
    config = fitted.config
    return {
        'modalities': tuple(config.model.modalities),
        'absent': config.model.fusion.absent,
        'image': presets.describe_image(config, contract, False),
        'statistics': presets.describe_statistics(config),
        'accepted': fitted.shifts,
    }


def method_fields(config: DenseProbe | DenseFinetune, name: str, words: str, head: str) -> dict[str, Any]:
    """The fields of a row that tell how a head was trained.

    Args:
        config: the run.
        name: the command.
        words: what the head is given.
        head: its kind.
    """
    epoch = f'; {config.epoch} epoch' if isinstance(config, DenseFinetune) else ''
    numbers = config.data.kind == 'map_regression'
    return {
        'method': name,
        'preset': config.preset,
        'pooled': f'{words}, {head}, {"squared error" if numbers else config.loss}',
        'batch_norm': None,
        'head_seeds': config.head_seeds,
        'sweep': sweep(config, head),
        'settled_on': f'{config.data.val_split}, {metric_of(config)}{epoch}',
    }


def sweep(config: DenseProbe | DenseFinetune, head: str) -> dict[str, tuple[float, ...]]:
    """Every setting of the training that is a number."""
    augment = config.augment
    fixed = {'epochs': (config.epochs,), 'batch_size': (float(config.batch_size),)}
    fixed |= {'hflip': (augment.hflip,), 'vflip': (augment.vflip,), 'rot90': (float(config.rot90),)}
    if head in CONVOLUTIONAL:
        fixed['head_width'] = (float(config.head_width),)
    if config.loss == 'focal':
        fixed['focal_gamma'] = (config.focal_gamma,)
    if augment.crop:
        fixed |= {f'crop_scale_{side}': (x,) for side, x in zip(('min', 'max'), augment.crop_scale)}
        fixed |= {f'crop_ratio_{side}': (x,) for side, x in zip(('min', 'max'), augment.crop_ratio)}
    if isinstance(config, DenseProbe):
        return {'learning_rate': config.learning_rates, 'weight_decay': config.weight_decays} | fixed
    names = ('weight_decay', 'layer_decay', 'drop_path', 'warmup_epochs', 'b1', 'b2')
    fixed |= {name: (float(getattr(config, name)),) for name in names}
    return {'learning_rate': config.learning_rates} | fixed | added(config)


def check_square(contract: Contract, fields: Sequence[str], grid: tuple[int, int]) -> None:
    """Raises InputError for a grid that cannot be turned by 90 degrees."""
    for name, size in {**{f: contract.groups[f].size for f in fields}, 'the labels': grid}.items():
        if size[0] != size[1]:
            raise InputError(f'rot90=True: {name} of {size[0]} x {size[1]} pixels cannot be turned')
