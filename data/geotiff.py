"""Reading the GeoTIFFs of a patch: one band a file, or all bands of a sensor in one."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import rasterio

from fusmae_jax.geo import UnusableError, raster
from fusmae_jax.geo.grid import Place, grid_of
from fusmae_jax.input.contract import Group

from .records import RecordError

_AGAIN = 'unpack the patch again'


def read_group(files: Sequence[Path], group: Group) -> tuple[np.ndarray, Place]:
    """The bands of one group, a file each, as (rows, columns, bands) and their common place.

    Raises RecordError for a band that is missing, cannot be read in full, has another size, type, number
    of channels or pixel size than the group says, or lies elsewhere than the first band.
    """
    image = np.empty((*group.size, len(group.bands)), group.dtype)
    places: list[Place] = []
    for index, (band, file) in enumerate(zip(group.bands, files, strict=True)):
        with opened(file, band) as dataset:
            _check_layout(file, band, 1, group, dataset)
            place = place_of(file, band, dataset, group.resolution)
            image[..., index] = dataset.read(1)
        if places and place != places[0]:
            raise RecordError(
                file,
                f'{band} position',
                f'EPSG, left, top = {tuple(place)}, but {group.bands[0]} has {tuple(places[0])}',
                'all bands of a patch must cover the same ground; unpack the patch again',
            )
        places.append(place)
    return image, places[0]


def read_stack(file: Path, group: Group) -> tuple[np.ndarray, Place]:
    """All bands of one file, in the order of the group's bands, as (rows, columns, bands); and its place.

    Raises RecordError as `read_group` does.
    """
    with opened(file, group.modality) as dataset:
        image = stack_of(file, group, dataset)
        return image, place_of(file, group.modality, dataset, group.resolution)


def stack_of(file: Path, group: Group, dataset: rasterio.DatasetReader) -> np.ndarray:
    """All bands of an open file as (rows, columns, bands); raises RecordError as `read_group` does.

    `file`: what an error calls it.
    """
    _check_layout(file, group.modality, len(group.bands), group, dataset)
    # Read into place: transposing afterwards would take as long again.
    image = np.empty((*group.size, len(group.bands)), group.dtype)
    dataset.read(out=image.transpose(2, 0, 1))
    return image


@contextmanager
def opened(file: Path, field: str, advice: str = _AGAIN) -> Iterator[rasterio.DatasetReader]:
    """An open GeoTIFF of a published archive; whatever goes wrong while it is read becomes a RecordError."""
    with refused(file, field, advice), raster.opened(file, **raster.PUBLISHED, **raster.KEYS) as dataset:
        yield dataset


@contextmanager
def refused(file: Path, field: str, advice: str) -> Iterator[None]:
    """What cannot be used becomes a RecordError; `advice` is what to do about a file that cannot be read."""
    try:
        yield
    except UnusableError as error:
        remedies = (error.advice_for(file), '' if error.field else advice)
        where = f'{field} {error.field}'.strip()
        raise RecordError(file, where, error.found, '; '.join(filter(None, remedies))) from error


def place_of(file: Path, field: str, dataset: rasterio.DatasetReader, resolution: float) -> Place:
    """Where an open image lies; raises RecordError unless it is north up, of that resolution, in UTM."""
    grid, step = grid_of(dataset), dataset.transform
    steps = (step.a, step.b, step.d, step.e)
    if steps != (resolution, 0.0, 0.0, -resolution):
        raise RecordError(
            file,
            f'{field} pixel size',
            f'geotransform steps {steps}, expected {resolution:g} m, north up',
            'this is not a patch of this archive',
        )
    # A metre of other systems need not be a metre of ground.
    if grid.epsg is None or not (32601 <= grid.epsg <= 32660 or 32701 <= grid.epsg <= 32760):
        found_text = (
            'none with an EPSG code' if grid.epsg is None else f'EPSG:{grid.epsg}, expected a UTM zone'
        )
        raise RecordError(file, f'{field} CRS', found_text, _AGAIN)
    return Place(grid.epsg, grid.left, grid.top)


def _check_layout(
    file: Path, field: str, channels: int, group: Group, dataset: rasterio.DatasetReader
) -> None:
    for what, actual, expected in (
        ('number of channels', dataset.count, channels),
        ('size', dataset.shape, group.size),
        ('dtype', dataset.dtypes[0], group.dtype),
    ):
        if actual != expected:
            raise RecordError(
                file,
                f'{field} {what}',
                f'{actual}, expected {expected}',
                'records keep what the satellite gave: do not resample or cast; unpack the patch again',
            )
