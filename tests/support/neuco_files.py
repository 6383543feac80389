"""Files of the layout of SSL4EO-S12-downstream, with made-up images."""

import zipfile
from pathlib import Path

import numpy as np
import zarr
from zarr.storage import ZipStore

from fusmae_jax.shipped.data.ssl4eo_s12.schema import S2_BANDS, SIZE, TIMES
from tests.support.embed_fixtures import BANDS, image

FOLDERS = {'s1': 's1', 's2': 's2l2a'}


def images(number: int) -> dict[str, np.ndarray]:
    """The four seasons of a location, sensor -> (seasons, bands, rows, columns), as they are stored."""
    result = {}
    for sensor, bands in (('s1', ('VV', 'VH')), ('s2', S2_BANDS['S2L2A'])):
        order = [BANDS[sensor].index(band) for band in bands]
        seasons = [image(sensor, SIZE, SIZE, seed=10 * number + season) for season in range(TIMES)]
        stack = np.moveaxis(np.stack(seasons)[..., order], -1, 1)
        result[sensor] = stack.astype(np.float16 if sensor == 's1' else np.int16)
    return result


def write(file: Path, values: np.ndarray, bands=None, **codecs) -> None:
    """A store of one location with the array `bands`, and their names if they are given."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with ZipStore(file, mode='w', compression=zipfile.ZIP_STORED) as store:
        group = zarr.create_group(store, zarr_format=2)
        chunks = (1, 1, *values.shape[1:])
        array = group.create_array(
            'bands', shape=(1, *values.shape), chunks=chunks, dtype=values.dtype, fill_value=None, **codecs
        )
        array[...] = values[None]
        if bands:
            names = np.array(bands)
            group.create_array('band', shape=names.shape, dtype=names.dtype)[...] = names


def write_archive(folder: Path, locations: dict[str, dict[str, np.ndarray]]) -> Path:
    """The files of locations, name -> sensor -> images; returns the folder for --data."""
    for name, sensors in locations.items():
        for sensor, values in sensors.items():
            write(folder / 'data' / FOLDERS[sensor] / 'part-000000' / f'{name}.zarr.zip', values)
    return folder
