"""Embeddings as GeoParquet 1.1: a row for each cell that holds data, a row group for each band of windows.

Geometries are the cells' rectangles as WKB, in the reference system of the inputs (as PROJJSON). `bbox` is
the covering column of the specification, by which readers skip row groups.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fusmae_jax.errors import InputError
from fusmae_jax.geo.grid import Grid

KEY = 'fusmae_jax'  # the file's metadata with the JSON that describes the embeddings
SIDES = ('xmin', 'ymin', 'xmax', 'ymax')
# A WKB polygon of one ring of five points: byte order, type, rings, points, then the points.
_POLYGON = np.dtype(
    [('order', 'u1'), ('type', '<u4'), ('rings', '<u4'), ('points', '<u4'), ('ring', '<f8', (5, 2))]
)


class GeoParquet:
    """Writes rows of cells from the top."""

    def __init__(
        self,
        file: Path,
        grid: Grid,
        scale: np.ndarray | None,
        width: int,
        compress: str,
        description: Mapping[str, Any],
    ):
        """Creates a file for vectors of `width` numbers; int8 if there is a scale, else float32."""
        self._file, self._grid, self._width = file, grid, width
        self._value = pa.float32() if scale is None else pa.int8()
        self._row = 0  # of the next cells
        box = pa.struct([(side, pa.float64()) for side in SIDES])
        self._schema = pa.schema(
            [
                pa.field('row', pa.int32(), nullable=False),
                pa.field('column', pa.int32(), nullable=False),
                pa.field('geometry', pa.binary(), nullable=False),
                pa.field('bbox', box, nullable=False),
                pa.field('embedding', pa.list_(self._value, width), nullable=False),
            ],
            # From the start: readers take what is in the schema, and not what is added to the file later.
            metadata={'geo': json.dumps(_geo(grid)), KEY: json.dumps(description)},
        )
        codec = {'none': 'NONE', 'deflate': 'GZIP', 'zstd': 'ZSTD'}[compress]
        # Parquet has no type of one byte: int8 takes one only as an index into a dictionary of 255 values.
        dictionary: Any = False if scale is None else ['embedding.list.element']
        self._writer = pq.ParquetWriter(file, self._schema, compression=codec, use_dictionary=dictionary)

    def write(self, vectors: np.ndarray, valid: np.ndarray) -> None:
        """The next rows of cells: (rows, columns, width) in the file's type; only `valid` ones are kept."""
        rows, columns = np.nonzero(valid)
        rows += self._row
        self._row += len(vectors)
        if not len(rows):
            return
        corners = self._grid.corners(rows, columns)
        embedding = pa.array(np.ascontiguousarray(vectors[valid]).reshape(-1), self._value)
        table = pa.table(
            [
                pa.array(rows, pa.int32()),
                pa.array(columns, pa.int32()),
                _wkb(*corners),
                pa.StructArray.from_arrays([pa.array(side, pa.float64()) for side in corners], list(SIDES)),
                pa.FixedSizeListArray.from_arrays(embedding, self._width),
            ],
            schema=self._schema,
        )
        try:
            self._writer.write_table(table, row_group_size=table.num_rows)
        except OSError as error:
            raise InputError(f'{self._file}: cannot be written ({error}); is the disk full?') from error

    def finish(self) -> None:
        """Writes the footer and closes the file."""
        try:
            self._writer.close()
        except OSError as error:
            raise InputError(f'{self._file}: cannot be written ({error}); is the disk full?') from error

    def abort(self) -> None:
        """Closes the file, which the caller removes."""
        self._writer.close()


def _geo(grid: Grid) -> dict[str, Any]:
    """The `geo` metadata; its bbox is that of all cells, with and without data."""
    whole = grid.corners(np.array([0, grid.rows - 1]), np.array([0, grid.columns - 1]))
    left, bottom, right, top = (side[i] for side, i in zip(whole, (0, 1, 1, 0)))
    column = {
        'encoding': 'WKB',
        'geometry_types': ['Polygon'],
        # null: not known.
        'crs': grid.crs.to_dict(projjson=True) if grid.crs else None,
        'orientation': 'counterclockwise',
        'edges': 'planar',
        'bbox': [float(left), float(bottom), float(right), float(top)],
        'covering': {'bbox': {side: ['bbox', side] for side in SIDES}},
    }
    return {'version': '1.1.0', 'primary_column': 'geometry', 'columns': {'geometry': column}}


def _wkb(left: np.ndarray, bottom: np.ndarray, right: np.ndarray, top: np.ndarray) -> pa.Array:
    """Rectangles as WKB polygons, counter-clockwise from the lower left corner."""
    polygons = np.zeros(len(left), _POLYGON)
    polygons['order'], polygons['type'], polygons['rings'], polygons['points'] = 1, 3, 1, 5
    polygons['ring'][..., 0] = np.stack([left, right, right, left, left], axis=1)
    polygons['ring'][..., 1] = np.stack([bottom, bottom, top, top, bottom], axis=1)
    offsets = np.arange(len(left) + 1, dtype=np.int32) * np.int32(_POLYGON.itemsize)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(polygons.tobytes())]
    return pa.Array.from_buffers(pa.binary(), len(left), buffers)
