"""A small converted archive whose records carry a map of labels that its images show."""

import dataclasses
import functools
from pathlib import Path

import numpy as np

from fusmae_jax.input.contract import LabelMap
from fusmae_jax.shipped.data import sharded
from fusmae_jax.shipped.data.bigearthnet_mm.schema import SCHEMA
from fusmae_jax.shipped.data.records import Field, Item, RecordSource
from tests.support.probe_fixtures import GROUPS

CLASSES, VALUES, UNLABELLED = ('water', 'field', 'town', 'nowhere'), (4, 1, 9, 7), 200
SIDE = 24  # pixels of the map, as many as the finest images have
ABOUT = LabelMap(CLASSES, VALUES, (UNLABELLED,), (SIDE, SIDE), resolution=50.0)


def archive(folder, train=24):
    """Writes the data set; returns its folder. The radar shows the class; one in ten pixels has no label."""
    schema = dataclasses.replace(
        SCHEMA,
        name='maps',
        groups=GROUPS,
        fields={
            'name': Field('text', 'name of the record'),
            'scene': Field('text', 'scene'),
            'map': Field('uint8', 'classes', ABOUT.size, indexed=False),
        },
        key='name',
        classes={},
        maps={'map': ABOUT},
        split_aliases={},
    )
    sizes = {'train': train, 'val': 8, 'test': 8}
    items = {
        split: [Item(f'{split}_{i:04d}', (k, i)) for i in range(count)]
        for k, (split, count) in enumerate(sizes.items())
    }
    source = RecordSource(schema, items, read, {'records': f'{sizes}'})
    return Path(sharded.convert(source, folder)[0])


@functools.cache
def truth(split, index):
    """Class numbers (rows, columns) of a record: squares of 6 pixels, as a token of the tiny model covers."""
    rng = np.random.default_rng([7, split, index])
    return rng.integers(3, size=(SIDE // 6, SIDE // 6)).repeat(6, axis=0).repeat(6, axis=1)


def read(item):
    """One record."""
    rng = np.random.default_rng([8, *item.values])
    labels = truth(*item.values)
    record = {'name': item.key, 'scene': f'scene_{item.values[1] % 4}'}
    stored = np.array(VALUES, np.uint8)[labels]
    record['map'] = np.where(rng.random(stored.shape) < 0.1, np.uint8(UNLABELLED), stored)
    for name, group in GROUPS.items():
        shape = (*group.size, len(group.bands))
        if group.dtype == 'float32':
            record[name] = (-18 + 5 * labels[..., None] + rng.normal(0, 1, shape)).astype(np.float32)
        else:
            record[name] = rng.normal(1500, 150, shape).clip(1).astype(np.uint16)
    return record
