"""Three sensors from generated scenes to a table: Sentinel-1, Sentinel-2 and elevation, a small model.

A third sensor is one more block under `model.modalities`; nothing else differs from a pretraining of two. The
model is 64 wide and 3 deep on 60 px, for a CPU core; masks hide one of the sensors in half of the samples,
because an encoder that has only ever seen all of them reads one alone no better than an untrained one.

    python main.py generate --layout=three_sensors --out=runs/three_sensors/raw --pairs=3000
    python main.py convert --config=configs/convert_paired_folder.py \\
        --config.output=runs/three_sensors/data ...
    python main.py pretrain --config=configs/three_sensors.py --workdir=runs/three_sensors/xae
    python main.py linear_probe --config=configs/three_sensors.py:probe --workdir=runs/three_sensors/probe

`generate` prints the settings of the conversion. The table of the last command has a row for each of the
seven choices of sensors.

Variants:
    pair        the same pretraining without elevation
    probe       the settings of `linear_probe`
    finetune    those of `finetune` for both sensors of a pair
    reliance    those of `reliance`: how much a head relies on Sentinel-1 and Sentinel-2
"""

import itertools
from collections.abc import Sequence
from typing import Any

import ml_collections

from fusmae_jax.config.build import config_dict
from fusmae_jax.config.run import Config, Modality
from fusmae_jax.errors import InputError, nearest

RUN = 'runs/three_sensors'
DATA = f'{RUN}/data/paired_folder/1.0.0'
SENSORS = ('s1', 's2', 'dem')
# Mean and deviation are those of the data (`data.stats`); these numbers only hold their place.
ELEVATION = Modality(bands=('ELEVATION',), resample='bilinear', unit='m', mean=(0.0,), std=(1.0,))
# A head converges only on standardised features, and with more epochs than the paper's.
HEAD = {'learning_rates': (1e-2, 3e-2, 1e-1), 'epochs': 50.0, 'batch_size': 64}


def get_config(variant: str = '') -> ml_collections.ConfigDict:
    """Every field of `Config`, or of the settings of an evaluation."""
    if variant == 'probe':
        return probe(f'{RUN}/xae', DATA, SENSORS)
    if variant == 'reliance':
        return _reliance()
    if variant == 'finetune':
        return _finetune()
    if variant not in ('', 'pair'):
        known = nearest(variant, ('pair', 'probe', 'finetune', 'reliance'))
        raise InputError(f'configs/three_sensors.py: no variant {variant!r}; {known}')
    config = small(variant or 'three_sensors', DATA)
    if not variant:
        with config.unlocked():
            config.model.modalities.dem = config_dict(ELEVATION)
    return config


def small(name: str, path: str) -> ml_collections.ConfigDict:
    """A small pretraining on generated scenes, of the two sensors of a pair."""
    config = config_dict(Config())
    config.name = name
    config.data.path, config.data.stats = path, 'dataset'
    config.data.val_split = 'val'
    model = config.model
    model.size, model.width, model.depth, model.heads = 'custom', 64, 3, 4
    model.image_size, model.patch_size = (60, 60), 12
    model.decoder.width, model.decoder.depth, model.decoder.heads = 64, 2, 4
    config.masking.strategy = 'modality'
    config.augment.vflip = 0.5
    config.optimizer.learning_rate, config.optimizer.warmup_steps = 2e-3, 100
    config.train.batch_size, config.train.steps = 32, 1200
    config.checkpoint.every_steps = config.log.eval_every_steps = 400
    config.log.images_every_steps = 0
    return config


def _labelled(config: Any) -> Any:
    """The labels of the generated scenes, each of which is a cluster of its own."""
    config.data.path, config.data.labels = DATA, 'labels'
    config.intervals.cluster = 'scene'
    return config


def probe(run: str, data: str, sensors: Sequence[str]) -> ml_collections.ConfigDict:
    """A linear probe of every choice of sensors of a run."""
    from fusmae_jax.eval.config import LinearProbe

    config = _labelled(config_dict(LinearProbe()))
    config.data.path = data
    counts = range(1, len(sensors) + 1)
    subsets = tuple(chosen for count in counts for chosen in itertools.combinations(sensors, count))
    config.encoder.checkpoint, config.encoder.modalities = run, subsets
    config.labels.fractions = (1.0,)
    # The mean of all tokens is diluted by a sensor that says little; side by side none is.
    config.features = ('mean_patch', 'concat_per_sensor')
    config.batch_norm, config.head_seeds = (True,), (0,)
    config.update(HEAD)
    return config


def _finetune() -> ml_collections.ConfigDict:
    from fusmae_jax.eval.finetune.config import Finetune

    config = _labelled(config_dict(Finetune()))
    config.encoder.checkpoint, config.encoder.modalities = f'{RUN}/pair', (('s1', 's2'),)
    config.encoder.baselines = ('prior',)
    config.learning_rates, config.batch_size = (1e-3,), 32
    return config


def _reliance() -> ml_collections.ConfigDict:
    from fusmae_jax.eval.reliance.config import Reliance

    config = _labelled(config_dict(Reliance()))
    config.checkpoints = (f'{RUN}/xae',)
    config.head.batch_norm = True
    config.head.update(HEAD)
    return config
