"""Sen1Floods11's hand-labelled chips as published: a folder a kind of file, and the four lists.

Of ten chips one lies in Bolivia, which is a split of its own; of the others two in validation, two in test.
Water is the water of the scene, and the labels have a border without any. Degrees, types and tags
are those of the real files; the ground is as generated, so that it does not look flooded.
"""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.transform import Affine

from fusmae_jax.errors import InputError

from ..sen1floods11.chips import LIST_FOLDER
from ..sen1floods11.images import DEGREES, KINDS, Chip, Corner
from ..sen1floods11.schema import EVENTS, LISTS, NO_LABEL, S1_BANDS, S2_BANDS, SIZE, SPLITS, STEP
from .classes import CLASSES
from .geotiff import crs
from .parallel import each
from .scene import SceneConfig, resampled, scene

MOST = 10_000  # chips that have ground of their own
BORDER = 16  # pixels without a label at the upper edge
WATER = 17  # IGBP
_OTHERS = [name for name in EVENTS if name != 'Bolivia']
_LISTED = {'bolivia': (9,), 'valid': (1, 4), 'test': (2, 5)}  # the last digits of their chips


def write(folder: Path, pairs: int, config: SceneConfig, workers: int = 1) -> dict[str, str]:
    """Writes an archive of generated chips; returns the settings with which its builder reads it.

    `workers`: processes to write with.
    """
    if not 0 < pairs <= MOST:
        raise InputError(f'pairs={pairs}: must be between 1 and {MOST:,}')
    if (config.size, config.level, config.offset) != (SIZE, 'L1C', 0):
        raise InputError(
            f'size={config.size}, level={config.level}, offset={config.offset}: the chips of Sen1Floods11 '
            f'are L1C of {SIZE} pixels without offset'
        )
    each(functools.partial(_write_chip, folder=folder, config=config), pairs, workers)
    (folder / LIST_FOLDER).mkdir(parents=True)
    chips = [chip(index) for index in range(pairs)]
    for name, file in LISTS.items():
        rows = [
            f'{c.scene}_{KINDS["s1"]}.tif,{c.scene}_{KINDS["label"]}.tif\n'
            for c in chips
            if c.split == SPLITS[name]
        ]
        (folder / LIST_FOLDER / file).write_text(''.join(rows))
    return {'root': str(folder), 'splits': 'official' if pairs >= 10 else 'one'}


def chip(index: int) -> Chip:
    """Event, number and split of chip `index`."""
    name = next((name for name, digits in _LISTED.items() if index % 10 in digits), 'train')
    event = 'Bolivia' if name == 'bolivia' else _OTHERS[index % len(_OTHERS)]
    return Chip(event, str(100_000 + index), split=SPLITS[name])


def place(index: int) -> Corner:
    """Where chip `index` lies: a grid of chips in the tropics, each on ground of its own."""
    row, column = divmod(index, 100)
    return Corner(-60 + 1.5 * column * SIZE * STEP, 5 - 1.5 * row * SIZE * STEP)


def _write_chip(index: int, folder: Path, config: SceneConfig) -> None:
    generated = scene(config, index)
    bands = resampled(generated)
    water = np.array([c.igbp == WATER for c in CLASSES])[generated.cover].astype(np.int16)
    water[:BORDER] = NO_LABEL
    images = {
        's1': np.stack([generated.s1[band] for band in S1_BANDS]),
        's2': np.stack([bands[band] for band in S2_BANDS]).clip(max=2**15 - 1).astype(np.int16),
        'label': water[None],
    }
    profiles: dict[str, dict[str, Any]] = {'s1': {'nodata': np.nan}, 's2': {'nodata': 0}, 'label': {}}
    names = {'s1': S1_BANDS, 's2': [band.replace('B0', 'B') for band in S2_BANDS], 'label': ()}
    corner = place(index)
    for kind, image in images.items():
        file = chip(index).file(folder, kind)
        file.parent.mkdir(parents=True, exist_ok=True)
        with rasterio.open(
            file,
            'w',
            driver='GTiff',
            count=len(image),
            height=SIZE,
            width=SIZE,
            dtype=image.dtype,
            crs=crs(DEGREES),
            transform=Affine(STEP, 0, corner.left, 0, -STEP, corner.top),
            **profiles[kind],
        ) as dataset:
            dataset.write(image)
            dataset.descriptions = tuple(names[kind]) or (None,)
