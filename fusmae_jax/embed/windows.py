"""The geometry of windows over a raster: cells, strides, batches and the weights of overlapping cells.

A window covers the ground of one training record, so that tokens have the size that the model knows. The
cells of the output are the footprints of the patch tokens. Windows start at whole cells and at whole pixels
of every input, so nothing is shifted by a part of a pixel.

A token depends on all of its window, so that the same ground in another window has another embedding.
Windows therefore stand on a grid of the reference system and not on that of the image: whatever is cut out of
a scene, a place lies in the same windows, and only those that reach beyond the cut differ.
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal, NamedTuple

import numpy as np

from fusmae_jax.errors import InputError

_SLACK = 1e-6  # cells; what rounding may add to a length
_NEAR = 1e-3  # pixels; rasters whose corners differ by less begin at the same place


class Axis(NamedTuple):
    """Cells and windows along the rows or the columns of a raster."""

    cells: int  # of the output
    grid: int  # cells of a window
    stride: int  # cells from one window to the next
    windows: int
    start: Fraction = Fraction(0)  # cells from the beginning of the raster to the first window, not above 0
    lead: int = 0  # cells of the first window that the output leaves out, as they hold nothing of the raster
    # First and last window that lie wholly within the raster; None where windows follow the image.
    inner: tuple[int, int] | None = None

    @property
    def first(self) -> Fraction:
        """Cells from the beginning of the raster to the first cell of the output."""
        return self.start + self.lead

    def fixed(self, merge: Literal['mean', 'centre']) -> tuple[int, int]:
        """The cells [low, high) of the output to which no window contributes that is not whole.

        Their embedding is the same in any other cut of the scene. Windows that this cut does not reach at
        all, and another would, count too; nothing is fixed where windows follow the image.
        """
        if self.inner is None:
            return 0, 0
        first, last = self.inner
        overlap = self.grid - self.stride
        if merge == 'mean':
            low, high = (first - 1) * self.stride + self.grid, (last + 1) * self.stride
        else:
            low, high = first * self.stride + overlap // 2, (last + 1) * self.stride + overlap // 2
        return (low - self.lead, high - self.lead) if low < high else (0, 0)


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


def axis(length: float, window: float, grid: int, overlap: int, shift: Fraction = Fraction(0)) -> Axis:
    """Windows over a length (metres) in windows of `window` metres and `grid` cells.

    The first and the last window may reach beyond the ends, and the first and the last cell as well.

    Args:
        length: of the raster.
        window: of a window.
        grid: cells of a window.
        overlap: cells that two windows share.
        shift: cells from the line of the ground's grid before the raster to its beginning, under a stride.
    """
    stride = grid - overlap
    long = length * grid / window
    lead = math.floor(shift)
    cells = max(1, math.ceil(long + float(shift) - lead - _SLACK))
    count = 1 + max(0, math.ceil((lead + cells - grid) / stride))
    return Axis(cells, grid, stride, count, -shift, lead)


def on_ground(begin: float, length: float, window: float, grid: int, overlap: int, steps: int) -> Axis:
    """Windows at multiples of their stride in the reference system; as `axis` where none of them is whole.

    Args:
        begin: coordinate of the beginning of the raster (metres), growing as rows or columns do.
        length: of the raster.
        window: of a window.
        grid: cells of a window.
        overlap: cells that two windows share.
        steps: places in a stride at which pixels of every input begin (`common_steps`).
    """
    stride = grid - overlap
    step = window * stride / grid / steps
    # Rasters whose pixels do not begin at multiples of their size have a grid that is off by the same part.
    shift = Fraction(math.floor(begin / step + _NEAR) % steps * stride, steps)
    line = axis(length, window, grid, overlap, shift)
    first = 1 if shift else 0
    last = math.floor((length * grid / window + float(shift) - grid) / stride + _SLACK)
    if last < first:
        return axis(length, window, grid, overlap)
    return line._replace(inner=(first, last))


def common_steps(grid: int, overlap: int, pixels: Sequence[int]) -> int:
    """Into how many parts a stride falls at whole pixels of every input; `pixels` of a window in each."""
    return math.gcd(*(count * (grid - overlap) // grid for count in pixels))


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
