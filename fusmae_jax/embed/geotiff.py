"""Embeddings as a GeoTIFF: one band a channel, one pixel a cell, in small tiles."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.errors
from rasterio.windows import Window

from fusmae_jax.embed.quantise import NODATA
from fusmae_jax.errors import InputError
from fusmae_jax.geo import UnusableError
from fusmae_jax.geo.grid import Grid
from fusmae_jax.geo.raster import open_raster

TILE = 16  # cells on a side, the smallest that TIFF allows: a tile holds all channels of its cells
TAG = 'FUSMAE_JAX'  # the dataset tag with the JSON that describes the embeddings


class GeoTiff:
    """Writes rows of cells from the top; whole tiles at a time, so that nothing is read back."""

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
        self._file, self._grid = file, grid
        self._waiting: list[np.ndarray] = []
        self._next = 0  # row of the first cell that waits
        options = {} if compress == 'none' else {'compress': compress}
        self._dataset = rasterio.open(
            file,
            'w',
            driver='GTiff',
            width=grid.columns,
            height=grid.rows,
            count=width,
            dtype='float32' if scale is None else 'int8',
            crs=grid.crs,
            transform=grid.transform,
            nodata=np.nan if scale is None else NODATA,
            interleave='pixel',
            tiled=True,
            blockxsize=TILE,
            blockysize=TILE,
            photometric='MINISBLACK',
            BIGTIFF='IF_SAFER',
            **options,
        )
        self._dataset.update_tags(**{TAG: json.dumps(description)})
        if scale is not None:
            self._dataset.scales = scale.tolist()

    def write(self, vectors: np.ndarray, valid: np.ndarray) -> None:
        """The next rows of cells: (rows, columns, width) in the file's type, nodata where not `valid`."""
        self._waiting.append(vectors)
        rows = np.concatenate(self._waiting)
        whole = len(rows) // TILE * TILE
        if whole:
            self._put(rows[:whole])
        # A copy, so that the rows just written can go.
        self._waiting = [rows[whole:].copy()]

    def _put(self, rows: np.ndarray) -> None:
        window = Window(0, self._next, self._grid.columns, len(rows))
        try:
            self._dataset.write(np.moveaxis(rows, -1, 0), window=window)
        except rasterio.errors.RasterioError as error:
            raise InputError(f'{self._file}: cannot be written ({error}); is the disk full?') from error
        self._next += len(rows)

    def finish(self) -> None:
        """Writes what waits, closes the file, and looks whether all of it is there."""
        if self._waiting and len(self._waiting[0]):
            self._put(self._waiting[0])
        self._dataset.close()
        try:
            with open_raster(self._file, beside=False) as dataset:
                # Errors while a file is closed do not surface otherwise; the last tile is written last.
                dataset.read(1, window=Window(self._grid.columns - 1, self._grid.rows - 1, 1, 1))
        except (UnusableError, rasterio.errors.RasterioError) as error:
            raise InputError(f'{self._file}: was not written in full ({error}); is the disk full?') from error

    def abort(self) -> None:
        """Closes the file, which the caller removes."""
        self._dataset.close()
