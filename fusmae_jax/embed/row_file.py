"""GeoTIFFs that are written row by row, as they come, and end as Cloud Optimized GeoTIFFs.

Only a file whose sizes are all known can have its directory and its overviews in front of its tiles, so GDAL
copies it to that layout at the end, in bounded memory.
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
from rasterio._err import CPLE_BaseError
from rasterio.windows import Window

from fusmae_jax.errors import InputError
from fusmae_jax.geo import UnusableError
from fusmae_jax.geo.grid import Grid
from fusmae_jax.geo.raster import open_raster

TAG = 'FUSMAE_JAX'  # the dataset tag with the JSON that describes what the numbers are


def create(file: Path, grid: Grid, bands: int, tile: int, **profile: Any) -> rasterio.io.DatasetWriter:
    """A new tiled GeoTIFF on a grid; `profile` has its dtype and whatever else rasterio takes."""
    return rasterio.open(
        file,
        'w',
        driver='GTiff',
        width=grid.columns,
        height=grid.rows,
        count=bands,
        crs=grid.crs,
        transform=grid.transform,
        tiled=True,
        blockxsize=tile,
        blockysize=tile,
        BIGTIFF='IF_SAFER',
        **profile,
    )


class RowFile:
    """Takes rows of a raster from the top; whole tiles are written, so that nothing is read back."""

    def __init__(
        self, file: Path, grid: Grid, bands: int, tile: int, description: Mapping[str, Any], **profile: Any
    ):
        """Creates the file, as `create` does, with a description in its tag."""
        self.file, self.dataset = file, create(file, grid, bands, tile, **profile)
        self.dataset.update_tags(**{TAG: json.dumps(description)})
        self._tile = tile
        self._waiting = np.zeros((0, grid.columns, bands), profile['dtype'])
        self._next = 0  # row of the first that waits

    def write(self, values: np.ndarray) -> None:
        """The next rows (rows, columns, bands), in the file's type."""
        rows = np.concatenate([self._waiting, values])
        whole = len(rows) // self._tile * self._tile
        if whole:
            self._put(rows[:whole])
        # A copy, so that the rows just written can go.
        self._waiting = rows[whole:].copy()

    def _put(self, rows: np.ndarray) -> None:
        window = Window(0, self._next, self.dataset.width, len(rows))
        self.guard(self.dataset.write, np.moveaxis(rows, -1, 0), window=window)
        self._next += len(rows)

    def guard(self, write: Callable[..., Any], *values: Any, **options: Any) -> None:
        """Calls a function that writes, whose errors are said of this file."""
        try:
            write(*values, **options)
        # The second one is what `rasterio.shutil.copy` lets through; it has no public name.
        except (rasterio.errors.RasterioError, CPLE_BaseError) as error:
            raise InputError(f'{self.file}: cannot be written ({error}); is the disk full?') from error

    def finish(self, cog: Mapping[str, Any] | None) -> None:
        """Writes what waits, closes the file, and looks whether all of it is there.

        Args:
            cog: options of the COG that takes the place of the file; None leaves it as it is.
        """
        if len(self._waiting):
            self._put(self._waiting)
        self.dataset.close()
        if cog is not None:
            self._optimise(cog)
        try:
            with open_raster(self.file, beside=False) as dataset:
                # Errors while a file is closed do not surface otherwise; the last tile is written last.
                dataset.read(1, window=Window(dataset.width - 1, dataset.height - 1, 1, 1))
        except (UnusableError, rasterio.errors.RasterioError) as error:
            raise InputError(f'{self.file}: was not written in full ({error}); is the disk full?') from error

    def _optimise(self, options: Mapping[str, Any]) -> None:
        """Replaces the file with a copy of the layout of a COG."""
        copy = self.file.with_name(f'{self.file.name}.cog')
        options = {'driver': 'COG', 'BIGTIFF': 'IF_SAFER', **options}
        try:
            # Overviews are looked for in the folder, which is otherwise switched off. GDAL writes tiles of
            # less than 128 cells, and warns that it does not.
            with rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN='FALSE', GDAL_VALIDATE_CREATION_OPTIONS='NO'):
                self.guard(rasterio.shutil.copy, self.file, copy, **options)
            os.replace(copy, self.file)
        finally:
            copy.unlink(missing_ok=True)

    def abort(self) -> None:
        """Closes the file, which the caller removes."""
        self.dataset.close()
