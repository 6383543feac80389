"""Random pairs with the record layout of BigEarthNet-MM: for timing and for tests, never for results.

Smooth random fields, of which the sensors share a part, plus noise: compressible about as real images
are, and learnable.
"""

import dataclasses
import functools
import os

import numpy as np

from data.bigearthnet_mm.schema import SCHEMA
from data.records import Field, Item, Record, Source
from data.sharded import convert
from fusmae_jax import sensors
from fusmae_jax.input.contract import Group

NAME = 'synthetic'
FIELDS = {
    's1_name': Field('text', 'name of the Sentinel-1 image'),
    's2_name': Field('text', 'name of the Sentinel-2 image'),
    'snow': Field('uint8', 'always 0'),
}


def write(output: str | os.PathLike[str], records: int, seed: int = 0, split: str = 'train') -> str:
    """Writes a data set of one split with the real converter; returns its folder."""
    schema = dataclasses.replace(
        SCHEMA, name=NAME, fields=FIELDS, classes={}, split_aliases={}, description='Random fields.'
    )
    items = [Item(f'{split}_{i:06d}', (i,)) for i in range(records)]
    read = functools.partial(_read, seed=seed)
    source = Source(schema, {split: items}, read, {'seed': str(seed), 'records': str(records)})
    return str(convert(source, output)[0])


def _read(item: Item, seed: int) -> Record:
    rng = np.random.default_rng((seed, item.values[0]))
    scene = _smooth(rng, 120, 1)
    images = {name: _image(rng, scene, group) for name, group in SCHEMA.groups.items()}
    return images | {'s1_name': f'S1_{item.key}', 's2_name': f'S2_{item.key}', 'snow': np.uint8(0)}


def _smooth(rng: np.random.Generator, size: int, bands: int) -> np.ndarray:
    """A field of unit variance (size, size, bands) that varies over a quarter of the image."""
    coarse = rng.standard_normal((6, 6, bands))
    at = np.linspace(0, 4.999, size)
    low, part = at.astype(int), (at % 1)[:, None, None]
    rows = coarse[low] * (1 - part) + coarse[low + 1] * part
    part = part.swapaxes(0, 1)
    return rows[:, low] * (1 - part) + rows[:, low + 1] * part


def _image(rng: np.random.Generator, scene: np.ndarray, group: Group) -> np.ndarray:
    size, step = group.size[0], 120 // group.size[0]
    bands = [sensors.SENSORS[group.modality].bands[band] for band in group.bands]
    field = 0.7 * scene[::step, ::step] + 0.5 * _smooth(rng, size, len(bands))
    field += 0.2 * rng.standard_normal(field.shape)
    image = field * [band.std for band in bands] + [band.mean for band in bands]
    if group.dtype == 'uint16':
        image = np.clip(np.rint(image), 1, 2**16 - 1)
    return image.astype(group.dtype)
