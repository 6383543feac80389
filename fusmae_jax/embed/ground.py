"""Where inputs and output lie: the common extent of the inputs, the grid of the output."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from rasterio.crs import CRS
from rasterio.transform import Affine

from fusmae_jax import rio
from fusmae_jax.embed.rasters import Extent, Part, Raster, name_of
from fusmae_jax.embed.windows import Axis
from fusmae_jax.errors import InputError

_SLACK = 1e-3  # pixels; grids that differ by less are the same


class Grid(NamedTuple):
    """The pixels of the output: cells of (height, width) metres, north up."""

    crs: CRS
    left: float
    top: float
    cell: tuple[float, float]
    rows: int
    columns: int

    @property
    def transform(self) -> Affine:
        """Column and row to easting and northing."""
        return Affine(self.cell[1], 0.0, self.left, 0.0, -self.cell[0], self.top)

    def corners(self, rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, ...]:
        """Left, bottom, right and top of cells, each as long as `rows`."""
        height, width = self.cell
        left, right = self.left + columns * width, self.left + (columns + 1) * width
        top, bottom = self.top - rows * height, self.top - (rows + 1) * height
        return left, bottom, right, top


def align(rasters: Mapping[str, Raster]) -> tuple[Extent, list[str]]:
    """The ground that one or two rasters cover, in pixels of the finer; each raster's `part` is set to it.

    One raster may contain the other, on the same pixel grid.

    Returns:
        The common extent, and what was left out, in words.

    Raises:
        InputError: another reference system, another place, or grids that do not meet.
    """
    first, *others = rasters.values()
    common = _common(first, others[0]) if others else first.extent
    lines = []
    for raster in rasters.values():
        part = raster.part = _part(raster.extent, common)
        if part != (0, 0, raster.extent.rows, raster.extent.columns):
            lines.append(
                f'{raster.file}: of {raster.extent.rows} x {raster.extent.columns} pixels, {part.rows} x '
                f'{part.columns} from row {part.row}, column {part.column} are encoded: what both files cover'
            )
    return common, lines


def _common(first: Raster, other: Raster) -> Extent:
    a, b = first.extent, other.extent
    if a.crs != b.crs:
        raise InputError(
            f'{first.file} is in {name_of(a.crs)}, {other.file} in {name_of(b.crs)}; {_advice(first, other)}'
        )
    # Another corner may be meant: a finer raster of a part of the ground.
    wrong = (a.left, a.top) == (b.left, b.top) and rio.wrong_transform(_placed(first), _placed(other))
    if wrong:
        raise InputError(
            f'{first.file} has pixels of {a.resolution:g} m, {other.file} of {b.resolution:g} m; {wrong}'
        )
    coarse, fine = max(a.resolution, b.resolution), min(a.resolution, b.resolution)
    box = [pick(pair) for pick, pair in zip((max, max, min, min), zip(a.bounds, b.bounds))]
    # A last row or column that only the coarser grid needs does not count.
    contained = any(_inside(e.bounds, o.bounds, coarse * (1 - _SLACK)) for e, o in ((a, b), (b, a)))
    if not contained:
        raise InputError(
            f'{first.file} and {other.file} cover different ground: left, bottom, right, top are '
            f'{_text(a.bounds)} and {_text(b.bounds)}; {_advice(first, other)}'
        )
    left, bottom, right, top = box
    for extent in (a, b):
        for distance in ((left - extent.left), (extent.top - top)):
            pixels = distance / extent.resolution
            if abs(pixels - round(pixels)) > _SLACK:
                raise InputError(
                    f'{first.file} and {other.file} do not share a grid: their corners are off by '
                    f'{pixels:.3f} pixels of {extent.resolution:g} m; {_advice(first, other)}'
                )
    rows, columns = round((top - bottom) / fine), round((right - left) / fine)
    return Extent(a.crs, left, top, fine, rows, columns)


def _inside(inner: tuple[float, ...], outer: tuple[float, ...], slack: float) -> bool:
    """Whether `inner` lies in `outer`; right and bottom may reach out by less than a coarse pixel."""
    near = _SLACK * slack
    return (
        inner[0] >= outer[0] - near
        and inner[3] <= outer[3] + near
        and inner[1] >= outer[1] - slack
        and inner[2] <= outer[2] + slack
    )


def _part(extent: Extent, common: Extent) -> Part:
    """The pixels of a raster that lie in the common extent, the last ones perhaps in part."""
    row = round((extent.top - common.top) / extent.resolution)
    column = round((common.left - extent.left) / extent.resolution)
    factor = common.resolution / extent.resolution
    rows = min(extent.rows - row, int(np.ceil(common.rows * factor - _SLACK)))
    columns = min(extent.columns - column, int(np.ceil(common.columns * factor - _SLACK)))
    return Part(row, column, rows, columns)


def _advice(first: Raster, other: Raster) -> str:
    """How to bring the second file onto the grid of the first."""
    target = first.extent
    return 'bring one onto the other: ' + rio.warp(
        other.file,
        crs=name_of(target.crs),
        bounds=target.bounds,
        step=other.extent.resolution,
        dtype=other.dtype,
    )


def _placed(raster: Raster) -> rio.Placed:
    e = raster.extent
    return rio.Placed(raster.file, e.rows, e.columns, e.left, e.top, e.resolution)


def _text(bounds: tuple[float, ...]) -> str:
    return ' '.join(f'{value:.10g}' for value in bounds)


def output_grid(extent: Extent, cell: tuple[float, float], rows: Axis, columns: Axis) -> Grid:
    """The output's grid: it begins at the upper left corner of the inputs."""
    return Grid(extent.crs, extent.left, extent.top, cell, rows.cells, columns.cells)
