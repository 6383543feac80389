"""The inputs of `encode` on the ground: their rasters, their common extent, and the grid of the output."""

import itertools
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from rasterio.windows import Window

from fusmae_jax.embed.rasters import Raster
from fusmae_jax.embed.settings import EncodeConfig, option_name, sensor_file, settings_name
from fusmae_jax.embed.windows import Axis
from fusmae_jax.errors import InputError
from fusmae_jax.geo import UnusableError, rio
from fusmae_jax.geo.grid import SLACK, Grid, common, name_of, warp, window_onto
from fusmae_jax.geo.products import rasters_of


def open_rasters(config: EncodeConfig, files: Mapping[str, str], stack: ExitStack) -> dict[str, Raster]:
    """Opens the inputs, modality -> file, as field -> raster; `stack` closes them.

    A field is called like its sensor. Of a product whose bands have several pixel sizes there is one for
    each, `s2_10m`, as in converted sets. Raises InputError for what cannot be used.
    """
    rasters = {}
    for modality, name in files.items():
        try:
            paths = rasters_of(Path(name), modality)
        except UnusableError as error:
            where = ' '.join(filter(None, (modality, error.field)))
            raise InputError(f'{name}: {where}: {error.found}; {error.advice_for(name)}') from error
        for path in paths:
            field = modality if len(paths) == 1 else path.name
            rasters[field] = Raster(
                path,
                modality,
                sensor_file(config, modality),
                config.vrt,
                config.reproject,
                placed=config.georeference == 'required',
            )
            stack.callback(rasters[field].close)
    return rasters


def check_apart(rasters: Mapping[str, Raster]) -> None:
    """Raises InputError where two sensors would read the same channels of one file.

    A stack may be the file of several sensors, whose channels have names of their own.
    """
    for first, other in itertools.combinations(rasters.values(), 2):
        if first.modality == other.modality:
            continue
        files = [raster.file if raster.file.exists() else raster.file.parent for raster in (first, other)]
        # Of a product, whose rasters are made up, each sensor reads the bands of its name.
        inside = files[0] != first.file
        shared = {*first.bands} & {*other.bands} if inside else first.channels & other.channels
        if shared and files[0].samefile(files[1]):
            what = f'{"bands" if inside else "channels"} {", ".join(map(str, sorted(shared)))}'
            names = [option_name(raster.modality) for raster in (first, other)]
            settings = ' and '.join(f'{settings_name(raster.modality)}.bands' for raster in (first, other))
            raise InputError(
                f'{names[0]} and {names[1]} are the same file, {files[0]}, and both sensors would read its '
                f'{what}; give each sensor its own, or say with {settings} which channels are whose'
            )


def align(rasters: Mapping[str, Raster]) -> tuple[Grid, list[str]]:
    """The ground that all rasters cover, in pixels of the finest; each raster's `part` is set to it.

    One raster may contain the other, on the same pixel grid.

    Returns:
        The common extent, and what was left out, in words.

    Raises:
        InputError: another reference system, another place, or grids that do not meet.
    """
    first, *others = rasters.values()
    for other in others:
        _check_pair(first, other)
    shared = common([raster.extent for raster in rasters.values()])
    assert shared is not None
    for other in others:
        _check_corners(first, other, shared)
    lines = []
    for raster in rasters.values():
        rows, columns = raster.extent.rows, raster.extent.columns
        part = raster.part = window_onto(raster.extent, shared)
        if raster.extent.crs and raster.extent.crs != raster.header.grid.crs:
            assert raster.header.grid.crs is not None
            lines.append(
                f'{raster.file}: interpolated from {name_of(raster.header.grid.crs)} onto pixels of '
                f'{raster.extent.resolution:g} m in {name_of(raster.extent.crs)}'
            )
        if part != Window(0, 0, columns, rows):
            lines.append(
                f'{raster.file}: of {rows} x {columns} pixels, {part.height} x {part.width} from row '
                f'{part.row_off}, column {part.col_off} are encoded: what {_all(rasters)} cover'
            )
    return shared, lines


def _all(rasters: Mapping[str, Raster]) -> str:
    return 'both files' if len(rasters) == 2 else 'all files'


def _onto(first: Raster, other: Raster) -> str:
    """The remedy that puts the second file onto the grid of the first."""
    grid = first.extent
    if grid.crs is None:
        return 'cut them alike'
    command = warp(name_of(grid.crs), other.extent.resolution, grid.bounds, other.file)
    return f'bring one onto the other: {command}'


def _check_pair(first: Raster, other: Raster) -> None:
    """Raises InputError unless one raster lies in the other."""
    a, b = first.extent, other.extent
    advice = _onto(first, other)
    if a.crs != b.crs:
        assert a.crs is not None and b.crs is not None
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


def _check_corners(first: Raster, other: Raster, shared: Grid) -> None:
    """Raises InputError where the common ground begins within a pixel of either raster."""
    for extent in (first.extent, other.extent):
        for distance in (shared.left - extent.left, extent.top - shared.top):
            pixels = distance / extent.resolution
            if abs(pixels - round(pixels)) > SLACK:
                raise InputError(
                    f'{first.file} and {other.file} do not share a grid: their corners are off by '
                    f'{pixels:.3f} pixels of {extent.resolution:g} m; {_onto(first, other)}'
                )


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
