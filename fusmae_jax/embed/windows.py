"""The geometry of windows over a raster: cells, strides, batches and the weights of overlapping cells.

A window covers the ground of one training record, so that tokens have the size that the model knows. The
cells of the output are the footprints of the patch tokens. Windows start at whole cells and at whole pixels
of every input, so nothing is shifted by a part of a pixel.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from fusmae_jax.errors import InputError

_SLACK = 1e-6  # cells; what rounding may add to a length


class Axis(NamedTuple):
    """Cells and windows along the rows or the columns of a raster."""

    cells: int  # of the output
    grid: int  # cells of a window
    stride: int  # cells from one window to the next
    windows: int


class Layout(NamedTuple):
    """Windows over a raster, and how many of them make one batch: `batch` rows x columns of windows."""

    rows: Axis
    columns: Axis
    batch: tuple[int, int]

    @property
    def bands(self) -> list[int]:
        """First window row of each row of batches."""
        return list(range(0, self.rows.windows, self.batch[0]))

    @property
    def positions(self) -> list[tuple[int, int]]:
        """First window (row, column) of every batch, in the order in which they are encoded."""
        return [
            (row, column) for row in self.bands for column in range(0, self.columns.windows, self.batch[1])
        ]

    def inside(self, row: int, column: int) -> bool:
        """Whether a window of a batch is one of the layout's, and no filling of the last batch."""
        return row < self.rows.windows and column < self.columns.windows


def axis(length: float, window: float, grid: int, overlap: int) -> Axis:
    """Windows over a length (metres) in windows of `window` metres and `grid` cells.

    The last cell and the last window may reach beyond the end.
    """
    cells = max(1, math.ceil(length * grid / window - _SLACK))
    stride = grid - overlap
    return Axis(cells, grid, stride, 1 + max(0, math.ceil((cells - grid) / stride)))


def overlaps(grid: int, pixels: Sequence[int]) -> list[int]:
    """The overlaps (cells, falling) at which every window starts at a whole pixel of every input.

    Args:
        grid: cells of a window.
        pixels: pixels of a window in each input.
    """
    step = math.lcm(*(grid // math.gcd(grid, count) for count in pixels))
    return [grid - stride for stride in range(step, grid + 1, step)]


def choose_overlap(wanted: int, grid: int, pixels: Sequence[int]) -> int:
    """The overlap asked for, or for -1 the least possible one of at least a quarter of a window.

    Raises:
        InputError: windows would start between pixels.
    """
    possible = overlaps(grid, pixels)
    if wanted == -1:
        return min((o for o in possible if 4 * o >= grid), default=possible[0])
    if wanted not in possible:
        raise InputError(
            f'config.overlap={wanted}: windows of {grid} cells and {" and ".join(map(str, pixels))} pixels '
            f'would start between pixels; possible: {", ".join(map(str, reversed(possible)))}'
        )
    return wanted


def batch_shape(rows: int, columns: int, batch: int) -> tuple[int, int]:
    """Rows x columns of windows of one batch: at most `batch` of them, with as little filling as can be."""
    if columns >= batch:
        return 1, math.ceil(columns / math.ceil(columns / batch))
    height = min(batch // columns, rows)
    return math.ceil(rows / math.ceil(rows / height)), columns


def taper(line: Axis, index: int, merge: Literal['mean', 'centre']) -> np.ndarray:
    """Weights (grid,) float32 of the cells of window `index` along one axis.

    `mean` rises linearly from the edge of a window over the overlap; two windows add up to 1. `centre` keeps
    the cells that lie nearest to the middle of this window, with weight 1, and to the ends of the raster.
    """
    overlap = line.grid - line.stride
    cell = np.arange(line.grid, dtype=np.float32)
    if not overlap:
        return np.ones(line.grid, np.float32)
    if merge == 'mean':
        edge = np.minimum(cell, cell[::-1]) + np.float32(0.5)
        return np.minimum(edge / np.float32(overlap), np.float32(1))
    low = 0 if index == 0 else overlap // 2
    high = line.grid if index == line.windows - 1 else overlap // 2 + line.stride
    return ((cell >= low) & (cell < high)).astype(np.float32)


def spread(count: int, wanted: int) -> list[int]:
    """At most `wanted` of the indices 0 to count - 1, evenly spread, the first and the last among them."""
    if wanted >= count:
        return list(range(count))
    return sorted({round(i) for i in np.linspace(0, count - 1, wanted).tolist()})
