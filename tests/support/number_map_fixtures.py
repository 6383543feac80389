"""A small converted archive whose records carry maps of numbers, some of which their images show."""

import dataclasses
import functools
from pathlib import Path

import numpy as np

from fusmae_jax.input.contract import NumberMap
from fusmae_jax.shipped.data import sharded
from fusmae_jax.shipped.data.bigearthnet_mm.schema import SCHEMA
from fusmae_jax.shipped.data.records import Field, Item, RecordSource
from tests.support.probe_fixtures import GROUPS

SIDE, QUANTITY, UNIT = 24, 'biomass', 't/ha'  # pixels of the map, as many as the finest images have
ABOUT = NumberMap(QUANTITY, UNIT, 1.0, 0.0, (-9999.0,), (SIDE, SIDE), 'float32', 50.0)
# What a field holds: a linear function of the radar; the same with other values where there is no number, and
# in whole numbers; the same one pixel further; nothing that the images show.
MAPS = {
    'map': ABOUT,
    'nan': dataclasses.replace(ABOUT, nodata=()),
    'whole': dataclasses.replace(ABOUT, nodata=(-32768.0,), dtype='int16', scale=0.01, offset=100.0),
    'shifted': ABOUT,
    'noise': ABOUT,
}
SIZES = {'train': 24, 'val': 8, 'test': 8}


def archive(folder):
    """Writes the data set; returns its folder. One pixel in ten has no number, and one record none at all."""
    fields = {
        'name': Field('text', 'name of the record'),
        'scene': Field('text', 'scene'),
        **{name: Field(about.dtype, 'numbers', about.size, indexed=False) for name, about in MAPS.items()},
    }
    schema = dataclasses.replace(
        SCHEMA,
        name='numbers',
        groups=GROUPS,
        fields=fields,
        key='name',
        classes={},
        number_maps=MAPS,
        split_aliases={},
    )
    items = {
        split: [Item(f'{split}_{i:04d}', (k, i)) for i in range(count)]
        for k, (split, count) in enumerate(SIZES.items())
    }
    return Path(sharded.convert(RecordSource(schema, items, read, {'records': f'{SIZES}'}), folder)[0])


@functools.cache
def truth(split, index):
    """Numbers (rows, columns) of `map`, NaN where there is none."""
    record = read(Item('', (split, index)))
    return np.where(record['map'] == -9999, np.nan, record['map'])


def read(item):
    """One record."""
    rng = np.random.default_rng([9, *item.values])
    record = {'name': item.key, 'scene': f'scene_{item.values[1] % 4}'}
    for name, group in GROUPS.items():
        shape = (*group.size, len(group.bands))
        if group.dtype == 'float32':
            record[name] = rng.normal(-15, 2, shape).astype(np.float32)
        else:
            record[name] = rng.normal(1500, 150, shape).clip(1).astype(np.uint16)
    numbers = (150 + 3 * record['s1'][..., 0] - 2 * record['s1'][..., 1]).round(2).astype(np.float32)
    nothing = rng.random(numbers.shape) < (1 if item.values == (0, 3) else 0.1)
    record['map'] = np.where(nothing, np.float32(-9999), numbers)
    record['nan'] = np.where(nothing, rng.choice(np.float32([np.nan, np.inf]), numbers.shape), numbers)
    record['whole'] = np.where(nothing, -32768, ((numbers - 100) * 100).round()).astype(np.int16)
    record['shifted'] = np.roll(record['map'], 1, axis=1)
    record['noise'] = rng.normal(150, 7, numbers.shape).astype(np.float32)
    return record
