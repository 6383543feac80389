"""A user's own folders: GeoTIFFs of several sizes, all bands of a sensor in one file, named in its header."""

import csv
import datetime
import functools
from pathlib import Path
from typing import Any, Literal

import numpy as np
import rasterio

from fusmae_jax.errors import InputError

from ..geotiff import Place
from ..paired_folder.settings import Archive
from .classes import CLASSES
from .geotiff import write_bands
from .parallel import each
from .scene import RESOLUTION, Scene, SceneConfig, labels, resampled, scene

# Scenes down and across in one file, in turn; the last kind is cut, so that a rest is left at its edges.
SHAPES = ((1, 1), (1, 2), (2, 1))
CUT = 0.1  # of a scene
EPSG = 32632
LEFT, TOP, ROW = 300_000.0, 5_900_040.0, 40  # corner of the first file, and files in a row from west to east
FIRST_DAY = datetime.datetime(2024, 5, 1, 10, 20, 31, tzinfo=datetime.UTC)

OFFSET_TAGS = {'L2A': 'BOA_ADD_OFFSET', 'L1C': 'RADIO_ADD_OFFSET'}

FolderKind = Literal['folders', 'table', 'parts']


def examples(folder: Path) -> Archive:
    """Three generated pairs in a folder, with a table of labels and splits."""
    return Archive(**write(folder, 3, SceneConfig(), kind='table'))


def write(
    folder: Path,
    pairs: int,
    config: SceneConfig,
    kind: FolderKind = 'folders',
    workers: int = 1,
    **profile: Any,
) -> dict[str, Any]:
    """Writes `pairs` pairs of files; returns the settings with which the builder reads them.

    Args:
        folder: gets `s1/area_0000.tif` and `s2/area_0000.tif`; with `parts` Sentinel-2 keeps its native
            grids in `area_0000_10m.tif`, `_20m` and `_60m`.
        pairs: pairs of files; a file holds one or two scenes.
        config: everything that decides the pixels. An offset stands in the metadata, as in products.
        kind: `table` adds `pairs.csv` with labels, splits, times and the season.
        workers: processes to write with.
        profile: creation options of the GeoTIFFs.
    """
    if kind == 'parts' and config.size % 6:
        raise InputError(f'size={config.size}: files of 60 m need a multiple of 6 pixels of 10 m')
    for name in ('s1', 's2'):
        (folder / name).mkdir(parents=True, exist_ok=True)
    write_pair = functools.partial(_write_pair, folder=folder, config=config, kind=kind, profile=profile)
    rows = each(write_pair, pairs, workers)
    settings: dict[str, Any] = {
        's1_root': str(folder / 's1'),
        's2_root': str(folder / 's2'),
        's1_unit': 'dB',
        's2_unit': 'DN',
        's1_calibration': 'sigma0',
        's1_terrain_correction': 'geometric',
        's2_level': config.level,
        'tile': config.size,
    }
    if kind == 'parts':
        settings['s2_parts'] = ('_10m', '_20m', '_60m')
    if kind == 'table':
        settings['table'] = str(folder / 'pairs.csv')
        with (folder / 'pairs.csv').open('w', newline='') as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return settings


def _write_pair(
    index: int, folder: Path, config: SceneConfig, kind: FolderKind, profile: dict[str, Any]
) -> dict[str, str]:
    """Writes the files of one pair; returns its row of the table."""
    cycle, number = divmod(index, len(SHAPES))
    down, across = SHAPES[number]
    first = cycle * sum(a * b for a, b in SHAPES) + sum(a * b for a, b in SHAPES[:number])
    scenes = [scene(config, first + i) for i in range(down * across)]
    place = Place(EPSG, LEFT + index % ROW * 20 * config.size, TOP - index // ROW * 20 * config.size)
    name = f'area_{index:04d}'
    s1 = [generated.s1 for generated in scenes]
    _write_file(folder / 's1' / f'{name}.tif', s1, number, 10, place, {}, profile)
    tags = {'PROCESSING_BASELINE': '05.10' if config.offset else '02.14'}
    if config.offset:
        tags[OFFSET_TAGS[config.level]] = str(-config.offset)
    for resolution in (10, 20, 60) if kind == 'parts' else (10,):
        s2 = [_optical(generated, resolution, kind) for generated in scenes]
        end = f'_{resolution}m' if kind == 'parts' else ''
        _write_file(
            folder / 's2' / f'{name}{end}.tif', s2, number, resolution, place, tags, {'nodata': 0, **profile}
        )
    time = FIRST_DAY + datetime.timedelta(days=index)
    return {
        's1': f'{name}.tif',
        's2': f'{name}.tif',
        'split': 'val' if index % 4 == 2 else 'train',
        'labels': ';'.join(sorted({CLASSES[i].name for generated in scenes for i in labels(generated)})),
        's1_time': (time - datetime.timedelta(hours=5)).isoformat(),
        's2_time': time.isoformat(),
        'season': scenes[0].season,
    }


def _optical(generated: Scene, resolution: int, kind: FolderKind) -> dict[str, np.ndarray]:
    if kind != 'parts':
        return resampled(generated, resolution)
    return {band: image for band, image in generated.s2.items() if RESOLUTION.get(band, 20) == resolution}


def _write_file(
    file: Path,
    images: list[dict[str, np.ndarray]],
    number: int,
    resolution: int,
    place: Place,
    tags: dict[str, str],
    profile: dict[str, Any],
) -> None:
    """Writes scenes side by side, as `SHAPES[number]` says, with the names of the bands in the header."""
    down, across = SHAPES[number]
    stacks = [np.stack(list(image.values())) for image in images]
    whole = np.concatenate(
        [np.concatenate(stacks[row * across : (row + 1) * across], axis=2) for row in range(down)], axis=1
    )
    if number == len(SHAPES) - 1:
        # In pixels of 60 m, so that all resolutions are cut at the same place.
        less = int(CUT * whole.shape[2] * resolution / 60) * 60 // resolution
        whole = whole[:, : whole.shape[1] - less]
    write_bands(file, whole, place, resolution, **profile)
    with rasterio.open(file, 'r+') as dataset:
        dataset.descriptions = tuple(images[0])
        dataset.update_tags(**tags)
