"""Embeddings as a Cloud Optimized GeoTIFF: one band a channel, one pixel a cell, in small tiles."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.windows import Window

from fusmae_jax.embed.quantise import NODATA
from fusmae_jax.embed.row_file import RowFile, create
from fusmae_jax.geo.grid import Grid

TILE = 16  # cells on a side, the smallest that TIFF allows: a tile holds all channels of its cells
COARSEST = 512  # cells a side, above which readers of COGs expect an overview


class GeoTiff:
    """Writes rows of cells from the top, with an overview that grows beside them."""

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
        self._cog, self._compress = cog, compress
        # Where GDAL looks for overviews of a file that has none.
        self._beside = file.with_name(f'{file.name}.ovr')
        profile = {
            'dtype': 'float32' if scale is None else 'int8',
            'nodata': np.nan if scale is None else NODATA,
            'interleave': 'pixel',
            'photometric': 'MINISBLACK',
            **({} if compress == 'none' else {'compress': compress}),
        }
        self._rows = RowFile(file, grid, width, TILE, description, **profile)
        if scale is not None:
            self._rows.dataset.scales = scale.tolist()
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
            self._overview = _Overview(create(self._beside, small, width, TILE, **profile), factor)

    def write(self, vectors: np.ndarray, valid: np.ndarray) -> None:
        """The next rows of cells: (rows, columns, width) in the file's type, nodata where not `valid`."""
        if self._overview is not None:
            self._rows.guard(self._overview.add, vectors, valid)
        self._rows.write(vectors)

    def finish(self) -> None:
        """Writes what waits, closes the file, and looks whether all of it is there."""
        if self._overview is not None:
            self._rows.guard(self._overview.finish)
        options = {
            'BLOCKSIZE': TILE,
            'COMPRESS': self._compress.upper(),
            'OVERVIEWS': 'NONE' if self._overview is None else 'FORCE_USE_EXISTING',
        }
        try:
            self._rows.finish(options if self._cog else None)
        finally:
            self._beside.unlink(missing_ok=True)

    def abort(self) -> None:
        """Closes the file, which the caller removes."""
        self._rows.abort()
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
