"""What is pretrained for `ombria_ablations.py`: one base, and runs that differ from it in one thing each.

RUNS were fixed before anything was measured on the test regions; COMPARED and SIZES came after it.
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
# Data sets: OMBRIA; with pairs of another place; EuroSAT.
OMBRIA, MORE, EUROSAT = 'ombria', 'more', 'eurosat'
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
    data: str = OMBRIA  # or MORE
    start: str = ''  # a run that it takes its weights from


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

# Thought of when the test regions had been opened; they choose nothing. What is compared with REFERENCE, with
# all seeds, differs from it in one thing; sizes of patches differ from the base, on the validation regions.
REFERENCE = 'multimae_decoder'
COMPARED = {
    'more_pairs': Ablation('576 pairs of a desert besides', RUNS[REFERENCE].changes, MORE),
    'eurosat_start': Ablation('starts from EuroSAT: the S2 side', RUNS[REFERENCE].changes, start=EUROSAT),
    'both': Ablation('both of these', RUNS[REFERENCE].changes, MORE, EUROSAT),
}
SIZES = {
    'patch_4': Ablation('patches of 4 px: 100 of 128 m a sensor', ('model.patch_size=4',)),
    'pixels_80': Ablation('80 px: 100 patches of 8 px and 128 m a sensor', ('model.image_size=(80, 80)',)),
}
EUROSAT_STEPS = 1200


def every_run() -> dict[str, Ablation]:
    """All runs by name."""
    return {**RUNS, **COMPARED, **SIZES}


def pretraining(name: str, data: str, seed: int, start: str = '') -> Config:
    """The configuration of a run; `start` is where the run is that it takes its weights from."""
    lines = (*BASE, *(line for sensor in SENSORS.values() for line in sensor), *every_run()[name].changes)
    config = build(load_config('configs/pretrain.py:xae', (*lines, f'seed={seed}', f'name={name}')))
    where = dataclasses.replace(config.data, path=data)
    return dataclasses.replace(config, data=where, init=dataclasses.replace(config.init, from_=start))


def optical(data: str, seed: int) -> Config:
    """The masked autoencoder of EuroSAT, one sensor, of the same width, depth and patch."""
    length = (f'train.steps={EUROSAT_STEPS}', f'checkpoint.every_steps={EUROSAT_STEPS}')
    lines = (*BRIEF, *SENSORS['s2'], *length, f'seed={seed}', f'name={EUROSAT}')
    config = build(load_config('configs/pretrain.py:mae_s2', lines))
    return dataclasses.replace(config, data=dataclasses.replace(config.data, path=data))


def digest() -> str:
    """16 hexadecimal digits that change with any setting of a run of RUNS, wherever the data lie."""
    return fingerprint({name: to_dict(pretraining(name, '', 0)) for name in RUNS})


def digest_later(name: str) -> str:
    """Those of one of the other runs, and of what it starts from."""
    start = to_dict(optical('', 0)) if every_run()[name].start else {}
    return fingerprint({'run': to_dict(pretraining(name, '', 0)), 'start': start})


def untrained(name: str, seed: int) -> str:
    """The name of a run's encoder without training: one for all runs that share it."""
    return f'untrained-{_encoder(name)}-{seed}'


def _encoder(name: str) -> str:
    """The first run with the same encoder; decoders, masks and length make no other one."""
    about = {run: _about(run) for run in every_run()}
    return next(run for run in about if about[run] == about[name])


@functools.cache
def _about(name: str) -> str:
    model: dict[str, Any] = to_dict(pretraining(name, '', 0).model)
    del model['decoder'], model['fusion']['decoder']
    return fingerprint(model)
