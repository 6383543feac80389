"""Grids of rasters, the ground that they share, and how long their metres are on the ground."""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import rasterio
import rasterio.errors
import rasterio.warp
from rasterio.crs import CRS
from rasterio.transform import Affine
from rasterio.windows import Window

from fusmae_jax.geo import UnusableError, rio

SLACK = 1e-3  # pixels; grids that differ by less are the same
# A metre of the reference system may be this much shorter or longer on the ground. Zones of UTM stay within
# 0.001, national systems within 0.01, those of a continent within 0.04; Mercator leaves it at 18 degrees.
DISTORTION = 0.05
_STEP = 500.0  # metres to each side over which the length of a metre is measured
_BLOCK = 10_000.0  # metres; it changes too slowly to be measured anew for every patch
_AXIS, _E2 = 6_378_137.0, 0.00669437999014  # of the WGS84 ellipsoid: metres, squared eccentricity


class Place(NamedTuple):
    """Where an image lies on the ground."""

    epsg: int
    left: float  # easting of the upper left corner, metres
    top: float  # northing of the upper left corner, metres


class Grid(NamedTuple):
    """The pixels of a raster on the ground."""

    epsg: int | None  # None: no reference system, or one without a code
    left: float
    top: float
    step_x: float  # metres (or degrees) a pixel to the right
    step_y: float  # the same downwards; positive for an image that is north up
    rows: int
    columns: int
    turned: bool = False  # rows and columns do not run along the axes of the reference system
    crs: CRS | None = None  # the reference system itself, where a file has one

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """Left, bottom, right, top, in the order of rasterio."""
        bottom, right = self.top - self.rows * self.step_y, self.left + self.columns * self.step_x
        return self.left, bottom, right, self.top

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom."""
        left, bottom, right, top = self.bounds
        return left, top, right, bottom

    @property
    def resolution(self) -> float:
        """Metres a pixel, of square ones."""
        return self.step_x

    @property
    def placed(self) -> bool:
        """Whether there is a geotransform at all: rasterio gives the identity where there is none."""
        return self.turned or (self.left, self.top, self.step_x, self.step_y) != (0, 0, 1, -1)

    @property
    def transform(self) -> Affine:
        """Column and row to easting and northing."""
        return Affine(self.step_x, 0.0, self.left, 0.0, -self.step_y, self.top)

    def corners(self, rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, ...]:
        """Left, bottom, right and top of pixels, each as long as `rows`."""
        left, right = self.left + columns * self.step_x, self.left + (columns + 1) * self.step_x
        top, bottom = self.top - rows * self.step_y, self.top - (rows + 1) * self.step_y
        return left, bottom, right, top


def grid_of(dataset: rasterio.DatasetReader) -> Grid:
    """The grid of an open raster."""
    step, crs = dataset.transform, dataset.crs
    return Grid(
        crs.to_epsg() if crs else None,
        step.c,
        step.f,
        step.a,
        -step.e,
        dataset.height,
        dataset.width,
        turned=bool(step.b or step.d),
        crs=crs or None,
    )


def unplaced(rows: int, columns: int, pixel: float) -> Grid:
    """The grid of a chip without a place: pixels of so many metres, its lower left corner at 0, 0."""
    return Grid(None, 0.0, pixel * rows, pixel, pixel, rows, columns)


def check_grid(grid: Grid, points: bool = False, dtype: str = '', nodata: float | None = None) -> None:
    """Raises UnusableError unless pixels are square, north up, in metres that are metres of ground.

    `points`: the file has ground control points; its type and nodata value go into the remedy.
    """
    values: dict[str, Any] = {'dtype': dtype, 'nodata': nodata}
    crs = grid.crs
    if crs is None or not grid.placed:
        message = 'no geotransform' if crs else 'no reference system'
        message += ', ground control points only' if points else ''
        raise UnusableError('CRS', message, rio.georeference('IN.tif'))
    if not crs.is_projected or abs(crs.linear_units_factor[1] - 1) > 1e-9:
        unit = crs.linear_units_factor[0] if crs.is_projected else 'degree'
        step = whole_step(max(pixel_ground(grid))) if crs.is_geographic and not grid.turned else 10.0
        advice = warp(utm_near(grid) if not grid.turned else 'EPSG:326NN', step, **values)
        raise UnusableError(
            'CRS', f'{name_of(crs)} counts in {unit}, expected a projected one in metres', advice
        )
    if grid.turned or grid.step_x <= 0 or grid.step_y <= 0:
        message = f'{"rotated" if grid.turned else "not north up"}, expected square pixels, north up'
        raise UnusableError('pixel size', message, warp(name_of(crs), **values))
    if abs(grid.step_x - grid.step_y) > 1e-6 * grid.step_x:
        message = f'{grid.step_x:g} x {grid.step_y:g} m are not square'
        raise UnusableError('pixel size', message, warp(name_of(crs), grid.step_x, **values))
    _check_ground(grid, crs, values)


def _check_ground(grid: Grid, crs: CRS, values: Mapping[str, Any]) -> None:
    """Raises UnusableError where a metre of the reference system is not a metre on the ground."""
    right, down, skew = ground_scale(grid)
    if max(abs(right - 1), abs(down - 1), abs(skew)) <= DISTORTION:
        return
    message = f'a metre of {name_of(crs)} is {right:.3f} m of ground from west to east here, {down:.3f} m '
    message += f'from north to south: pixels of {grid.step_x:g} m are not what they say'
    if not math.isfinite(right + down + skew):
        message = f'{name_of(crs)} does not reach to where the image is said to lie'
    raise UnusableError('CRS', message, warp(utm_near(grid), **values))


def pixel_ground(grid: Grid) -> tuple[float, float]:
    """Metres of ground of a pixel in the middle, to the right and down, in any reference system."""
    assert grid.crs is not None
    left, bottom, right, top = grid.bounds
    x, y = (left + right) / 2, (bottom + top) / 2
    return _chords(grid.crs, x, y, abs(grid.step_x) / 2, abs(grid.step_y) / 2)[:2]


def whole_step(metres: float) -> float:
    """The pixel size of Sentinel next to a length, or the length itself where that is quite another."""
    near = min((10.0, 20.0, 60.0), key=lambda size: abs(math.log(size / metres)))
    return near if abs(near / metres - 1) < 0.2 else float(f'{metres:.2g}')


def ground_scale(grid: Grid) -> tuple[float, float, float]:
    """Metres on the ground for a metre to the right and one down, and the cosine between the two.

    The worst of middle and corners; NaN where a place is not on Earth. Of a grid in metres.
    """
    assert grid.crs is not None
    left, bottom, right, top = grid.bounds
    points = [
        ((left + right) / 2, (bottom + top) / 2),
        *((x, y) for x in (left, right) for y in (bottom, top)),
    ]
    places = {(round(x / _BLOCK) * _BLOCK, round(y / _BLOCK) * _BLOCK) for x, y in points}
    # By code where there is one: results are kept under this text, and a definition is long.
    key = grid.crs.to_wkt() if grid.epsg is None else f'EPSG:{grid.epsg}'
    scales = [_local_scale(key, *place) for place in sorted(places)]
    return max(scales, key=lambda scale: math.inf if math.isnan(sum(scale)) else _distortion(scale))


def _distortion(scale: tuple[float, float, float]) -> float:
    right, down, skew = scale
    return max(abs(right - 1), abs(down - 1), abs(skew))


@functools.lru_cache(maxsize=4096)
def _local_scale(crs: str, x: float, y: float) -> tuple[float, float, float]:
    """`ground_scale` at one place."""
    across, along, skew = _chords(crs, x, y, _STEP, _STEP)
    return across / (2 * _STEP), along / (2 * _STEP), skew


def _chords(crs: Any, x: float, y: float, half_x: float, half_y: float) -> tuple[float, float, float]:
    """Metres between the ends of a cross, and the cosine between its arms; NaN where that is not on Earth.

    Along chords of WGS84, which have no pole and no date line.
    """
    xs, ys = [x - half_x, x + half_x, x, x], [y, y, y + half_y, y - half_y]
    try:
        longitude, latitude = rasterio.warp.transform(crs, 'EPSG:4326', xs, ys)
    except rasterio.errors.RasterioError:
        return math.nan, math.nan, math.nan
    phi, lam = np.radians(latitude), np.radians(longitude)
    with np.errstate(invalid='ignore'):
        normal = _AXIS / np.sqrt(1 - _E2 * np.sin(phi) ** 2)
        points = np.stack(
            [
                normal * np.cos(phi) * np.cos(lam),
                normal * np.cos(phi) * np.sin(lam),
                normal * (1 - _E2) * np.sin(phi),
            ]
        )
        right, down = points[:, 1] - points[:, 0], points[:, 3] - points[:, 2]
        across, along = np.linalg.norm(right), np.linalg.norm(down)
        skew = right @ down / (across * along)
    return float(across), float(along), float(skew)


def utm_near(grid: Grid) -> str:
    """The UTM zone around the middle of a grid, such as EPSG:32633; EPSG:326NN where that is not known."""
    assert grid.crs is not None
    left, bottom, right, top = grid.bounds
    try:
        (longitude,), (latitude,) = rasterio.warp.transform(
            grid.crs, 'EPSG:4326', [(left + right) / 2], [(bottom + top) / 2]
        )
    except rasterio.errors.RasterioError:
        return 'EPSG:326NN'
    if not (math.isfinite(longitude) and abs(latitude) <= 90):
        return 'EPSG:326NN'
    zone = int((longitude + 180) // 6) % 60 + 1
    return f'EPSG:{(32600 if latitude >= 0 else 32700) + zone}'


def warp(
    crs: str = 'EPSG:326NN',
    step: float = 10.0,
    bounds: Sequence[float] = (),
    file: object = 'IN.tif',
    *,
    dtype: str = '',
    nodata: float | None = None,
) -> str:
    """The command that brings a file onto a grid; its names of bands and its tags do not come along."""
    zone = ', with the UTM zone for NN' if 'NN' in crs else ''
    return rio.warp(file, crs=crs, bounds=bounds, step=step, dtype=dtype, nodata=nodata) + zone


def name_of(crs: CRS) -> str:
    """A short name of a reference system: its EPSG code where it has one."""
    code = crs.to_epsg()
    return f'EPSG:{code}' if code else crs.to_wkt().split('"')[1]


def common(grids: Sequence[Grid]) -> Grid | None:
    """The ground that all grids cover, on the finest of them; None if they share none."""
    first = grids[0]
    if any(grid.turned or grid.step_y <= 0 or not _same_system(grid, first) for grid in grids):
        return None
    left, bottom = (max(grid.bounds[i] for grid in grids) for i in (0, 1))
    right, top = (min(grid.bounds[i] for grid in grids) for i in (2, 3))
    finest = min(grids, key=lambda grid: grid.step_x)
    # With SLACK a last pixel counts in full though rounding in a file has made it a little shorter.
    rows = math.floor((top - bottom) / finest.step_y + SLACK)
    columns = math.floor((right - left) / finest.step_x + SLACK)
    if rows < 1 or columns < 1:
        return None
    return finest._replace(left=left, top=top, rows=rows, columns=columns)


def _same_system(grid: Grid, other: Grid) -> bool:
    return grid.epsg == other.epsg and (grid.epsg is not None or grid.crs == other.crs)


def window_onto(grid: Grid, shared: Grid, window: Window | None = None) -> Window:
    """The pixels of a grid that cover a window of a shared grid (None: all of it), the last in part."""
    window = window or Window(0, 0, shared.columns, shared.rows)
    column = round((shared.left + window.col_off * shared.step_x - grid.left) / grid.step_x)
    row = round((grid.top - shared.top + window.row_off * shared.step_y) / grid.step_y)
    column, row = min(column, grid.columns - 1), min(row, grid.rows - 1)
    # Pixels that are covered in part are read too, but none that only rounding makes a part of it.
    width = math.ceil(window.width * shared.step_x / grid.step_x - SLACK)
    height = math.ceil(window.height * shared.step_y / grid.step_y - SLACK)
    return Window(column, row, min(width, grid.columns - column), min(height, grid.rows - row))
