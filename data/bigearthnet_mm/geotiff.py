"""Reading the single-band GeoTIFFs of a patch."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import rasterio
import rasterio.errors

from data.records import RecordError
from fusmae_jax.input.contract import Group

_OPTIONS = {
    'GDAL_DISABLE_READDIR_ON_OPEN': 'EMPTY_DIR',  # no search for side files, which this archive does not have
    'GTIFF_SRS_SOURCE': 'GEOKEYS',  # no look-up of the full definition of the UTM zone; a third faster
}


class Place(NamedTuple):
    """Where an image lies on the ground."""

    epsg: int
    left: float  # easting of the upper left corner, metres
    top: float  # northing of the upper left corner, metres


def read_group(folder: Path, group: Group) -> tuple[np.ndarray, Place]:
    """The bands of one group as (rows, columns, bands) and their common place.

    Raises RecordError for a band that is missing, cannot be read in full, has another size, type, number
    of channels or pixel size than the group says, or lies elsewhere than the first band.
    """
    image = np.empty((*group.size, len(group.bands)), group.dtype)
    places: list[Place] = []
    with rasterio.Env(**_OPTIONS):
        for index, band in enumerate(group.bands):
            file = folder / f'{folder.name}_{band}.tif'
            image[..., index], place = _read_band(file, band, group)
            if places and place != places[0]:
                raise RecordError(
                    file,
                    f'{band} position',
                    f'EPSG, left, top = {tuple(place)}, but {group.bands[0]} has {tuple(places[0])}',
                    'all bands of a patch must cover the same ground; unpack the patch again',
                )
            places.append(place)
    return image, places[0]


def _read_band(file: Path, band: str, group: Group) -> tuple[np.ndarray, Place]:
    if not file.is_file():
        raise RecordError(file, band, 'the band file is missing', 'unpack the patch again')
    try:
        with rasterio.open(file, driver='GTiff') as dataset:
            _check_layout(file, band, group, dataset)
            step, crs = dataset.transform, dataset.crs
            found = (step.a, step.b, step.d, step.e)
            if found != (group.resolution, 0.0, 0.0, -group.resolution):
                raise RecordError(
                    file,
                    f'{band} pixel size',
                    f'geotransform steps {found}, expected {group.resolution:g} m, north up',
                    'this is not a patch of this archive',
                )
            epsg = crs.to_epsg() if crs else None
            if epsg is None:
                raise RecordError(file, f'{band} CRS', 'none with an EPSG code', 'unpack the patch again')
            return dataset.read(1), Place(epsg, step.c, step.f)
    except rasterio.errors.RasterioError as error:
        raise RecordError(
            file,
            band,
            f'cannot be read in full ({file.stat().st_size:,} bytes): {error}',
            'the GeoTIFF is truncated or damaged; unpack the patch again',
        ) from error


def _check_layout(file: Path, band: str, group: Group, dataset: rasterio.DatasetReader) -> None:
    for field, found, expected in (
        ('number of channels', dataset.count, 1),
        ('size', dataset.shape, group.size),
        ('dtype', dataset.dtypes[0], group.dtype),
    ):
        if found != expected:
            raise RecordError(
                file,
                f'{band} {field}',
                f'{found}, expected {expected}',
                'records keep what the satellite gave: do not resample or cast; unpack the patch again',
            )
