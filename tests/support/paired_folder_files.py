"""Small GeoTIFFs as a user may have them."""

from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import Affine

from fusmae_jax.shipped.data.paired_folder.pairs import Archive

S2 = ('B02', 'B03', 'B04', 'B08')
LEFT, TOP = 500_000.0, 5_000_040.0
# Of the message about files that do not tell whether the offset of recent products is in their values.
NO_TAGS = 'the metadata do not say whether the 1000'


def put(
    file: Path, array, bands=(), step=10.0, epsg=32632, left=LEFT, top=TOP, tags=None, scales=(), **profile
):
    """Writes bands (bands, rows, columns) with their descriptions."""
    file.parent.mkdir(parents=True, exist_ok=True)
    values = {
        'driver': 'GTiff',
        'count': array.shape[0],
        'height': array.shape[1],
        'width': array.shape[2],
        'dtype': array.dtype,
        'crs': f'EPSG:{epsg}' if epsg else None,
        'transform': Affine(step, 0, left, 0, -step, top),
    }
    with rasterio.open(file, 'w', **(values | profile)) as dataset:
        dataset.write(array)
        dataset.descriptions = bands
        dataset.update_tags(**(tags or {}))
        if scales:
            dataset.scales, dataset.offsets = ([x] * array.shape[0] for x in scales)


def radar(size=48, seed=0, bands=2):
    """Decibels, as float32."""
    rng = np.random.default_rng(seed)
    shape = (bands, size, size) if isinstance(size, int) else (bands, *size)
    return rng.normal(-14, 3, shape).astype(np.float32)


def optical(size=48, seed=1, bands=4):
    """Digital numbers without offset, as uint16."""
    rng = np.random.default_rng(seed)
    shape = (bands, size, size) if isinstance(size, int) else (bands, *size)
    return rng.integers(200, 3000, shape).astype(np.uint16)


def pair(folder: Path, name='a', s1=None, s2=None, **both):
    """One pair of files, s1/NAME.tif and s2/NAME.tif; `s1` and `s2` are further arguments of `put`."""
    put(folder / 's1' / f'{name}.tif', **({'array': radar(), 'bands': ('VV', 'VH')} | both | (s1 or {})))
    put(folder / 's2' / f'{name}.tif', **({'array': optical(), 'bands': S2} | both | (s2 or {})))


def archive(folder: Path, **changes) -> Archive:
    """The settings for what `pair` writes, in tiles of 24 pixels."""
    values = {
        's1_root': str(folder / 's1'),
        's2_root': str(folder / 's2'),
        's1_unit': 'dB',
        's2_unit': 'DN',
        's2_offset': '0',
        'tile': 24,
    }
    return Archive(**(values | changes))
