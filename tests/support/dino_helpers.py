"""A tiny DINO-MM run and records for it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from fusmae_jax.config import dino as dc
from fusmae_jax.config import run as cfg
from fusmae_jax.config.build import build, to_dict
from fusmae_jax.input import crops
from fusmae_jax.input.contract import Contract
from fusmae_jax.input.pipeline import POSITION
from fusmae_jax.input.prepare import make_prepare
from fusmae_jax.shipped.data.bigearthnet_mm.schema import GROUPS

# Native grids a fifth as wide as those of BigEarthNet-MM: 24, 12 and 4 pixels.
CONTRACT = Contract(
    dataset='test',
    version='1',
    groups={k: dataclasses.replace(g, size=(g.size[0] // 5, g.size[1] // 5)) for k, g in GROUPS.items()},
)
DEFAULT = cfg.dino_mm()


def tiny(dino=None, **changes):
    """16 patches of 4 px, 32 wide, 2 deep; 2 global crops of 16 px, 2 local ones of 8 px."""
    model = dataclasses.replace(
        DEFAULT.model, size='custom', width=32, depth=2, heads=2, image_size=(16, 16), patch_size=4
    )
    settings = {
        'global_crops': dc.Crops(2, 16, (0.4, 1.0), (1.0, 0.1), (0.0, 0.2)),
        'local_crops': dc.Crops(2, 8, (0.05, 0.4), (0.5,)),
        'head': dc.DinoHead(out_dim=256, hidden=64, bottleneck=256),
    }
    values = {
        'model': model,
        'train': cfg.Train(batch_size=8, steps=60),
        'optimizer': dataclasses.replace(DEFAULT.optimizer, learning_rate=5e-4, warmup_steps=5),
        'dino': dataclasses.replace(DEFAULT.dino, **(settings | (dino or {}))),
    }
    return build(to_dict(dataclasses.replace(DEFAULT, **(values | changes))))


def records(size, seed=0):
    """Images that differ in the mean of each band, with noise."""
    rng = np.random.default_rng(seed)
    batch = {POSITION: np.arange(size, dtype=np.uint32)}
    for name, group in CONTRACT.groups.items():
        shape, level = (size, *group.size, len(group.bands)), (size, 1, 1, len(group.bands))
        if group.dtype == 'float32':
            batch[name] = (rng.normal(-15, 5, level) + rng.normal(0, 1.5, shape)).astype(np.float32)
        else:
            values = rng.gamma(2, 500, level) * rng.normal(1, 0.2, shape)
            batch[name] = np.clip(values, 1, 10_000).astype(np.uint16)
    return batch


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def whole_views(config, contract, size):
    """The function from a raw batch to whole images (b, size, size, c), as crops are before distortion."""
    prepare = make_prepare(crops._pixels(config, size), contract, None)

    def whole(batch):
        dino = config.dino
        batch = crops.clip_quantiles(batch, contract, dino.quantile_clip_modality, dino.quantile_clip)
        images, present = crops._stack(config, prepare(batch, None), size)
        return jnp.where(present, images, 0)

    return whole


def published_cosine(start, end, steps, warmup=0):
    """The list of values of the schedules in DINO's published code."""
    rise = np.linspace(0, start, warmup)
    step = np.arange(steps - warmup)
    return np.concatenate([rise, end + 0.5 * (start - end) * (1 + np.cos(np.pi * step / len(step)))])
