"""A user's own folders of three sensors: Sentinel-1 of ascending and of descending passes, and Sentinel-2.

One scene a file, and a table with splits and labels. `paired_folder` converts it; ascending images and
optical ones are those of the scene of the same number in any other layout. Descending passes see the same
ground in the morning, with moisture, texture and speckle of their own, and dew on what grows.
"""

from pathlib import Path
from typing import Any

import numpy as np

from ..geotiff import Place
from . import radar
from .scene import Scene, SceneConfig
from .three_sensors import write_file, write_layout, write_pair

CONVERTER = 'paired_folder'  # that reads this layout
DEW = {'VV': np.float32(1.2), 'VH': np.float32(0.5)}  # dB that a morning adds
_STREAM = 21  # of random numbers, apart from those of a scene
_SENSORS = ('s1', 's1_desc', 's2')


def write(folder: Path, pairs: int, config: SceneConfig, workers: int = 1) -> dict[str, Any]:
    """Writes `pairs` scenes; returns the settings with which `paired_folder` reads them.

    `workers`: processes to write with.
    """
    return write_layout(folder, pairs, config, workers, _SENSORS, _write_scene)


def descending(config: SceneConfig, generated: Scene) -> dict[str, np.ndarray]:
    """VV and VH of the descending pass over a scene, float32 dB."""
    rng = np.random.default_rng((config.seed, generated.index, 0, _STREAM))
    image = radar.backscatter(rng, generated.cover, config.looks, generated.snow)
    return {band: values + DEW[band] for band, values in image.items()}


def _write_scene(folder: Path, name: str, config: SceneConfig, generated: Scene, place: Place) -> None:
    write_pair(folder, name, generated, place)
    write_file(folder / 's1_desc' / name, descending(config, generated), place, 10)
