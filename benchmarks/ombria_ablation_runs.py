"""What is pretrained for `ombria_ablations.py`: one base, and runs that differ from it in one thing each.

Fixed before anything was measured on the test regions.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

from fusmae_jax.config.build import build, to_dict
from fusmae_jax.config.files import load_config
from fusmae_jax.config.run import Config
from fusmae_jax.input.contract import fingerprint
from fusmae_jax.shipped.configs.tables import BRIEF

STEPS, SEEDS = 300, (0, 1, 2)
# Of OMBRIA's one radar band and three optical ones. Statistics are those of the training regions; the numbers
# here are placeholders for them.
SENSORS = {
    name: (
        f'model.modalities.{name}.bands={bands}',
        f'model.modalities.{name}.sensor=',
        f'model.modalities.{name}.resample=bilinear',
        f'model.modalities.{name}.mean={(0.0,) * len(bands)}',
        f'model.modalities.{name}.std={(1.0,) * len(bands)}',
        'data.stats=dataset',
    )
    for name, bands in (('s1', ('SAR',)), ('s2', ('B04', 'B03', 'B02')))
}
# Those of the fusion x masking study, of which the base is one cell.
BASE = (*BRIEF, 'masking.strategy=modality')


class Ablation(NamedTuple):
    """A run: what it changes, in words and in settings."""

    about: str
    changes: tuple[str, ...] = ()


def _steps(count: int) -> Ablation:
    return Ablation(f'{count:,} steps', (f'train.steps={count}', f'optimizer.warmup_steps={count // 10}'))


RUNS = {
    'base': Ablation(f'base: XAE, `modality` masks, {STEPS:,} steps'),
    'independent': Ablation('`independent` masks', ('masking.strategy=independent',)),
    'joint_uniform': Ablation('`joint_uniform` masks', ('masking.strategy=joint_uniform',)),
    'long': _steps(1200),
    'multimae_decoder': Ablation(
        'decoders that attend to the tokens of both sensors (MultiMAE)', ('model.fusion.decoder=multimae',)
    ),
    'cls_decoder': Ablation('decoders that see CLS', ('model.decoder.cls=True',)),
    'norm_pix': Ablation('targets normalised patch by patch', ('loss.norm_pix=True',)),
    'wide': Ablation(
        'width 128, depth 4', ('model.width=128', 'model.depth=4', 'optimizer.learning_rate=1e-3')
    ),
    'ratio_50': Ablation('50 % masked', ('masking.ratio=0.5',)),
    'short': _steps(100),
}


def pretraining(name: str, data: str, seed: int) -> Config:
    """The configuration of a run."""
    lines = (*BASE, *(line for sensor in SENSORS.values() for line in sensor), *RUNS[name].changes)
    config = build(load_config('configs/pretrain.py:xae', (*lines, f'seed={seed}', f'name={name}')))
    return dataclasses.replace(config, data=dataclasses.replace(config.data, path=data))


def digest() -> str:
    """16 hexadecimal digits that change with any setting of any run, wherever the data lie."""
    return fingerprint({name: to_dict(pretraining(name, '', 0)) for name in RUNS})


def untrained(name: str, seed: int) -> str:
    """The name of a run's encoder without training: one for all runs that share it."""
    return f'untrained-{_encoder(name)}-{seed}'


def _encoder(name: str) -> str:
    """The first run with the same encoder; decoders, masks and length make no other one."""
    about = {run: _about(run) for run in RUNS}
    return next(run for run in RUNS if about[run] == about[name])


@functools.cache
def _about(name: str) -> str:
    model: dict[str, Any] = to_dict(pretraining(name, '', 0).model)
    del model['decoder'], model['fusion']['decoder']
    return fingerprint(model)
