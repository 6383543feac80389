"""Embeddings as a Zarr store of version 3: arrays (y, x, band) in small chunks, described as GeoZarr asks.

The root says where the cells lie twice: by the conventions `spatial:` and `proj:` (attributes of the group),
and as CF does (coordinates and a grid mapping), which xarray and GDAL read. int8 has one scale for each cell,
so that a stored vector depends on nothing but itself: a cell has the same numbers in every cut of a scene.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fusmae_jax.embed.quantise import Report, by_cell
from fusmae_jax.errors import InputError
from fusmae_jax.geo.grid import Grid

CHUNK = 32  # cells a side of a chunk, which holds all bands of its cells
KEY = 'fusmae_jax'  # the attribute of the root that describes the embeddings
VALUES, SCALES = 'embedding', 'scale'
CONVENTIONS = [
    {'name': 'spatial', 'uuid': '689b58e2-cf7b-45e0-9fff-9cfc0883d6b4'},
    {'name': 'proj:', 'uuid': 'f17cb550-5864-4468-aeb7-f3180cfb622f'},
]


class GeoZarr:
    """Writes rows of cells from the top; whole rows of chunks at a time, so that nothing is read back."""

    def __init__(
        self, folder: Path, grid: Grid, int8: bool, width: int, compress: str, description: Mapping[str, Any]
    ):
        """Creates a store for vectors of `width` numbers, int8 with a scale for each cell, or float32."""
        import zarr
        from zarr.codecs import GzipCodec, ZstdCodec

        self._folder, self._grid, self._int8, self._description = folder, grid, int8, description
        self._waiting: list[tuple[np.ndarray, np.ndarray]] = []
        self._next = 0  # row of the first cell that waits
        self.report = Report()
        codecs = {'none': None, 'deflate': GzipCodec(), 'zstd': ZstdCodec(level=5)}
        self._root = zarr.create_group(folder, zarr_format=3)
        shape = grid.rows, grid.columns
        options: dict[str, Any] = {'compressors': codecs[compress]}
        mapping: dict[str, Any] = {'grid_mapping': 'spatial_ref'}
        self._values = self._root.create_array(
            VALUES,
            shape=(*shape, width),
            chunks=(CHUNK, CHUNK, width),
            dtype='int8' if int8 else 'float32',
            fill_value=0 if int8 else np.nan,
            dimension_names=('y', 'x', 'band'),
            attributes=mapping,
            **options,
        )
        if int8:
            self._scales = self._root.create_array(
                SCALES,
                shape=shape,
                chunks=(CHUNK, CHUNK),
                dtype='float32',
                fill_value=np.nan,
                dimension_names=('y', 'x'),
                attributes=mapping | {'long_name': 'what a stored value is multiplied with; NaN: no data'},
                **options,
            )

    def write(self, vectors: np.ndarray, valid: np.ndarray) -> None:
        """The next rows of cells: (rows, columns, width) float32, and which cells hold data."""
        self._waiting.append((vectors, valid))
        rows, there = (np.concatenate(parts) for parts in zip(*self._waiting))
        whole = len(rows) // CHUNK * CHUNK
        if whole:
            self._put(rows[:whole], there[:whole])
        self._waiting = [(rows[whole:].copy(), there[whole:].copy())]

    def _put(self, rows: np.ndarray, valid: np.ndarray) -> None:
        here = slice(self._next, self._next + len(rows))
        try:
            if self._int8:
                stored, scale = by_cell(rows, valid)
                self.report.add(rows[valid], stored[valid] * scale[valid][:, None])
                self._values[here], self._scales[here] = stored, scale
            else:
                self._values[here] = np.where(valid[..., None], rows, np.float32(np.nan))
        except OSError as error:
            raise InputError(f'{self._folder}: cannot be written ({error}); is the disk full?') from error
        self._next += len(rows)

    def finish(self) -> None:
        """Writes what waits, coordinates, and at last the attributes without which a store says nothing."""
        if self._waiting and len(self._waiting[0][0]):
            self._put(*self._waiting[0])
        grid = self._grid
        try:
            x = grid.left + (np.arange(grid.columns) + 0.5) * grid.step_x
            y = grid.top - (np.arange(grid.rows) + 0.5) * grid.step_y
            for name, values in {'x': x, 'y': y}.items():
                about: dict[str, Any] = {'units': 'm'}
                about |= {'standard_name': f'projection_{name}_coordinate'} if grid.crs else {}
                array = self._root.create_array(
                    name, shape=values.shape, dtype='float64', dimension_names=(name,), attributes=about
                )
                array[:] = values
            system: dict[str, Any] = {'GeoTransform': ' '.join(map(repr, grid.transform.to_gdal()))}
            system |= {'crs_wkt': grid.crs.to_wkt()} if grid.crs else {}
            self._root.create_array('spatial_ref', shape=(), dtype='int32', attributes=system)[...] = 0
            self._root.attrs.update(_attributes(grid) | {KEY: dict(self._description)})
        except OSError as error:
            raise InputError(f'{self._folder}: cannot be written ({error}); is the disk full?') from error

    def abort(self) -> None:
        """Nothing is open; the caller removes the folder."""


def _attributes(grid: Grid) -> dict[str, Any]:
    """The conventions `spatial:` and, of a grid with a reference system, `proj:`."""
    system: dict[str, Any] = {}
    known = CONVENTIONS[:1]
    if grid.crs:
        code, known = grid.crs.to_epsg(), CONVENTIONS
        system = (
            {'proj:code': f'EPSG:{code}'} if code else {'proj:wkt2': grid.crs.to_wkt(version='WKT2_2019')}
        )
    return json.loads(
        json.dumps(
            {
                'zarr_conventions': known,
                **system,
                'spatial:dimensions': ['y', 'x'],
                'spatial:transform': list(grid.transform)[:6],
                'spatial:shape': [grid.rows, grid.columns],
                'spatial:bbox': list(grid.bounds),
                'spatial:registration': 'pixel',
            }
        )
    )
