"""Puts the cells of overlapping windows together, one band of window rows at a time."""

from typing import Literal

import numpy as np

from fusmae_jax.embed.windows import Layout, taper


class Mosaic:
    """Weighted sums of the vectors of one band of windows; memory does not grow with the raster's rows.

    For each band: `add` every window, then `take` the rows of cells that no later window reaches.
    """

    def __init__(self, layout: Layout, width: int, merge: Literal['mean', 'centre']):
        """Sums for vectors of `width` numbers."""
        self.layout, self.merge = layout, merge
        rows, columns = layout.rows, layout.columns
        height = (layout.batch[0] - 1) * rows.stride + rows.grid
        length = (columns.windows - 1) * columns.stride + columns.grid
        self._sums = np.zeros((height, length, width), np.float32)
        self._weights = np.zeros((height, length), np.float32)
        self._top = 0  # the row of cells that the sums begin with

    def add(self, row: int, column: int, vectors: np.ndarray, valid: np.ndarray) -> None:
        """Takes in window (row, column): vectors (grid rows, grid columns, width), valid (rows, columns)."""
        rows, columns = self.layout.rows, self.layout.columns
        weight = taper(rows, row, self.merge)[:, None] * taper(columns, column, self.merge)[None]
        weight = weight * valid
        y, x = row * rows.stride - self._top, column * columns.stride
        here = np.s_[y : y + rows.grid, x : x + columns.grid]
        self._sums[here] += vectors * weight[..., None]
        self._weights[here] += weight

    def take(self, last: bool) -> tuple[np.ndarray, np.ndarray]:
        """The finished rows of cells, from the top: vectors (rows, cells, width) and their validity.

        Vectors of cells without a valid pixel are NaN. `last`: there is no further band.
        """
        rows, cells = self.layout.rows, self.layout.columns.cells
        count = min(self.layout.batch[0] * rows.stride, rows.cells - self._top)
        count = rows.cells - self._top if last else count
        weights = self._weights[:count, :cells]
        valid = weights > 0
        with np.errstate(invalid='ignore'):
            vectors = self._sums[:count, :cells] / np.where(valid, weights, np.float32(np.nan))[..., None]
        self._shift(count)
        return vectors, valid

    def _shift(self, count: int) -> None:
        for sums in (self._sums, self._weights):
            sums[:-count] = sums[count:].copy()
            sums[-count:] = 0
        self._top += count
