"""OMBRIA for segmentation: a record a region, with the images after its flood and before it, and its mask.

Reads the file that `ombria_set.py` describes, with the same split of the regions. The fields of the images
before the flood begin with `before_`.
"""

import dataclasses
import functools
import hashlib
import os
from pathlib import Path

import numpy as np

from benchmarks.ombria_set import SCHEMA, SHARES, SIZE, read, split_of
from fusmae_jax.errors import InputError
from fusmae_jax.input.contract import LabelMap
from fusmae_jax.shipped.data.records import Field, Item, Record, RecordSource
from fusmae_jax.shipped.data.sharded import convert

EARLIER, MAP = 'before_', 'map'
FLOOD = LabelMap(('dry', 'flooded'), (0, 1), (), (SIZE, SIZE))
MAPS = dataclasses.replace(
    SCHEMA,
    name='ombria_maps',
    groups=dict(SCHEMA.groups)
    | {f'{EARLIER}{n}': dataclasses.replace(g, modality=f'{EARLIER}{n}') for n, g in SCHEMA.groups.items()},
    fields={
        'name': Field('text', 'region'),
        'region': Field('int32', 'number of the region'),
        MAP: Field('uint8', '1 where it is flooded', (SIZE, SIZE), indexed=False),
    },
    maps={MAP: FLOOD},
    description='Regions after a flood, with the mask of the flood and the images of before.',
)


def write(npz: str, folder: str | os.PathLike[str]) -> str:
    """Converts the file; returns the folder of the data set.

    Raises:
        InputError: the file is not there, not of this layout, or a region lacks one of its two pairs.
    """
    arrays = read(npz)
    region, after = arrays['region'], arrays['after']
    splits: dict[str, list[Item]] = {name: [] for name in SHARES}
    for number, split in sorted(split_of(region).items()):
        rows = {side: np.flatnonzero((region == number) & (after == side)) for side in (True, False)}
        if any(len(pairs) != 1 for pairs in rows.values()):
            raise InputError(f'{npz}: region {number} needs one pair before its flood and one after it')
        late, early = (int(rows[side][0]) for side in (True, False))
        splits[split].append(Item(f'region_{number:04d}', (late, early)))
    digest = hashlib.sha256(Path(npz).read_bytes()).hexdigest()
    source = RecordSource(MAPS, splits, functools.partial(record, npz=npz), {'sha256': digest})
    return str(convert(source, folder)[0])


def record(item: Item, npz: str) -> Record:
    """One region."""
    arrays, (late, early) = read(npz), item.values
    images = {name: arrays[name][late] for name in SCHEMA.groups}
    images |= {f'{EARLIER}{name}': arrays[name][early] for name in SCHEMA.groups}
    return images | {
        'name': item.key,
        'region': arrays['region'][late],
        MAP: np.unpackbits(arrays['flood'][late], axis=-1),
    }
