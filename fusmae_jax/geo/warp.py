"""A raster in degrees, or in another system whose metres are none of ground, seen on a grid in UTM.

Pixels are interpolated bilinearly between those that were measured; whoever fetches them makes power of
backscatter. A pixel is missing where the nearest one of the file is.
"""

import math
from collections.abc import Callable

import numpy as np
import rasterio.errors
import rasterio.warp
from rasterio.windows import Window

from fusmae_jax.geo import UnusableError
from fusmae_jax.geo.grid import Grid, check_grid, name_of, pixel_ground, utm_near, whole_step

# Pixels between places whose coordinates are computed exactly; in between a meridian bends by millimetres.
_EVERY = 32
CLOSE = 1.5  # a grid may be finer or coarser than the file by this factor, along its longer side
Fetch = Callable[
    [Window], np.ndarray
]  # pixels of the file: (bands, rows, columns) float64, NaN where invalid


class Warp:
    """A file on a grid of square pixels in the UTM zone around its middle, at multiples of their size."""

    def __init__(self, source: Grid, step: float):
        """Settles the grid, of pixels of `step` metres.

        Raises UnusableError where the file has no place, is rotated, or has pixels of quite another size.
        """
        if (
            source.crs is None
            or not source.placed
            or source.turned
            or source.step_y <= 0
            or source.step_x <= 0
        ):
            check_grid(source)
        assert source.crs is not None
        self._source, self._zone = source, utm_near(source)
        try:
            left, bottom, right, top = rasterio.warp.transform_bounds(
                source.crs, self._zone, *source.bounds, densify_pts=21
            )
        except rasterio.errors.RasterioError as error:
            message = f'{name_of(source.crs)} does not reach to where the image is said to lie ({error})'
            raise UnusableError('CRS', message, 'correct its reference system or geotransform') from error
        longest = max(pixel_ground(source))
        if not longest / CLOSE <= step <= longest * CLOSE:
            message = f'its pixels are {longest:.3g} m of ground, the grid that is asked for {step:g} m'
            raise UnusableError(
                'pixel size', message, f'config.reproject={whole_step(longest):g}, or resample it yourself'
            )
        left, top = math.floor(left / step) * step, math.ceil(top / step) * step
        rows, columns = math.ceil((top - bottom) / step), math.ceil((right - left) / step)
        crs = rasterio.crs.CRS.from_string(self._zone)
        self.grid = Grid(crs.to_epsg(), left, top, step, step, rows, columns, crs=crs)
        # A scene of many zones would be stretched at its ends.
        check_grid(self.grid)

    def read(self, fetch: Fetch, window: Window) -> np.ndarray:
        """A window of the grid, (bands, rows, columns) float64, NaN where nothing was measured."""
        row, column = self._place(window)
        source = self._source
        first_row, first_column = (max(0, math.floor(x.min())) for x in (row, column))
        last_row = min(source.rows - 1, math.floor(row.max()) + 1)
        last_column = min(source.columns - 1, math.floor(column.max()) + 1)
        if last_row < first_row or last_column < first_column:
            probe = fetch(Window(0, 0, 1, 1))
            return np.full((len(probe), *row.shape), np.nan)
        height, width = last_row - first_row + 1, last_column - first_column + 1
        pixels = fetch(Window(first_column, first_row, width, height))
        return _bilinear(pixels, row - first_row, column - first_column)

    def _place(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """Row and column in the file, from the middle of its first pixel, for every pixel of a window."""
        grid, source = self.grid, self._source
        y, x = _nodes(window.row_off, window.height), _nodes(window.col_off, window.width)
        easting = grid.left + (x + 0.5) * grid.step_x
        northing = grid.top - (y + 0.5) * grid.step_y
        eastings, northings = (side.ravel() for side in np.meshgrid(easting, northing))
        xs, ys = rasterio.warp.transform(self._zone, source.crs, eastings, northings)
        across, down = (np.reshape(side, (len(y), len(x))) for side in (xs, ys))
        if source.crs is not None and source.crs.is_geographic:
            # Files across the 180th meridian count on beyond it.
            middle = source.left + source.step_x * source.columns / 2
            across = across + 360 * np.round((middle - across) / 360)
        column = (across - source.left) / source.step_x - 0.5
        row = (source.top - down) / source.step_y - 0.5
        return _between(row, y, x, window), _between(column, y, x, window)


def _nodes(begin: int, length: int) -> np.ndarray:
    """Every 32nd pixel of the grid around some, so that a pixel has one place in every window."""
    return np.arange(begin // _EVERY, (begin + length - 1) // _EVERY + 2) * _EVERY


def _between(values: np.ndarray, y: np.ndarray, x: np.ndarray, window: Window) -> np.ndarray:
    """Values at nodes (y, x), linearly between them, for every pixel of a window."""
    rows, columns = window.row_off + np.arange(window.height), window.col_off + np.arange(window.width)
    wide = np.stack([np.interp(columns, x, line) for line in values])
    return np.stack([np.interp(rows, y, line) for line in wide.T], axis=1)


def _bilinear(pixels: np.ndarray, row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """(bands, ...) at rows and columns of pixels; of four neighbours the valid ones count."""
    padded = np.pad(pixels, ((0, 0), (1, 1), (1, 1)), constant_values=np.nan)
    rows, columns = pixels.shape[1:]
    top, left = np.floor(row), np.floor(column)
    total, weights = np.zeros((len(pixels), *row.shape)), np.zeros((len(pixels), *row.shape))
    for down in (0, 1):
        for across in (0, 1):
            y, x = (top + down).astype(int), (left + across).astype(int)
            inside = (y >= -1) & (y <= rows) & (x >= -1) & (x <= columns)
            near = padded[:, np.where(inside, y, -1) + 1, np.where(inside, x, -1) + 1]
            weight = np.abs(1 - down - (row - top)) * np.abs(1 - across - (column - left))
            there = np.where(np.isfinite(near), weight, 0)
            total, weights = total + np.where(there > 0, near, 0) * there, weights + there
    y, x = np.rint(row).astype(int), np.rint(column).astype(int)
    inside = (y >= 0) & (y < rows) & (x >= 0) & (x < columns)
    nearest = padded[:, np.where(inside, y, -1) + 1, np.where(inside, x, -1) + 1]
    with np.errstate(invalid='ignore', divide='ignore'):
        return np.where(np.isfinite(nearest), total / weights, np.nan)
