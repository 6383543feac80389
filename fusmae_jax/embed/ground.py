"""The common extent of the inputs of `encode`, and the grid of its output."""

from collections.abc import Mapping

from rasterio.windows import Window

from fusmae_jax.embed.rasters import Raster
from fusmae_jax.embed.windows import Axis
from fusmae_jax.errors import InputError
from fusmae_jax.geo import rio
from fusmae_jax.geo.grid import SLACK, Grid, common, name_of, warp, window_onto


def align(rasters: Mapping[str, Raster]) -> tuple[Grid, list[str]]:
    """The ground that one or two rasters cover, in pixels of the finer; each raster's `part` is set to it.

    One raster may contain the other, on the same pixel grid.

    Returns:
        The common extent, and what was left out, in words.

    Raises:
        InputError: another reference system, another place, or grids that do not meet.
    """
    first, *others = rasters.values()
    shared = _shared(first, others[0]) if others else first.extent
    lines = []
    for raster in rasters.values():
        rows, columns = raster.extent.rows, raster.extent.columns
        part = raster.part = window_onto(raster.extent, shared)
        if part != Window(0, 0, columns, rows):
            lines.append(
                f'{raster.file}: of {rows} x {columns} pixels, {part.height} x {part.width} from row '
                f'{part.row_off}, column {part.col_off} are encoded: what both files cover'
            )
    return shared, lines


def _shared(first: Raster, other: Raster) -> Grid:
    a, b = first.extent, other.extent
    assert a.crs is not None and b.crs is not None
    # The second file on the grid of the first.
    advice = f'bring one onto the other: {warp(name_of(a.crs), b.resolution, a.bounds, other.file)}'
    if a.crs != b.crs:
        message = f'{first.file} is in {name_of(a.crs)}, {other.file} in {name_of(b.crs)}'
        raise InputError(f'{message}; {advice}')
    wrong = rio.wrong_transform(_placed(first), _placed(other))
    # Another corner may be meant: a finer raster of a part of the ground.
    if wrong and (a.left, a.top) == (b.left, b.top):
        raise InputError(
            f'{first.file} has pixels of {a.resolution:g} m, {other.file} of {b.resolution:g} m; {wrong}'
        )
    # A last row or column that only the coarser grid needs does not count.
    slack = max(a.resolution, b.resolution) * (1 - SLACK)
    shared = common([a, b])
    if shared is None or not (_inside(a.bounds, b.bounds, slack) or _inside(b.bounds, a.bounds, slack)):
        raise InputError(
            f'{first.file} and {other.file} cover different ground: left, bottom, right, top are '
            f'{_text(a.bounds)} and {_text(b.bounds)}; {advice}'
        )
    for extent in (a, b):
        for distance in (shared.left - extent.left, extent.top - shared.top):
            pixels = distance / extent.resolution
            if abs(pixels - round(pixels)) > SLACK:
                raise InputError(
                    f'{first.file} and {other.file} do not share a grid: their corners are off by '
                    f'{pixels:.3f} pixels of {extent.resolution:g} m; {advice}'
                )
    return shared


def _inside(inner: tuple[float, ...], outer: tuple[float, ...], slack: float) -> bool:
    """Whether `inner` lies in `outer`; right and bottom may reach out by less than a coarse pixel."""
    near = SLACK * slack
    return (
        inner[0] >= outer[0] - near
        and inner[3] <= outer[3] + near
        and inner[1] >= outer[1] - slack
        and inner[2] <= outer[2] + slack
    )


def _placed(raster: Raster) -> rio.Placed:
    grid = raster.extent
    return rio.Placed(raster.file, grid.rows, grid.columns, grid.left, grid.top, grid.resolution)


def _text(bounds: tuple[float, ...]) -> str:
    return ' '.join(f'{value:.10g}' for value in bounds)


def output_grid(extent: Grid, cell: tuple[float, float], rows: Axis, columns: Axis) -> Grid:
    """The output's grid of cells (height, width); its first cell may begin before the inputs do."""
    height, width = cell
    left, top = extent.left + float(columns.first) * width, extent.top - float(rows.first) * height
    return extent._replace(
        left=left, top=top, step_x=width, step_y=height, rows=rows.cells, columns=columns.cells
    )
