"""EuroSAT RGB as one of our data sets: Sentinel-2 colour in 8 bits, one of ten classes an image.

The folder holds a folder for each class with its images, `Forest/Forest_1.jpg`, of 64 x 64 px of 10 m
(Helber et al. 2019, IEEE JSTARS, doi 10.1109/JSTARS.2019.2918242; MIT licence). The images carry no place and
there is no official split, so a fixed one is drawn within each class by a hash of the names. Values were
scaled to 8 bits and are no reflectance, so the contract calls their unit `8 bit`.
"""

import functools
import hashlib
import os
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from fusmae_jax.errors import InputError
from fusmae_jax.input.contract import Group
from fusmae_jax.shipped.data.records import Field, Item, Record, RecordError, RecordSource, Schema
from fusmae_jax.shipped.data.sharded import convert

SIZE = 64  # pixels of 10 m
SHARES = {'train': 0.7, 'val': 0.1, 'test': 0.2}  # of the images of each class
CLASSES = (
    *('AnnualCrop', 'Forest', 'HerbaceousVegetation', 'Highway', 'Industrial', 'Pasture', 'PermanentCrop'),
    *('Residential', 'River', 'SeaLake'),
)
LEAST = 10  # images of a class, so that each split has one
LABELS = 'land_cover'
SCHEMA = Schema(
    name='eurosat_rgb',
    version='1.0.0',
    groups={'s2': Group('s2', ('B04', 'B03', 'B02'), (SIZE, SIZE), 'uint8', '8 bit')},
    fields={
        'name': Field('text', 'file name of the image without its ending'),
        LABELS: Field('uint8', '1 for the class of the image', (len(CLASSES),)),
    },
    products={},
    key='name',
    classes={LABELS: CLASSES},
    description='Sentinel-2 colour in 8 bits with one of ten classes of land use and cover.',
    homepage='https://github.com/phelber/EuroSAT',
    license='MIT',
)


def write(images: str, folder: str | os.PathLike[str], part: float = 1.0) -> str:
    """Converts the folder of images, or a part of each class; returns the folder of the data set.

    Raises:
        InputError: a folder of a class is missing or has too few images, or an image cannot be used.
    """
    splits: dict[str, list[Item]] = {name: [] for name in SHARES}
    for number, files in enumerate(listed(images)):
        for split, names in split_of([file.stem for file in files], part).items():
            splits[split] += [Item(name, (f'{CLASSES[number]}/{name}.jpg', number)) for name in names]
    # All classes mixed, so that the first records of a split are a sample of it.
    for items in splits.values():
        items.sort(key=lambda item: _hash(item.key))
    every = '\n'.join(item.key for items in splits.values() for item in items)
    inputs = {'names': hashlib.sha256(every.encode()).hexdigest()}
    source = RecordSource(SCHEMA, splits, functools.partial(record, images=images), inputs)
    return str(convert(source, folder)[0])


def listed(images: str) -> list[list[Path]]:
    """The images of each class, by name."""
    missing = [name for name in CLASSES if not (Path(images) / name).is_dir()]
    if missing:
        raise InputError(
            f'{images}: no folder {", ".join(missing)} (--images); give the folder of EuroSAT RGB that holds '
            f'one for each class, such as {CLASSES[0]}/{CLASSES[0]}_1.jpg'
        )
    images_of = [sorted((Path(images) / name).glob('*.jpg')) for name in CLASSES]
    for name, files in zip(CLASSES, images_of):
        if len(files) < LEAST:
            raise InputError(
                f'{images}/{name}: {len(files)} images (*.jpg), at least {LEAST} are needed for the three '
                'splits; copy the folder again'
            )
    return images_of


def split_of(names: list[str], part: float = 1.0) -> dict[str, list[str]]:
    """The names of one class by split: in the order of their hashes, cut at the shares of SHARES.

    Each split of a part is a part of the same split of the whole.
    """
    ranked = sorted(names, key=_hash)
    ends = np.round(np.cumsum(list(SHARES.values())) * len(ranked)).astype(int).tolist()
    starts = [0, *ends[:-1]]
    return {split: ranked[a : a + max(1, round((b - a) * part))] for split, a, b in zip(SHARES, starts, ends)}


def _hash(name: str) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=8).digest()


def record(item: Item, images: str) -> Record:
    """One image."""
    name, number = item.values
    file = Path(images) / name
    try:
        with Image.open(file) as image:
            pixels = np.asarray(image.convert('RGB') if image.mode != 'RGB' else image)
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise RecordError(file, 's2', f'not an image that can be read ({error})', 'copy it again') from error
    if pixels.shape != (SIZE, SIZE, 3):
        images_of = f'{pixels.shape[1]} x {pixels.shape[0]} px'
        raise RecordError(file, 's2', images_of, f'images of EuroSAT have {SIZE} x {SIZE} px; copy it again')
    return {'s2': pixels, 'name': item.key, LABELS: np.eye(len(CLASSES), dtype=np.uint8)[number]}
