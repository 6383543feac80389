"""The files of SSL4EO-S12-downstream: a zarr store in a zip for each location and sensor, four seasons in it.

    s1/part-000000/<id>.zarr.zip, s2l2a/part-000000/<id>.zarr.zip, s2l1c/...

The array `bands` has the axes location (one), season, band, row and column; the seasons begin with March to
May, in all folders alike. So says the page of the data on Hugging Face, embed2scale/SSL4EO-S12-downstream.
Bands are in the order of SSL4EO-S12 v1.1, if the store does not name them. Digital numbers of Sentinel-2 have
no offset here, unlike in v1.1.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fusmae_jax.errors import InputError
from fusmae_jax.geo.bands import band_of
from fusmae_jax.input.contract import Group
from fusmae_jax.sensors import Product

from ..records import RecordError, check_name
from ..ssl4eo_s12 import zarr_files
from ..ssl4eo_s12.schema import SIZE, TIMES, schema

SUFFIX = '.zarr.zip'
OTHER = 'this is no file of SSL4EO-S12-downstream'


class Location(NamedTuple):
    """The files of one location, by sensor."""

    name: str
    files: dict[str, Path]


class Layout(NamedTuple):
    """What is read of each sensor."""

    groups: dict[str, Group]
    products: dict[str, Product]


def layout(sensors: Sequence[str], level: str, offset: float, side: int) -> Layout:
    """The images of the archive as a contract has them.

    Args:
        sensors: s1, s2 or both.
        level: l2a or l1c.
        offset: what is added to digital numbers.
        side: pixels of a window.
    """
    about = schema('1.1', 'S2L2A' if level == 'l2a' else 'S2L1C')
    # Stored types are not documented; all of them fit into float32.
    groups = {
        name: dataclasses.replace(about.groups[name], dtype='float32', size=(side, side)) for name in sensors
    }
    if 's2' in groups:
        groups['s2'] = dataclasses.replace(groups['s2'], offset=offset)
    described = 'SSL4EO-S12-downstream: as SSL4EO-S12 v1.1, but for the offset of Sentinel-2'
    return Layout(groups, {n: dataclasses.replace(about.products[n], description=described) for n in sensors})


def locations(data: Path, sensors: Sequence[str], level: str) -> list[Location]:
    """The locations below a folder, by name.

    Raises:
        InputError: no such files, a location twice, or one without a file of each sensor.
    """
    root = data / 'data' if (data / 'data').is_dir() else data
    folders = {name: root / {'s1': 's1', 's2': f's2{level}'}[name] for name in sensors}
    files = {name: _files(folder) for name, folder in folders.items()}
    names = sorted(set().union(*files.values()))
    for sensor, there in files.items():
        missing = [name for name in names if name not in there]
        if missing:
            raise InputError(
                f'{folders[sensor]}: {len(missing):,} of {len(names):,} locations have no file here, such as '
                f'{missing[0]}{SUFFIX}; download the folder in full'
            )
    return [Location(name, {sensor: there[name] for sensor, there in files.items()}) for name in names]


def _files(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise InputError(
            f'{folder}: there is no such folder; --data is that of SSL4EO-S12-downstream, with s1, s2l2a or '
            's2l1c in it or in its folder data'
        )
    files: dict[str, Path] = {}
    for file in sorted([*folder.glob(f'*{SUFFIX}'), *folder.glob(f'*/*{SUFFIX}')]):
        name = file.name.removesuffix(SUFFIX)
        check_name(name, file)
        if name in files:
            raise InputError(f'{file}: the same location as {files[name]}; remove one of them')
        files[name] = file
    if not files:
        raise InputError(f'{folder}: no file that ends in {SUFFIX}; download the parts of this folder')
    return files


def read(file: Path, sensor: str, group: Group) -> np.ndarray:
    """The images of a location as stored, (seasons, rows, columns, bands) float32.

    Raises:
        RecordError: a file that is missing, damaged or of another layout.
    """
    store = zarr_files.open_store(file)
    with zarr_files.reading(file, 'bands'):
        array = store['bands']
    shape, expected = array.shape, (TIMES, len(group.bands), SIZE, SIZE)
    if shape[-4:] != expected or shape[:-4] not in ((), (1,)):
        raise RecordError(file, 'bands shape', f'{array.dtype} {shape}, expected {(1, *expected)}', OTHER)
    if array.dtype.kind not in 'iuf':
        raise RecordError(file, 'bands dtype', f'{array.dtype}, expected numbers', OTHER)
    with zarr_files.reading(file, 'bands'):
        values = np.asarray(array[...]).reshape(expected)
    order = _order(file, store, sensor, group.bands)
    return np.moveaxis(values[:, order], 1, -1).astype(np.float32)


def _order(file: Path, store: Any, sensor: str, bands: Sequence[str]) -> list[int]:
    """Where the bands of the group lie, by their names in the store if there are any."""
    with zarr_files.reading(file, 'band'):
        if 'band' not in store:
            return list(range(len(bands)))
        texts = np.asarray(store['band'][...])
        texts = np.char.decode(texts, 'utf-8') if texts.dtype.kind == 'S' else texts.astype(str)
    names = [band_of(text, sensor) for text in texts.tolist()]
    if sorted(names) != sorted(bands):
        raise RecordError(file, 'band', f'{texts.tolist()}, expected {list(bands)}', OTHER)
    return [names.index(band) for band in bands]
