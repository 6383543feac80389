"""Embeddings as a Cloud Optimized GeoTIFF: one band a channel, one pixel a cell, in small tiles.

Rows are written to a plain GeoTIFF as they come. Only a file whose sizes are all known can have its directory
and its overviews in front of its tiles, so GDAL copies it to that layout at the end, in bounded memory.
"""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.errors
import rasterio.shutil
from rasterio.windows import Window

from fusmae_jax.embed.quantise import NODATA
from fusmae_jax.errors import InputError
from fusmae_jax.geo import UnusableError
from fusmae_jax.geo.grid import Grid
from fusmae_jax.geo.raster import open_raster

TILE = 16  # cells on a side, the smallest that TIFF allows: a tile holds all channels of its cells
COARSEST = 512  # cells a side, above which readers of COGs expect an overview
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
        cog: bool = True,
    ):
        """Creates a file for vectors of `width` numbers; int8 if there is a scale, else float32.

        Without `cog` it stays as it is written, which saves the copy at the end and the room for it.
        """
        self._file, self._grid, self._cog = file, grid, cog
        self._compress = compress
        self._waiting: list[np.ndarray] = []
        self._next = 0  # row of the first cell that waits
        self._scaled = scale is not None
        self._dataset = self._open(file, grid, width)
        self._dataset.update_tags(**{TAG: json.dumps(description)})
        if scale is not None:
            self._dataset.scales = scale.tolist()
        self._overview: _Overview | None = None
        longest = max(grid.rows, grid.columns)
        if cog and longest > COARSEST:
            factor = 1 << (-(-longest // COARSEST) - 1).bit_length()
            small = grid._replace(
                step_x=grid.step_x * factor,
                step_y=grid.step_y * factor,
                rows=-(-grid.rows // factor),
                columns=-(-grid.columns // factor),
            )
            self._overview = _Overview(self._open(self._beside, small, width), factor)

    @property
    def _beside(self) -> Path:
        """Where GDAL looks for overviews of a file that has none."""
        return self._file.with_name(f'{self._file.name}.ovr')

    def _open(self, file: Path, grid: Grid, width: int) -> rasterio.io.DatasetWriter:
        options = {} if self._compress == 'none' else {'compress': self._compress}
        return rasterio.open(
            file,
            'w',
            driver='GTiff',
            width=grid.columns,
            height=grid.rows,
            count=width,
            dtype='int8' if self._scaled else 'float32',
            crs=grid.crs,
            transform=grid.transform,
            nodata=NODATA if self._scaled else np.nan,
            interleave='pixel',
            tiled=True,
            blockxsize=TILE,
            blockysize=TILE,
            photometric='MINISBLACK',
            BIGTIFF='IF_SAFER',
            **options,
        )

    def write(self, vectors: np.ndarray, valid: np.ndarray) -> None:
        """The next rows of cells: (rows, columns, width) in the file's type, nodata where not `valid`."""
        if self._overview is not None:
            self._guard(self._overview.add, vectors, valid)
        self._waiting.append(vectors)
        rows = np.concatenate(self._waiting)
        whole = len(rows) // TILE * TILE
        if whole:
            self._put(rows[:whole])
        # A copy, so that the rows just written can go.
        self._waiting = [rows[whole:].copy()]

    def _put(self, rows: np.ndarray) -> None:
        window = Window(0, self._next, self._grid.columns, len(rows))
        self._guard(self._dataset.write, np.moveaxis(rows, -1, 0), window=window)
        self._next += len(rows)

    def _guard(self, write: Callable[..., Any], *values: Any, **options: Any) -> None:
        try:
            write(*values, **options)
        except rasterio.errors.RasterioError as error:
            raise InputError(f'{self._file}: cannot be written ({error}); is the disk full?') from error

    def finish(self) -> None:
        """Writes what waits, closes the file, and looks whether all of it is there."""
        if self._waiting and len(self._waiting[0]):
            self._put(self._waiting[0])
        self._dataset.close()
        if self._cog:
            self._optimise()
        try:
            with open_raster(self._file, beside=False) as dataset:
                # Errors while a file is closed do not surface otherwise; the last tile is written last.
                dataset.read(1, window=Window(self._grid.columns - 1, self._grid.rows - 1, 1, 1))
        except (UnusableError, rasterio.errors.RasterioError) as error:
            raise InputError(f'{self._file}: was not written in full ({error}); is the disk full?') from error

    def _optimise(self) -> None:
        """Replaces the file with a copy of the layout of a COG."""
        if self._overview is not None:
            self._guard(self._overview.finish)
        copy = self._file.with_name(f'{self._file.name}.cog')
        options = {
            'driver': 'COG',
            'BLOCKSIZE': TILE,
            'COMPRESS': self._compress.upper(),
            'BIGTIFF': 'IF_SAFER',
        }
        options['OVERVIEWS'] = 'NONE' if self._overview is None else 'FORCE_USE_EXISTING'
        try:
            # Files beside a raster are looked for in the folder, which is otherwise switched off. GDAL writes
            # tiles of less than 128 cells, and warns that it does not.
            with rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN='FALSE', GDAL_VALIDATE_CREATION_OPTIONS='NO'):
                self._guard(rasterio.shutil.copy, self._file, copy, **options)
            os.replace(copy, self._file)
        finally:
            copy.unlink(missing_ok=True)
            self._beside.unlink(missing_ok=True)

    def abort(self) -> None:
        """Closes the file, which the caller removes."""
        self._dataset.close()
        if self._overview is not None:
            self._overview.dataset.close()
            self._beside.unlink(missing_ok=True)


class _Overview:
    """Means of the valid cells of squares of `factor` cells, written as rows come."""

    def __init__(self, dataset: rasterio.io.DatasetWriter, factor: int):
        self.dataset, self._factor = dataset, factor
        self._rows: list[np.ndarray] = []  # finished ones, until there are whole tiles of them
        self._next = 0
        self._sums = np.zeros((dataset.width, dataset.count), np.float32)
        self._counts = np.zeros((dataset.width, 1), np.float32)
        self._seen = 0

    def add(self, vectors: np.ndarray, valid: np.ndarray) -> None:
        """Takes in rows of cells: (rows, columns, width) and where they hold data."""
        starts = np.arange(0, valid.shape[1], self._factor)
        for row, there in zip(vectors, valid):
            values = np.where(there[:, None], row, 0).astype(np.float32)
            self._sums += np.add.reduceat(values, starts, axis=0)
            self._counts += np.add.reduceat(there[:, None].astype(np.float32), starts, axis=0)
            self._seen += 1
            if self._seen % self._factor == 0:
                self._flush()

    def _flush(self) -> None:
        whole = self.dataset.dtypes[0] == 'float32'
        nodata = np.nan if whole else NODATA
        mean = self._sums / np.maximum(self._counts, 1)
        row = np.where(self._counts > 0, mean if whole else np.rint(mean), nodata)
        self._rows.append(row.astype(self.dataset.dtypes[0]))
        self._sums[:], self._counts[:] = 0, 0
        if len(self._rows) == TILE:
            self._put()

    def _put(self) -> None:
        rows = np.moveaxis(np.stack(self._rows), -1, 0)
        self.dataset.write(rows, window=Window(0, self._next, self.dataset.width, len(self._rows)))
        self._next += len(self._rows)
        self._rows = []

    def finish(self) -> None:
        """Writes what waits and closes the file."""
        if self._seen % self._factor:
            self._flush()
        if self._rows:
            self._put()
        self.dataset.close()
