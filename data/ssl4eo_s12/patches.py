"""Version 1.0: listing its folders, and one record of them.

    s1/0000200/S1A_IW_GRDH_1SDV_20200607T010800_..._D457/VV.tif, VH.tif
    s2a/0000200/20200604T054639_20200604T054831_T43RCP/B1.tif ... B12.tif      (s2c: L1C, with B10)

The GeoTIFFs are in degrees although their pixels are those of the UTM grid. Their corners lie half a
pixel of each band up and left of the image, which is undone here, and are approximate beyond that.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import rasterio

from fusmae_jax.input.contract import Group

from ..geotiff import opened
from ..records import Item, Record, RecordError, check_name, inside
from .names import check_decibel, pair
from .schema import RESOLUTION, SIZE, TIMES, schema

FOLDERS = {'S1': 's1', 'S2L2A': 's2a', 'S2L1C': 's2c'}
LOCATION = r'\d{6,7}'
AGAIN = 'unpack the location again'
# GDAL shall not search each folder for side files.
_OPTIONS = {'GDAL_DISABLE_READDIR_ON_OPEN': 'EMPTY_DIR'}
_FAR = SIZE / 10  # pixels between the corners of the two sensors from which on they show other ground


class Frame(NamedTuple):
    """Where an image lies, in degrees: its upper left corner and its extent."""

    left: float
    top: float
    width: float
    height: float


def find(names: dict[str, set[str]]) -> Iterator[Item | tuple[str, RecordError]]:
    """The records of the locations that both sensors' folders name, or a location that only one has."""
    (s1_root, s1), (s2_root, s2) = names.items()
    for location in sorted(s1 | s2):
        if location in s1 and location in s2:
            yield from (Item(f'{location}_{time}', (location, time)) for time in range(TIMES))
        else:
            file = Path(s1_root if location in s2 else s2_root, location)
            message = 'missing, but the other sensor has it'
            yield location, RecordError(file, 'folder', message, 'unpack both sensors in full')


def read_item(item: Item, root: str, optical: str) -> Record:
    """Reads and checks one record; raises RecordError, naming file and field, if it cannot be used.

    NaN and inf in Sentinel-1 are kept: `prepare` treats them as invalid pixels.
    """
    location, time = item.values
    s1_folder, s2_folder = (Path(root, FOLDERS[kind], location) for kind in ('S1', optical))
    s1, s2 = _images(s1_folder), _images(s2_folder)
    visit = pair(s1_folder, location, s1, s2, time, s2_folder)
    folders = {'s1': s1_folder / s1[visit.s1], 's2': s2_folder / s2[visit.s2]}
    images: dict[str, np.ndarray] = {}
    frames: dict[str, Frame] = {}  # by sensor
    with rasterio.Env(**_OPTIONS):
        for name, group in schema('1.0', optical).groups.items():
            folder, known = folders[group.modality], frames.get(group.modality)
            images[name], frames[group.modality] = _read_group(folder, group, known)
    check_decibel(folders['s1'], images['s1'])
    s1_frame, frame = frames['s1'], frames['s2']
    _check_ground(folders['s1'], s1_frame, frame)
    return {
        **images,
        **visit.fields,
        'epsg': np.int32(4326),
        'upper_left': np.array(frame[:2]),
        'pixel_size': np.array(frame[2:]) / SIZE,
        's1_upper_left': np.array(s1_frame[:2]),
    }


def _images(folder: Path) -> list[str]:
    """The names of the four images of a location."""
    try:
        with os.scandir(folder) as entries:
            folders = [entry for entry in entries if entry.is_dir()]
    except OSError as error:
        raise RecordError(folder, 'folder', f'cannot be read: {error}', AGAIN) from error
    for entry in folders:
        check_name(entry.name, folder)
        if entry.is_symlink():
            inside(folder, entry.name, folder, 'link')
    if len(folders) != TIMES:
        raise RecordError(folder, 'images', f'{len(folders)} folders, expected {TIMES}', AGAIN)
    return sorted(entry.name for entry in folders)


def _file(folder: Path, band: str) -> Path:
    return folder / f'{band.replace("B0", "B")}.tif'


def _read_group(folder: Path, group: Group, known: Frame | None) -> tuple[np.ndarray, Frame]:
    """The bands of a group as (rows, columns, bands), and where they lie, which is `known` or found here."""
    image = np.empty((*group.size, len(group.bands)), group.dtype)
    for index, band in enumerate(group.bands):
        file = _file(folder, band)
        with opened(file, band) as dataset:
            for what, actual, expected in (
                ('number of channels', dataset.count, 1),
                ('size', dataset.shape, group.size),
                ('dtype', dataset.dtypes[0], group.dtype),
            ):
                if actual != expected:
                    raise RecordError(file, f'{band} {what}', f'{actual}, expected {expected}', AGAIN)
            frame = _frame(file, band, dataset)
            image[..., index] = dataset.read(1)
        known = known or frame
        if max(abs(a - b) for a, b in zip(frame, known)) > known.width / SIZE / 100:
            text = f'left, top, width, height = {tuple(frame)}, but other bands have {tuple(known)}'
            raise RecordError(file, f'{band} position', text, AGAIN)
    assert known is not None
    return image, known


def _frame(file: Path, band: str, dataset: rasterio.DatasetReader) -> Frame:
    step = dataset.transform
    if dataset.crs is None or not dataset.crs.is_geographic or step.b or step.d or step.a <= 0 or step.e >= 0:
        message = f'CRS {dataset.crs}, geotransform {tuple(step)[:6]}, expected degrees, north up'
        raise RecordError(file, f'{band} position', message, 'this is no patch of SSL4EO-S12 v1.0')
    rows, columns = dataset.shape
    return Frame(step.c + step.a / 2, step.f + step.e / 2, step.a * columns, -step.e * rows)


def _check_ground(folder: Path, s1: Frame, s2: Frame) -> None:
    across, down = abs(s1.left - s2.left) / s2.width * SIZE, abs(s1.top - s2.top) / s2.height * SIZE
    if max(across, down) > _FAR:
        raise RecordError(
            folder,
            'position',
            f'{across * RESOLUTION:.0f} m across, {down * RESOLUTION:.0f} m down from the Sentinel-2 patch',
            'both sensors must cover the same ground; unpack the location again',
        )
