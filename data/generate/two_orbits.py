"""A user's own folders of three sensors: Sentinel-1 of ascending and of descending passes, and Sentinel-2.

One scene a file, and a table with splits and labels. `paired_folder` converts it; ascending images and
optical ones are those of the scene of the same number in any other layout. Descending passes see the same
ground in the morning, with moisture, texture and speckle of their own, and dew on what grows.
"""

import csv
import functools
from pathlib import Path
from typing import Any

import numpy as np

from fusmae_jax.errors import InputError

from ..geotiff import Place
from . import radar
from .classes import CLASSES
from .paired_folder import EPSG, LEFT, ROW, TOP
from .parallel import each
from .scene import Scene, SceneConfig, labels, resampled, scene
from .three_sensors import SPLITS, TABLE, write_file

CONVERTER = 'paired_folder'  # that reads this layout
DEW = {'VV': np.float32(1.2), 'VH': np.float32(0.5)}  # dB that a morning adds
_STREAM = 21  # of random numbers, apart from those of a scene
_SENSORS = ('s1', 's1_desc', 's2')


def write(folder: Path, pairs: int, config: SceneConfig, workers: int = 1) -> dict[str, Any]:
    """Writes `pairs` scenes; returns the settings with which `paired_folder` reads them.

    `workers`: processes to write with.
    """
    if config.offset:
        raise InputError(f'offset={config.offset}: this layout has none; leave it at 0')
    for name in _SENSORS:
        (folder / name).mkdir(parents=True)
    rows = each(functools.partial(_write_scene, folder=folder, config=config), pairs, workers)
    with (folder / TABLE).open('w', newline='') as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return {
        **{f'{name}_root': str(folder / name) for name in _SENSORS},
        's1_unit': 'dB',
        's2_unit': 'DN',
        's2_offset': '0',
        's1_calibration': 'sigma0',
        's1_terrain_correction': 'geometric',
        's2_level': config.level,
        'tile': config.size,
        'table': str(folder / TABLE),
        'classes': tuple(cover.name for cover in CLASSES),
    }


def descending(config: SceneConfig, generated: Scene) -> dict[str, np.ndarray]:
    """VV and VH of the descending pass over a scene, float32 dB."""
    rng = np.random.default_rng((config.seed, generated.index, 0, _STREAM))
    image = radar.backscatter(rng, generated.cover, config.looks, generated.snow)
    return {band: values + DEW[band] for band, values in image.items()}


def _write_scene(index: int, folder: Path, config: SceneConfig) -> dict[str, str]:
    """Writes the three files of a scene; returns its row of the table."""
    generated = scene(config, index)
    row, column = divmod(index, ROW)
    place = Place(EPSG, LEFT + column * 20 * config.size, TOP - row * 20 * config.size)
    name = f'area_{index:05d}.tif'
    write_file(folder / 's1' / name, generated.s1, place, 10)
    write_file(folder / 's1_desc' / name, descending(config, generated), place, 10)
    write_file(folder / 's2' / name, resampled(generated), place, 10, nodata=0)
    return {
        **dict.fromkeys(_SENSORS, name),
        'split': SPLITS[index % len(SPLITS)],
        'labels': ';'.join(CLASSES[i].name for i in labels(generated)),
        'season': generated.season,
        'snow': str(int(generated.snow)),
    }
