"""OMBRIA with a label for each image: was there a flood to see?

Reads the file that `ombria_set.py` describes, with the same records and the same split of the regions. An
image counts as flooded if more than half of one of its 64 patches is; none from before a flood does.
"""

import dataclasses
import functools
import hashlib
import os
from pathlib import Path

import numpy as np

from benchmarks import ombria_set
from fusmae_jax.shipped.data.records import Field, Item, Record, RecordSource
from fusmae_jax.shipped.data.sharded import convert

LABEL, CLASSES = 'flood', ('flooded',)
IMAGES = dataclasses.replace(
    ombria_set.SCHEMA,
    name='ombria_images',
    fields=dict(ombria_set.SCHEMA.fields)
    | {LABEL: Field('uint8', '1 where more than half of one patch is flooded', (len(CLASSES),))},
    classes={LABEL: CLASSES},
    description='Pairs of before and after floods, each with a label: flooded or not.',
)


def write(npz: str, folder: str | os.PathLike[str]) -> str:
    """Converts the file; returns the folder of the data set.

    Raises:
        InputError: the file is not there, or not of this layout.
    """
    splits = ombria_set.items(npz)
    digest = hashlib.sha256(Path(npz).read_bytes()).hexdigest()
    source = RecordSource(IMAGES, splits, functools.partial(record, npz=npz), {'sha256': digest})
    return str(convert(source, folder)[0])


def record(item: Item, npz: str) -> Record:
    """One pair with its label."""
    images = ombria_set.record(item, npz)
    return images | {LABEL: np.array([images['flooded'].any()], np.uint8)}
