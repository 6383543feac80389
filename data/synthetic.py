"""Generated pairs with the record layout of BigEarthNet-MM: for timing and for tests, never for results.

The images are those of `data/generate/scene.py`, without the detour over the files of a raw archive.
"""

import dataclasses
import functools
import os

import numpy as np

from .bigearthnet_mm.schema import SCHEMA
from .generate.scene import SceneConfig, digest, scene
from .records import Field, Item, Record, RecordSource
from .sharded import convert

NAME = 'synthetic'
FIELDS = {
    's1_name': Field('text', 'name of the Sentinel-1 image'),
    's2_name': Field('text', 'name of the Sentinel-2 image'),
    'snow': Field('uint8', '1 if the scene lies under snow'),
}


def write(output: str | os.PathLike[str], records: int, seed: int = 0, split: str = 'train') -> str:
    """Writes a data set of one split with the real converter; returns its folder."""
    config = SceneConfig(seed)
    schema = dataclasses.replace(
        SCHEMA, name=NAME, fields=FIELDS, classes={}, split_aliases={}, description='Generated scenes.'
    )
    items = [Item(f'{split}_{i:06d}', (i,)) for i in range(records)]
    read = functools.partial(_read, config=config)
    source = RecordSource(schema, {split: items}, read, {'scenes': digest(config), 'records': str(records)})
    return str(convert(source, output)[0])


def _read(item: Item, config: SceneConfig) -> Record:
    generated = scene(config, item.values[0])
    bands = generated.s1 | generated.s2
    images = {
        name: np.stack([bands[band] for band in group.bands], -1) for name, group in SCHEMA.groups.items()
    }
    return images | {
        's1_name': f'S1_{item.key}',
        's2_name': f'S2_{item.key}',
        'snow': np.uint8(generated.snow),
    }
