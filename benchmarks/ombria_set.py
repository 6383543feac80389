"""OMBRIA as one of our data sets: real Sentinel-1 / Sentinel-2 pairs in 8 bits, split by region.

The file is an archive of NumPy arrays, a row for each image pair: `s1` (n, 128, 128, 1) and `s2`
(n, 128, 128, 3) uint8, `flood` (n, 128, 16) uint8 with 8 pixels a byte along the columns, `region` (n,)
int32, `after` (n,) bool. A region has one pair from before a flood and one from after it (Drakonakis et al.
2022, IEEE JSTARS, doi 10.1109/JSTARS.2022.3155559). Its values were scaled to 8 bits and have neither
decibels nor reflectance, so the contract calls their unit `8 bit`: no other data set is taken for it.
"""

import functools
import hashlib
import os
import zipfile
from pathlib import Path

import numpy as np

from fusmae_jax.errors import InputError
from fusmae_jax.input.contract import Group
from fusmae_jax.shipped.data.records import Field, Item, Record, RecordSource, Schema
from fusmae_jax.shipped.data.sharded import convert

SIZE = 128  # pixels of 10 m
PATCH = 16  # pixels of 10 m, for the flood labels
UNIT = '8 bit'
SHARES = {'train': 0.7, 'val': 0.1, 'test': 0.2}  # of the regions
SPLIT_SEED = 0
SHAPES = {
    's1': ((SIZE, SIZE, 1), 'uint8'),
    's2': ((SIZE, SIZE, 3), 'uint8'),
    'flood': ((SIZE, SIZE // 8), 'uint8'),
    'region': ((), 'int32'),
    'after': ((), 'bool'),
}
SCHEMA = Schema(
    name='ombria',
    version='1.0.0',
    groups={
        's1': Group('s1', ('SAR',), (SIZE, SIZE), 'uint8', UNIT),
        's2': Group('s2', ('B04', 'B03', 'B02'), (SIZE, SIZE), 'uint8', UNIT),
    },
    fields={
        'name': Field('text', 'region and date of the pair'),
        'region': Field('int32', 'number of the region'),
        'after': Field('uint8', '1 if the pair was taken after the flood'),
        'flooded': Field(
            'uint8',
            f'1 where more than half of a patch of {PATCH} x {PATCH} px is flooded; 0 before the flood',
            (SIZE // PATCH, SIZE // PATCH),
        ),
    },
    products={},
    key='name',
    description='Pairs of Sentinel-1 backscatter and Sentinel-2 colour in 8 bits, before and after floods.',
    homepage='https://github.com/geodrak/OMBRIA',
)


def write(npz: str, folder: str | os.PathLike[str]) -> str:
    """Converts the file; returns the folder of the data set.

    Raises:
        InputError: the file is not there, or not of this layout.
    """
    splits = items(npz)
    digest = hashlib.sha256(Path(npz).read_bytes()).hexdigest()
    source = RecordSource(SCHEMA, splits, functools.partial(record, npz=npz), {'sha256': digest})
    return str(convert(source, folder)[0])


def items(npz: str) -> dict[str, list[Item]]:
    """Split -> the pairs of the file that stand in it, by region, the one before the flood first."""
    region, after = (read(npz)[name] for name in ('region', 'after'))
    splits: dict[str, list[Item]] = {name: [] for name in SHARES}
    belongs = split_of(region)
    for row in np.lexsort((after, region)).tolist():
        name = f'region_{region[row]:04d}_{"after" if after[row] else "before"}'
        splits[belongs[int(region[row])]].append(Item(name, (row,)))
    return splits


@functools.cache
def read(npz: str) -> dict[str, np.ndarray]:
    """The arrays of the file, checked."""
    if not Path(npz).is_file():
        raise InputError(f'{npz}: there is no such file (--npz)')
    try:
        with np.load(npz, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in SHAPES if name in archive}
    except (zipfile.BadZipFile, ValueError, EOFError, AttributeError) as error:
        raise InputError(f'{npz}: not an archive of NumPy arrays ({error}); copy it again') from error
    for name, (shape, dtype) in SHAPES.items():
        if name not in arrays:
            raise InputError(f'{npz}: no array {name!r}; it must hold {", ".join(SHAPES)}')
        stored = arrays[name]
        if stored.shape[1:] != shape or stored.dtype != dtype or len(stored) != len(arrays['s1']):
            raise InputError(
                f'{npz}: {name} is {stored.shape} {stored.dtype}, expected '
                f'({len(arrays["s1"])}, {", ".join(map(str, shape))}) {dtype}'
            )
    return arrays


def split_of(region: np.ndarray) -> dict[int, str]:
    """Region -> split: a region stands in one split as a whole, and the shares are those of SHARES."""
    names = np.random.default_rng(SPLIT_SEED).permutation(np.unique(region)).tolist()
    ends = np.round(np.cumsum(list(SHARES.values())) * len(names)).astype(int)
    return {name: list(SHARES)[int(np.searchsorted(ends, i, 'right'))] for i, name in enumerate(names)}


def record(item: Item, npz: str) -> Record:
    """One pair."""
    arrays, row = read(npz), item.values[0]
    flood = np.unpackbits(arrays['flood'][row], axis=-1)
    after = bool(arrays['after'][row])
    return {
        's1': arrays['s1'][row],
        's2': arrays['s2'][row],
        'name': item.key,
        'region': arrays['region'][row],
        'after': np.uint8(after),
        'flooded': flooded(flood) * np.uint8(after),
    }


def flooded(flood: np.ndarray) -> np.ndarray:
    """A map of 0 and 1 (rows, columns) to 1 for each patch with more than half of its pixels set."""
    rows, columns = (n // PATCH for n in flood.shape)
    share = flood.reshape(rows, PATCH, columns, PATCH).mean(axis=(1, 3))
    return (share > 0.5).astype(np.uint8)
