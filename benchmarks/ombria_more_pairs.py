"""OMBRIA's pairs and some of another place, from the folder `dataset_sample` of the Sentinel downloader.

144 Sentinel-1 images (VV in dB, float64) and as many Sentinel-2 ones (B04, B03, B02 in digital numbers,
uint16) of 256 x 256 px, without a reference system: 12 patches of one desert, once a month (Sebastianelli et
al. 2021, SoftwareX; https://github.com/alessandrosebastianelli/SentinelDataDownloaderTool, MIT licence).
Names as `sen1/zone_9_a/image_VV_187_Apr_patch_0.tif` pair them by zone, month and patch. They have no labels:
all go into the training split, cut into four.

OMBRIA has 8 bits of unknown scale, so each band is brought to the mean and the standard deviation that it has
in OMBRIA's training regions, then rounded and clipped.
"""

import dataclasses
import functools
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks import ombria_set
from benchmarks.ombria_set import SIZE
from fusmae_jax import installed
from fusmae_jax.errors import InputError
from fusmae_jax.geo import UnusableError
from fusmae_jax.shipped.data.records import Item, Record, RecordError, RecordSource
from fusmae_jax.shipped.data.sharded import convert

EDGE = 2 * SIZE  # pixels of an image
NAME = re.compile(r'image_(?P<kind>VV|RGB)_\d+_(?P<month>[A-Z][a-z]{2})_patch_(?P<patch>\d+)')
KINDS = {'s1': ('sen1', 'VV', 1), 's2': ('sen2', 'RGB', 3)}  # sensor -> folder, kind in the name, bands
SCHEMA = dataclasses.replace(
    ombria_set.SCHEMA,
    name='ombria_and_more',
    fields={'name': ombria_set.SCHEMA.fields['name']},
    description=f'{ombria_set.SCHEMA.description} In the training split also pairs of a desert.',
)


class Levels(NamedTuple):
    """Mean and standard deviation of each band."""

    mean: np.ndarray
    std: np.ndarray


def write(npz: str, folder: str, workdir: str | os.PathLike[str]) -> str:
    """Converts both; returns the folder of the data set.

    Raises:
        InputError: a folder or a file is not there, or not of this layout.
    """
    splits, pairs = ombria_set.items(npz), listed(folder)
    for name in pairs:
        corners = [(top, left) for top in (0, SIZE) for left in (0, SIZE)]
        splits['train'] += [Item(f'{name}_{top}_{left}', (name, top, left)) for top, left in corners]
    images = {
        sensor: {name: read(files[sensor], sensor) for name, files in pairs.items()} for sensor in KINDS
    }
    measured = {sensor: levels(each.values()) for sensor, each in images.items()}
    wanted = ombria_levels(npz)
    ready = {
        sensor: {name: to_8_bits(x, measured[sensor], wanted[sensor]) for name, x in each.items()}
        for sensor, each in images.items()
    }
    inputs = {'pairs': len(pairs), **{s: [x.tolist() for x in one] for s, one in measured.items()}}
    read_one = functools.partial(record, npz=npz, images=ready)
    return str(convert(RecordSource(SCHEMA, splits, read_one, inputs), workdir)[0])


def listed(folder: str) -> dict[str, dict[str, Path]]:
    """Name of a pair -> sensor -> its file, in the order of the names."""
    pairs: dict[str, dict[str, Path]] = {}
    for sensor, (below, kind, _) in KINDS.items():
        for file in sorted((Path(folder) / below).glob('zone_*/*.tif')):
            about = NAME.fullmatch(file.stem)
            if about and about['kind'] == kind:
                name = f'{file.parent.name}_{about["month"]}_{int(about["patch"]):02d}'
                pairs.setdefault(name, {})[sensor] = file
    if not pairs:
        raise InputError(
            f'{folder}: no sen1/zone_*/image_VV_*.tif (--pairs); give the folder dataset_sample of the '
            'Sentinel downloader'
        )
    for name, files in pairs.items():
        if missing := [sensor for sensor in KINDS if sensor not in files]:
            have = next(iter(files.values()))
            raise InputError(f'{have}: {name} has no image of {missing[0]}; copy the folder again')
    return dict(sorted(pairs.items()))


def read(file: Path, sensor: str) -> np.ndarray:
    """An image (rows, columns, bands) float32, checked."""
    installed.need('geo', '--pairs', 'rasterio')
    from fusmae_jax.geo.raster import opened

    try:
        with opened(file) as image:
            pixels = np.moveaxis(image.read(), 0, -1).astype(np.float32)
    except UnusableError as error:
        raise RecordError(file, sensor, error.found, 'copy it again') from error
    expected = (EDGE, EDGE, KINDS[sensor][2])
    if pixels.shape != expected or not np.isfinite(pixels).all():
        message = f'{pixels.shape}, {np.isfinite(pixels).mean():.0%} finite; expected {expected}, all finite'
        raise RecordError(file, sensor, message, 'copy it again')
    return pixels


def levels(images: Iterator[np.ndarray] | list[np.ndarray]) -> Levels:
    """Those of all pixels of some images (..., bands)."""
    every = np.concatenate([one.reshape(-1, one.shape[-1]) for one in images]).astype(np.float64)
    return Levels(every.mean(axis=0), every.std(axis=0))


def ombria_levels(npz: str) -> dict[str, Levels]:
    """Sensor -> the levels of OMBRIA's training regions."""
    arrays = ombria_set.read(npz)
    rows = [item.values[0] for item in ombria_set.items(npz)['train']]
    return {sensor: levels([arrays[sensor][rows]]) for sensor in KINDS}


def to_8_bits(image: np.ndarray, measured: Levels, wanted: Levels) -> np.ndarray:
    """An image at other levels, uint8."""
    scaled = (image - measured.mean) / measured.std * wanted.std + wanted.mean
    return np.clip(np.round(scaled), 0, 255).astype(np.uint8)


def record(item: Item, npz: str, images: dict[str, dict[str, np.ndarray]]) -> Record:
    """One pair, of OMBRIA or of the other place."""
    if len(item.values) == 1:
        row = item.values[0]
        return {'name': item.key} | {sensor: ombria_set.read(npz)[sensor][row] for sensor in KINDS}
    name, top, left = item.values
    cut = np.s_[top : top + SIZE, left : left + SIZE]
    return {'name': item.key} | {sensor: np.ascontiguousarray(images[sensor][name][cut]) for sensor in KINDS}
