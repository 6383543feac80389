"""BigEarthNet-MM v1 as published: two folders of patches, a GeoTIFF a band, a JSON file a patch.

The quirks are there too: `lly` in Sentinel-1 coordinates, a T in one time and a blank in the other, and
Sentinel-2 names of one tile whose hour lost its leading zero, some with 60 seconds or more. Cell columns
start at 100, where the published archive has none, so no name collides with a published one.
"""

import datetime
import functools
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fusmae_jax.errors import InputError

from ..bigearthnet_mm.schema import EXTENT
from ..geotiff import Place
from .classes import CLASSES
from .geotiff import crs, write_band
from .parallel import each
from .scene import RESOLUTION, Scene, SceneConfig, labels, scene

S1_ROOT, S2_ROOT, LISTS = 'BigEarthNet-S1-v1.0', 'BigEarthNet-v1.0', 'splits'
COLUMNS, ROWS = range(100, 540), range(91)


class Tile(NamedTuple):
    """A tile of the Sentinel-2 grid and when the satellites pass: Sentinel-1 descending, then ascending."""

    name: str
    place: Place  # of its upper left corner
    s2_time: str
    s2_stamp: str  # the same as names write it
    s2_orbit: int
    s1_times: tuple[str, str]


TILES = (
    Tile('29ULU', Place(32629, 300000, 5900040), '11:33:21', '113321', 80, ('06:47:24', '18:14:58')),
    Tile('33UUP', Place(32633, 300000, 5400000), '10:10:31', '101031', 22, ('05:09:02', '16:50:43')),
    Tile('35VLK', Place(32635, 300000, 7000020), '09:41:56', '94161', 36, ('04:32:53', '15:48:20')),
)
# The archive was taken from June 2017 to May 2018; a season is used for 75 days from here on.
_FIRST_DAY = {
    'Summer': datetime.date(2017, 6, 13),
    'Fall': datetime.date(2017, 9, 1),
    'Winter': datetime.date(2017, 12, 1),
    'Spring': datetime.date(2018, 3, 1),
}


class Patch(NamedTuple):
    """Where and when a pair was taken, and its names."""

    tile: Tile
    place: Place
    s1_name: str
    s2_name: str
    s1_scene: str
    s2_scene: str
    s1_time: datetime.datetime
    s2_time: datetime.datetime


def write(folder: Path, pairs: int, config: SceneConfig, workers: int = 1) -> dict[str, Any]:
    """Writes an archive of generated pairs; returns the settings with which its builder reads it.

    Scene i becomes the patch `patch(i, season)`. No official list knows these names, so lists of their own
    come with them: half of the pairs for train, a quarter each for val and test, drawn at random. Fewer
    than four pairs have none. `workers`: processes to write with.
    """
    most = len(TILES) * len(COLUMNS) * len(ROWS)
    if not 0 < pairs <= most:
        raise InputError(f'pairs={pairs}: must be between 1 and {most:,}, the number of grid cells')
    if (config.size, config.level) != (EXTENT // 10, 'L2A'):
        raise InputError(
            f'size={config.size}, level={config.level}: the patches of BigEarthNet-MM are L2A of 120 pixels'
        )
    each(functools.partial(_write_pair, folder=folder, config=config), pairs, workers)
    roots = {'s1_root': str(folder / S1_ROOT), 's2_root': str(folder / S2_ROOT)}
    if pairs < 4:
        return {**roots, 'splits': 'one'}
    return {**roots, 'splits': 'lists', 'split_lists': _write_lists(folder, config.seed)}


def patch(index: int, season: str) -> Patch:
    """The grid cell, the times and the names of pair `index`; no two pairs share ground or names."""
    number, which = divmod(index, len(TILES))
    tile = TILES[which]
    column, row = COLUMNS[number // len(ROWS)], ROWS[number % len(ROWS)]
    day = _FIRST_DAY[season] + datetime.timedelta(7 * index % 75)
    s1_day = day + datetime.timedelta((-1, 0, 0, 2)[index // 2 % 4])
    s2_time = datetime.datetime.combine(day, datetime.time.fromisoformat(tile.s2_time))
    s1_time = datetime.datetime.combine(s1_day, datetime.time.fromisoformat(tile.s1_times[number % 2]))
    s1, s2 = ('S1A', 'S1B')[number // 2 % 2], ('S2A', 'S2B')[number // 4 % 2]
    stamp, s2_stamp = s1_time.strftime('%Y%m%dT%H%M%S'), f'{day:%Y%m%d}T{tile.s2_stamp}'
    end = (s1_time + datetime.timedelta(seconds=25)).strftime('%Y%m%dT%H%M%S')
    orbit = 10_000 + (s1_day - datetime.date(2017, 1, 1)).days * 15
    return Patch(
        tile=tile,
        place=Place(tile.place.epsg, tile.place.left + column * EXTENT, tile.place.top - row * EXTENT),
        s1_name=f'{s1}_IW_GRDH_1SDV_{stamp}_{tile.name}_{column}_{row}',
        s2_name=f'{s2}_MSIL2A_{s2_stamp}_{column}_{row}',
        s1_scene=f'{s1}_IW_GRDH_1SDV_{stamp}_{end}_{orbit:06d}_{orbit:06X}_{orbit % 0xFFFF:04X}',
        s2_scene=f'{s2}_MSIL1C_{s2_stamp}_N0206_R{tile.s2_orbit:03d}_T{tile.name}_{day:%Y%m%d}T120000.SAFE',
        s1_time=s1_time,
        s2_time=s2_time,
    )


def _write_pair(index: int, folder: Path, config: SceneConfig) -> None:
    generated = scene(config, index)
    about = patch(index, generated.season)
    s1 = {
        'corresponding_s2_patch': about.s2_name,
        'scene_source': about.s1_scene,
        'acquisition_time': about.s1_time.isoformat(),
    }
    s2 = {'tile_source': about.s2_scene, 'acquisition_date': about.s2_time.isoformat(' ')}
    _write_patch(folder / S1_ROOT / about.s1_name, generated, about, 'lly', s1)
    _write_patch(folder / S2_ROOT / about.s2_name, generated, about, 'lry', s2)


def _write_patch(folder: Path, generated: Scene, about: Patch, lower: str, others: dict[str, Any]) -> None:
    folder.mkdir(parents=True)
    images = generated.s1 if lower == 'lly' else generated.s2
    for band, image in images.items():
        resolution = 10 if band in generated.s1 else RESOLUTION[band]
        write_band(folder / f'{folder.name}_{band}.tif', image, about.place, resolution)
    left, top = int(about.place.left), int(about.place.top)
    values = {
        'labels': [CLASSES[i].corine for i in labels(generated)],
        'coordinates': {'ulx': left, 'uly': top, 'lrx': left + EXTENT, lower: top - EXTENT},
        'projection': _wkt(about.place.epsg),
        **others,
    }
    (folder / f'{folder.name}_labels_metadata.json').write_text(json.dumps(values))


@functools.lru_cache
def _wkt(epsg: int) -> str:
    """The reference system as the JSON files spell it: with the axes of the geographic system."""
    geographic = 'AUTHORITY["EPSG","4326"]'
    axes = 'AXIS["Latitude",NORTH],AXIS["Longitude",EAST],'
    return crs(epsg).to_wkt().replace(geographic, axes + geographic)


def _write_lists(folder: Path, seed: int) -> tuple[str, ...]:
    names = np.random.default_rng(seed).permutation(sorted(p.name for p in (folder / S2_ROOT).iterdir()))
    half, rest = len(names) // 2, len(names) * 3 // 4
    (folder / LISTS).mkdir()
    entries = []
    for split, part in (('train', names[:half]), ('val', names[half:rest]), ('test', names[rest:])):
        file = folder / LISTS / f'{split}.csv'
        file.write_text(''.join(f'{name}\n' for name in part))
        entries.append(f'{split}={file}')
    return tuple(entries)
