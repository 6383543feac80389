"""benv2 of GEO-Bench-2 as published: one tortilla of tortillas, with the faults of the real one.

Sentinel-1 lies in it as VH, VV, and Sentinel-2 at 10 m under the geotransform of B01, which has 60 m. Pairs
and their names are those of the generated BigEarthNet v2; the small bands are repeated, not interpolated.
"""

import functools
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rasterio.io import MemoryFile

from fusmae_jax.errors import InputError

from ..bigearthnet_mm.labels import CLASSES_19, multi_hot
from ..bigearthnet_mm.schema import EXTENT
from ..geobench2.images import WRONG_STEP
from ..geobench2.schema import RESOLUTION, S2_BANDS
from ..geobench2.tortilla import FORMAT, HEADER, ID, LENGTH, MAGIC, OFFSET
from ..geotiff import Place
from . import bigearthnet_mm as v1
from .bigearthnet_v2 import COUNTRIES, SPLITS, patch_id
from .classes import CLASSES
from .geotiff import write_bands
from .parallel import each
from .scene import SceneConfig, labels, resampled, scene

FILE = 'geobench_benv2.tortilla'
_PROFILE = {
    **{'compress': 'zstd', 'predictor': 2, 'interleave': 'pixel'},
    **{'tiled': True, 'blockxsize': 64, 'blockysize': 64},
}


class Member(NamedTuple):
    """A file of a container and its row in the table, without the places."""

    content: bytes
    row: Mapping[str, Any]


def write(folder: Path, pairs: int, config: SceneConfig, workers: int = 1) -> dict[str, Any]:
    """Writes a container of generated pairs; returns the settings with which its builder reads it.

    `workers`: processes to draw the scenes with.
    """
    most = len(v1.TILES) * len(v1.COLUMNS) * len(v1.ROWS)
    if not 0 < pairs <= most:
        raise InputError(f'pairs={pairs}: must be between 1 and {most:,}, the number of grid cells')
    if (config.size, config.level) != (EXTENT // 10, 'L2A'):
        raise InputError(
            f'size={config.size}, level={config.level}: the patches of GEO-Bench-2 are L2A of 120 pixels'
        )
    members = each(functools.partial(sample, config=config), pairs, workers)
    (folder / FILE).write_bytes(pack(members))
    return {'path': str(folder / FILE)}


def sample(index: int, config: SceneConfig) -> Member:
    """The container of one pair, and its row in the table around it."""
    generated = scene(config, index)
    about = v1.patch(index, generated.season)
    present = multi_hot([CLASSES[i].corine for i in labels(generated)])[1]
    row = {
        'tortilla:data_split': SPLITS[index % len(SPLITS)],
        'add_test_split': False,
        'country': COUNTRIES[about.tile.name],
        'contains_seasonal_snow': generated.snow,
        'contains_cloud_or_shadow': generated.cloud > 0 and not generated.snow,
        'labels': sorted(CLASSES_19[i] for i in np.flatnonzero(present)),
        'patch_id': patch_id(about),
    }
    bands = resampled(generated)
    s1 = np.stack([generated.s1[band] for band in ('VH', 'VV')])
    s2 = np.stack([bands[band] for band in S2_BANDS])
    images = {'s1': _tiff(s1, about.place, RESOLUTION), 's2': _tiff(s2, about.place, WRONG_STEP)}
    inside = [Member(tiff, {ID: name, FORMAT: 'GTiff', **row}) for name, tiff in images.items()]
    return Member(pack(inside), {ID: f'sample_{index}', FORMAT: 'TORTILLA', **row})


def pack(members: Sequence[Member]) -> bytes:
    """The container of some members, in their order; `geobench2/tortilla.py` describes it."""
    import pyarrow
    import pyarrow.parquet

    sizes = [len(member.content) for member in members]
    offsets = [HEADER + sum(sizes[:index]) for index in range(len(sizes))]
    rows = [
        {**member.row, OFFSET: offset, LENGTH: size} for member, offset, size in zip(members, offsets, sizes)
    ]
    table = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), table)
    footer = table.getvalue().to_pybytes()
    header = struct.pack('<2sQQQ', MAGIC, HEADER + sum(sizes), len(footer), 1).ljust(HEADER, b'\0')
    return header + b''.join(member.content for member in members) + footer


def _tiff(array: np.ndarray, place: Place, resolution: float) -> bytes:
    with MemoryFile(ext='.tif') as memory:
        write_bands(memory.name, array, place, resolution, **_PROFILE)
        return memory.read()
