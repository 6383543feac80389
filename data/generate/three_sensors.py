"""A user's own folders of three sensors: Sentinel-1, Sentinel-2 and an elevation model of 30 m.

One scene a file, and a table with splits and labels. `paired_folder` converts it; the images are those of the
scene of the same number in any other layout.
"""

import csv
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio

from fusmae_jax.errors import InputError

from ..geotiff import Place
from .classes import CLASSES
from .elevation import STEP, elevation
from .geotiff import write_bands
from .paired_folder import EPSG, LEFT, ROW, TOP
from .parallel import each
from .scene import Scene, SceneConfig, labels, resampled, scene

CONVERTER = 'paired_folder'  # that reads this layout
SPLITS = ('train', 'val', 'train', 'test')  # of pair i: the one at i modulo 4
TABLE = 'pairs.csv'
Writer = Callable[[Path, str, SceneConfig, Scene, Place], None]  # of the files of a scene, into a folder


def write(folder: Path, pairs: int, config: SceneConfig, workers: int = 1) -> dict[str, Any]:
    """Writes `pairs` scenes; returns the settings with which `paired_folder` reads them.

    `workers`: processes to write with.
    """
    if config.size % STEP:
        raise InputError(f'size={config.size}: must be a multiple of {STEP}, pixels of 30 m')
    return write_layout(folder, pairs, config, workers, ('s1', 's2', 'dem'), _write_scene)


def write_layout(
    folder: Path, pairs: int, config: SceneConfig, workers: int, sensors: Sequence[str], write_scene: Writer
) -> dict[str, Any]:
    """Writes the scenes of some sensors, a folder for each, and their table; see `write`."""
    if config.offset:
        raise InputError(f'offset={config.offset}: this layout has none; leave it at 0')
    for name in sensors:
        (folder / name).mkdir(parents=True)
    scene_of = functools.partial(_one, folder=folder, config=config, sensors=sensors, write_scene=write_scene)
    rows = each(scene_of, pairs, workers)
    with (folder / TABLE).open('w', newline='') as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return {
        **{f'{name}_root': str(folder / name) for name in sensors},
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


def _one(
    index: int, folder: Path, config: SceneConfig, sensors: Sequence[str], write_scene: Writer
) -> dict[str, str]:
    """Writes the files of a scene; returns its row of the table."""
    generated = scene(config, index)
    row, column = divmod(index, ROW)
    place = Place(EPSG, LEFT + column * 20 * config.size, TOP - row * 20 * config.size)
    name = f'area_{index:05d}.tif'
    write_scene(folder, name, config, generated, place)
    return {
        **dict.fromkeys(sensors, name),
        'split': SPLITS[index % len(SPLITS)],
        'labels': ';'.join(CLASSES[i].name for i in labels(generated)),
        'season': generated.season,
        'snow': str(int(generated.snow)),
    }


def write_pair(folder: Path, name: str, generated: Scene, place: Place) -> None:
    """Writes Sentinel-1 and Sentinel-2 of a scene."""
    write_file(folder / 's1' / name, generated.s1, place, 10)
    write_file(folder / 's2' / name, resampled(generated), place, 10, nodata=0)


def _write_scene(folder: Path, name: str, config: SceneConfig, generated: Scene, place: Place) -> None:
    write_pair(folder, name, generated, place)
    write_file(folder / 'dem' / name, {'elevation': elevation(config, generated)}, place, 10 * STEP)


def write_file(
    file: Path, images: dict[str, np.ndarray], place: Place, resolution: int, **profile: Any
) -> None:
    """Writes the bands of one sensor, named in the header."""
    write_bands(file, np.stack(list(images.values())), place, resolution, **profile)
    with rasterio.open(file, 'r+') as dataset:
        dataset.descriptions = tuple(images)
