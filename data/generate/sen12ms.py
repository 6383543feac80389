"""SEN12MS as published: four season folders, a folder for each scene and image, a GeoTIFF for each image.

A triplet lies in the season of its scene. Of ten triplets one lies in a hold-out scene, one in a validation
scene of the authors, and eight elsewhere. Land cover has the IGBP class of every 10 m pixel in layer 1 and
LCCS codes that go with it in the others; the published maps are 500 m MODIS pixels.
"""

import functools
from pathlib import Path

import numpy as np

from fusmae_jax.errors import InputError

from ..geotiff import Place
from ..sen12ms.images import KINDS, RESOLUTION, SIZE, Triplet
from ..sen12ms.scenes import HOLD_OUT, SEASONS, VALIDATION
from ..sen12ms.schema import GROUPS
from .classes import CLASSES
from .geotiff import write_bands
from .parallel import each
from .scene import SceneConfig, resampled, scene

MOST = 50_000  # triplets that have ground of their own
_FOLDERS = {season: folder for folder, season in SEASONS.items()}
_BLOCK = 80  # consecutive triplets that share their scenes
_EXTENT = SIZE[0] * RESOLUTION  # metres

# IGBP class -> LCCS codes of land cover, land use and surface hydrology.
_LCCS = {
    1: (11, 10, 10),
    4: (14, 10, 10),
    5: (15, 10, 10),
    7: (43, 40, 40),
    8: (21, 20, 20),
    9: (22, 20, 20),
    10: (31, 30, 30),
    11: (31, 30, 50),
    12: (31, 36, 30),
    13: (31, 9, 30),
    14: (31, 35, 30),
    16: (1, 1, 1),
    17: (3, 3, 3),
}
_LAYERS = np.array([(c.igbp, *_LCCS[c.igbp]) for c in CLASSES], np.uint8).T  # (layers, classes)


def write(folder: Path, pairs: int, config: SceneConfig, workers: int = 1) -> dict[str, str]:
    """Writes an archive of generated triplets; returns the settings with which its builder reads it.

    Scene i becomes the triplet `triplet(i, season)`. `workers`: processes to write with.
    """
    if not 0 < pairs <= MOST:
        raise InputError(f'pairs={pairs}: must be between 1 and {MOST:,}')
    if ((config.size, config.size), config.level, config.offset) != (SIZE, 'L1C', 0):
        raise InputError(
            f'size={config.size}, level={config.level}, offset={config.offset}: the patches of SEN12MS are '
            'L1C of 256 pixels without offset'
        )
    each(functools.partial(_write_triplet, folder=folder, config=config), pairs, workers)
    return {'root': str(folder), 'splits': 'official' if pairs > 2 else 'one'}


def triplet(index: int, season: str) -> Triplet:
    """The scene and the number of triplet `index`; no two triplets have the same name."""
    folder = _FOLDERS[season]
    listed = {*HOLD_OUT[folder], *VALIDATION[folder]}
    others = tuple(number for number in range(1, 41) if number not in listed)
    numbers = {1: HOLD_OUT[folder], 2: VALIDATION[folder]}.get(index % 10, others)
    return Triplet(folder, numbers[index // _BLOCK % len(numbers)], 30 + index)


def place(index: int, member: Triplet) -> Place:
    """Where triplet `index` lies: a strip of a UTM zone for each scene, a cell of it for each triplet."""
    strip = 160 * list(SEASONS).index(member.folder) + member.scene
    column, zone = divmod(strip, 120)
    row, cell = divmod(index, 20)
    return Place(
        32601 + zone if zone < 60 else 32701 + zone - 60,
        200_000.3389928384 + (20 * column + cell) * _EXTENT,
        7_000_000.836060452 - row * _EXTENT,
    )


def _write_triplet(index: int, folder: Path, config: SceneConfig) -> None:
    generated = scene(config, index)
    bands = resampled(generated) | generated.s1
    member = triplet(index, generated.season)
    images = {
        's1': np.stack([bands[band] for band in GROUPS['s1'].bands]),
        's2': np.stack([bands[band] for band in GROUPS['s2'].bands]),
        'lc': _LAYERS[:, generated.cover],
    }
    for kind in KINDS:
        file = member.file(folder, kind)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_bands(file, images[kind], place(index, member), RESOLUTION)
