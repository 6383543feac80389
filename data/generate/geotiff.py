"""Writing GeoTIFFs as the archives hold them."""

import functools
import os
from typing import Any

import numpy as np
import rasterio
from rasterio.crs import CRS
from rasterio.transform import Affine

from ..geotiff import Place


@functools.lru_cache(maxsize=64)
def crs(epsg: int) -> CRS:
    """The reference system of an EPSG code; looking it up takes longer than writing a small file."""
    return CRS.from_epsg(epsg)


def write_band(
    file: str | os.PathLike[str], array: np.ndarray, place: Place, resolution: float, **profile: Any
) -> None:
    """Writes one band (rows, columns) as a GeoTIFF, uncompressed unless `profile` says otherwise."""
    write_bands(file, array[None], place, resolution, **profile)


def write_bands(
    file: str | os.PathLike[str], array: np.ndarray, place: Place, resolution: float, **profile: Any
) -> None:
    """Writes bands (bands, rows, columns) as one GeoTIFF, north up, upper left corner at `place`.

    `resolution`: metres a pixel; `profile`: creation options and profile fields of rasterio.
    """
    with rasterio.open(
        file,
        'w',
        driver='GTiff',
        count=array.shape[0],
        height=array.shape[1],
        width=array.shape[2],
        dtype=array.dtype,
        crs=crs(place.epsg),
        transform=Affine(resolution, 0, place.left, 0, -resolution, place.top),
        **profile,
    ) as dataset:
        dataset.write(array)
