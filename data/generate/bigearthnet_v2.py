"""BigEarthNet v2 as published: folders of products, in them patches, and two metadata tables.

Pair i has the ground, the times and the Sentinel-1 name of pair i of the generated version 1, which it names
as its twin; written with one configuration, the two archives show the same scenes.
"""

import functools
from pathlib import Path
from typing import Any

import numpy as np

from fusmae_jax.errors import InputError

from ..bigearthnet_mm.labels import CLASSES_19, CLASSES_43, multi_hot
from ..bigearthnet_mm.schema import EXTENT
from ..bigearthnet_v2.labels import CODES_43, UNLABELLED
from ..bigearthnet_v2.pairs import MAPS, SNOW_CLOUD
from ..bigearthnet_v2.table import COLUMNS
from ..geotiff import Place
from . import bigearthnet_mm as v1
from .classes import CLASSES
from .geotiff import write_band
from .parallel import each
from .scene import RESOLUTION, Scene, SceneConfig, labels, scene

S1_ROOT, S2_ROOT, METADATA = 'BigEarthNet-S1', 'BigEarthNet-S2', 'metadata.parquet'
COUNTRIES = {'29ULU': 'Ireland', '33UUP': 'Austria', '35VLK': 'Finland'}
SPLITS = ('train', 'validation', 'train', 'test')  # of pair i: the one at i modulo 4
_CODES = np.array([CODES_43[CLASSES_43.index(c.corine)] for c in CLASSES], np.uint16)


def write(folder: Path, pairs: int, config: SceneConfig, workers: int = 1) -> dict[str, Any]:
    """Writes an archive of generated pairs; returns the settings with which its builder reads it.

    Pairs under snow or cloud are in the table of their own. `workers`: processes to write with.
    """
    most = len(v1.TILES) * len(v1.COLUMNS) * len(v1.ROWS)
    if not 0 < pairs <= most:
        raise InputError(f'pairs={pairs}: must be between 1 and {most:,}, the number of grid cells')
    if (config.size, config.level) != (EXTENT // 10, 'L2A'):
        raise InputError(
            f'size={config.size}, level={config.level}: the patches of BigEarthNet v2 are L2A of 120 pixels'
        )
    write_pair = functools.partial(_write_pair, folder=folder, config=config)
    rows = each(write_pair, pairs, workers)
    hidden = [row['contains_seasonal_snow'] or row['contains_cloud_or_shadow'] for row in rows]
    _write_table(folder / METADATA, [row for row, hide in zip(rows, hidden) if not hide])
    _write_table(folder / SNOW_CLOUD, [row for row, hide in zip(rows, hidden) if hide])
    return {
        's1_root': str(folder / S1_ROOT),
        's2_root': str(folder / S2_ROOT),
        'metadata': str(folder / METADATA),
    }


def patch_id(about: v1.Patch) -> str:
    """The name that the Sentinel-2 patch of a pair has in version 2."""
    column, row = about.s2_name.split('_')[-2:]
    tile = about.tile
    product = f'{about.s2_name[:10]}_{about.s2_time:%Y%m%dT%H%M%S}_N9999_R{tile.s2_orbit:03d}_T{tile.name}'
    return f'{product}_{int(column):02d}_{int(row):02d}'


def reference_map(generated: Scene) -> np.ndarray:
    """The CORINE code of each pixel, uint16; every eighth scene has a strip without a label below."""
    codes = _CODES[generated.cover]
    if generated.index % 8 == 3:
        codes[-len(codes) // 10 :] = UNLABELLED
    return codes


def _write_pair(index: int, folder: Path, config: SceneConfig) -> dict[str, Any]:
    """Writes the images and the map of one pair; returns its row in the metadata table."""
    generated = scene(config, index)
    about = v1.patch(index, generated.season)
    name = patch_id(about)
    _write_patch(folder / S1_ROOT, about.s1_name, 3, generated.s1, about.place)
    _write_patch(folder / S2_ROOT, name, 2, generated.s2, about.place, nodata=0)
    codes = {'reference_map': reference_map(generated)}
    _write_patch(folder / MAPS, name, 2, codes, about.place, nodata=0, compress='deflate', predictor=2)
    present = multi_hot([CLASSES[i].corine for i in labels(generated)])[1]
    values = (
        name,
        sorted(CLASSES_19[i] for i in np.flatnonzero(present)),
        SPLITS[index % len(SPLITS)],
        COUNTRIES[about.tile.name],
        about.s1_name,
        about.s2_name,
        generated.snow,
        generated.cloud > 0 and not generated.snow,
    )
    return dict(zip(COLUMNS, values))


def _write_patch(
    root: Path, name: str, cut: int, images: dict[str, np.ndarray], place: Place, **profile: Any
) -> None:
    folder = root / name.rsplit('_', cut)[0] / name
    folder.mkdir(parents=True)
    for band, image in images.items():
        resolution = 10 if len(image) == 120 else RESOLUTION.get(band, 20)
        write_band(folder / f'{name}_{band}.tif', image, place, resolution, **profile)


def _write_table(file: Path, rows: list[dict[str, Any]]) -> None:
    import pyarrow
    import pyarrow.parquet

    types = {str: pyarrow.string(), bool: pyarrow.bool_(), list: pyarrow.list_(pyarrow.string())}
    table = pyarrow.Table.from_pylist(
        sorted(rows, key=lambda row: row['patch_id']),
        schema=pyarrow.schema([(name, types[kind]) for name, kind in COLUMNS.items()]),
    )
    pyarrow.parquet.write_table(table, file, compression='zstd')
