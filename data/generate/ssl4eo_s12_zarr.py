"""The files of SSL4EO-S12 version 1.1: zarr stores in zips, lists and tables of the splits.

A store is as xarray writes it: zarr version 2, dimensions in attributes, consolidated metadata, and one
time stamp of all its locations to a chunk.
"""

from __future__ import annotations

import functools
import struct
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..ssl4eo_s12.schema import MASK, OFFSET, S1_BANDS, S2_BANDS, SIZE, TIMES
from .classes import CLASSES
from .parallel import each
from .scene import Scene, SceneConfig, resampled, scene
from .ssl4eo_s12_places import EXTENT, Location, degrees

_WATER = [index for index, cover in enumerate(CLASSES) if cover.igbp == 17]
_MASK = {name: number for number, name in enumerate(MASK)}


def write(
    folder: Path, locations: Sequence[Location], config: SceneConfig, workers: int, samples: int
) -> None:
    """Writes the locations into files of `samples`, one in ten and the last one into the split val."""
    files: list[tuple[Path, Sequence[Location]]] = []
    (folder / 'splits').mkdir(parents=True)
    val = [
        location
        for number, location in enumerate(locations, 1)
        if number % 10 == 0 or number == len(locations)
    ]
    for split, members in (
        ('train', [location for location in locations if location not in val]),
        ('val', val),
    ):
        parts = [members[start : start + samples] for start in range(0, len(members), samples)]
        names = [
            f'ssl4eos12_{split}_seasonal_data_{number:06d}.zarr.zip' for number in range(1, len(parts) + 1)
        ]
        (folder / 'splits' / f'ssl4eos12_{split}.txt').write_text(''.join(f'{name}\n' for name in names))
        _write_table(folder / 'splits' / f'{split}_metadata.parquet', dict(zip(names, parts)))
        for kind in ('S1GRD', f'S2{config.level}'):
            (folder / split / kind).mkdir(parents=True)
        files += [(folder / split / name, part) for name, part in zip(names, parts)]
    each(functools.partial(_write_file, files=files, config=config), len(files), workers)


def _write_file(index: int, files: Sequence[tuple[Path, Sequence[Location]]], config: SceneConfig) -> None:
    """Both stores of one file name: Sentinel-1 and Sentinel-2."""
    file, locations = files[index]
    optical = f'S2{config.level}'
    count = len(locations)
    s1 = np.empty((count, TIMES, len(S1_BANDS), SIZE, SIZE), np.float16)
    places = [sorted(range(TIMES), key=lambda time: location.visits[time].s1_name) for location in locations]
    with tempfile.TemporaryDirectory() as temporary:
        store = _Store(Path(temporary))
        bands = store.create('bands', (count, TIMES, len(S2_BANDS[optical]), SIZE, SIZE), np.int16)
        masks = store.create('cloud_mask', (count, TIMES, SIZE, SIZE), np.uint8)
        for time in range(TIMES):
            scenes = [scene(config, location.number, time) for location in locations]
            images = (resampled(generated) for generated in scenes)
            stack = np.array([[image[band] for band in S2_BANDS[optical]] for image in images])
            bands[:, time] = np.minimum(stack.astype(np.int32) + OFFSET, 2**15 - 1).astype(np.int16)
            masks[:, time] = np.array([_mask(generated) for generated in scenes])
            for number, generated in enumerate(scenes):
                s1[number, places[number].index(time)] = [generated.s1[band] for band in S1_BANDS]
        names = [[visit.s2_name for visit in location.visits] for location in locations]
        times = [[visit.s2_time for visit in location.visits] for location in locations]
        _describe(store, locations, S2_BANDS[optical], names, times)
        store.pack(file.parent / optical / file.name)
    with tempfile.TemporaryDirectory() as temporary:
        store = _Store(Path(temporary))
        store.create('bands', s1.shape, s1.dtype)[...] = s1
        names = [
            [location.visits[time].s1_name for time in order] for location, order in zip(locations, places)
        ]
        times = [sorted(visit.s1_time for visit in location.visits) for location in locations]
        _describe(store, locations, ('vv', 'vh'), names, times)
        store.pack(file.parent / 'S1GRD' / file.name)


class _Store:
    """A zarr store in a folder, to be packed into a zip."""

    DIMENSIONS = ('sample', 'time', 'band', 'y', 'x')

    def __init__(self, folder: Path):
        import zarr

        self._folder, self._group = folder, zarr.open_group(folder, mode='w', zarr_format=2)

    def create(
        self, name: str, shape: tuple[int, ...], dtype: Any, dimensions: Any = None, **about: Any
    ) -> Any:
        """An array; that of images has a chunk for each time stamp."""
        import numcodecs

        if dimensions is None:
            dimensions = self.DIMENSIONS if len(shape) == 5 else ('sample', 'time', 'y', 'x')
        chunks = tuple(1 if d == 'time' and len(shape) > 3 else n for d, n in zip(dimensions, shape))
        return self._group.create_array(
            name,
            shape=shape,
            chunks=chunks,
            dtype=dtype,
            compressors=numcodecs.Blosc(cname='lz4', clevel=5, shuffle=1),
            fill_value=None,
            config={'write_empty_chunks': True},  # as zarr 2 did: a chunk of zeros is there too
            attributes={'_ARRAY_DIMENSIONS': list(dimensions), **about},
        )

    def put(self, name: str, values: Any, *dimensions: str, **about: Any) -> None:
        """An array with these values."""
        array = np.asarray(values)
        self.create(name, array.shape, array.dtype, dimensions, **about)[...] = array

    def pack(self, file: Path) -> None:
        """Writes the zip."""
        import zarr

        zarr.consolidate_metadata(self._folder, zarr_format=2)
        with zipfile.ZipFile(file, 'w', zipfile.ZIP_STORED) as archive:
            for path in sorted(self._folder.rglob('*')):
                if path.is_file():
                    archive.write(path, path.relative_to(self._folder).as_posix())


def _describe(store: _Store, locations: Sequence[Location], bands: Any, names: Any, times: Any) -> None:
    """Everything in a store but the images."""
    ids = [location.name for location in locations]
    grid = np.arange(SIZE) * 10 + 5  # centres of pixels
    store.put('band', list(bands), 'band')
    store.put('sample', ids, 'sample')
    for axis in ('time', 'x', 'y'):
        store.put(axis, np.arange(TIMES if axis == 'time' else SIZE), axis)
    for axis, which in (('lat', 0), ('lon', 1)):
        store.put(f'center_{axis}', [location.center[which] for location in locations], 'sample')
    store.put('crs', [location.place.epsg for location in locations], 'sample')
    store.put('file_id', names, 'sample', 'time')
    store.put('sample_id', [[f'{name}_{time}' for time in range(TIMES)] for name in ids], 'sample', 'time')
    moments = np.array(times, 'datetime64[ns]').astype(np.int64)
    store.put('time_', moments, 'sample', 'time', units='nanoseconds since 1970-01-01', calendar='standard')
    store.put('x_', [location.place.left + grid for location in locations], 'sample', 'x')
    store.put('y_', [location.place.top - grid for location in locations], 'sample', 'y')


def _mask(generated: Scene) -> np.ndarray:
    """A cloud mask that goes with the scene: as much cloud as it has, where it is brightest."""
    mask = np.where(np.isin(generated.cover, _WATER), _MASK['water'], _MASK['land']).astype(np.uint8)
    if generated.snow:
        mask[mask == _MASK['land']] = _MASK['snow']
    clouded = round(generated.cloud * mask.size)
    if clouded:
        brightest = np.argpartition(generated.s2['B02'].ravel(), -clouded)[-clouded:]
        mask.ravel()[brightest] = _MASK['thick cloud']
    return mask


def _write_table(file: Path, parts: dict[str, Sequence[Location]]) -> None:
    """The table of a split: a row for each time stamp, by Sentinel-2."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        (location, time, name)
        for location, name in sorted((location, name) for name, part in parts.items() for location in part)
        for time in range(TIMES)
    ]
    columns = {
        'sample_id': [location.name for location, _, _ in rows],
        'time_id': [time for _, time, _ in rows],
        'time': pa.array([location.visits[time].s2_time for location, time, _ in rows], pa.timestamp('ns')),
        'tile_id': [f'T{location.tile}' for location, _, _ in rows],
        'geometry': [_polygon(location) for location, _, _ in rows],
        'tile_crs': [location.place.epsg for location, _, _ in rows],
        'file': [name for _, _, name in rows],
        'idx': [f'{location.name}_{time}' for location, time, _ in rows],
    }
    pq.write_table(pa.table(columns), file)


def _polygon(location: Location) -> bytes:
    """The footprint as well-known binary, longitude and latitude."""
    corners = [(1, 1), (1, 0), (0, 0), (0, 1), (1, 1)]
    points = [
        degrees(location.place.epsg, location.place.left + x * EXTENT, location.place.top - y * EXTENT)
        for x, y in corners
    ]
    return struct.pack('<bIII', 1, 3, 1, len(points)) + struct.pack('<10d', *np.ravel(points))
