"""A map of classes as a Cloud Optimized GeoTIFF with a colour table, written row by row."""

import colorsys
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.errors
import rasterio.shutil
from rasterio.windows import Window

from fusmae_jax.embed.geotiff import TAG
from fusmae_jax.errors import InputError
from fusmae_jax.geo.grid import Grid

NOTHING = 255  # where no sensor measured anything
TILE = 256
Colour = tuple[int, int, int]


def colours(count: int) -> list[Colour]:
    """As many colours as there are classes; neighbours in the list lie far apart on the circle of hues."""
    shown = []
    for number in range(count):
        hue, light = number * 0.618034 % 1, (0.45, 0.65, 0.3)[number // 8 % 3]
        shown.append(tuple(round(255 * x) for x in colorsys.hls_to_rgb(hue, light, 0.65)))
    return shown  # type: ignore[return-value]


class ClassMap:
    """Takes rows of class numbers from the top; whole tiles are written, so that nothing is read back."""

    def __init__(self, file: Path, grid: Grid, palette: list[Colour], description: Mapping[str, Any]):
        """Creates the file."""
        self._file, self._grid = file, grid
        self._waiting = np.zeros((0, grid.columns), np.uint8)
        self._next = 0
        self._dataset = rasterio.open(
            file,
            'w',
            driver='GTiff',
            width=grid.columns,
            height=grid.rows,
            count=1,
            dtype='uint8',
            crs=grid.crs,
            transform=grid.transform,
            nodata=NOTHING,
            tiled=True,
            blockxsize=TILE,
            blockysize=TILE,
            compress='deflate',
        )
        self._dataset.update_tags(**{TAG: json.dumps(description)})
        table = {number: (*colour, 255) for number, colour in enumerate(palette)}
        self._dataset.write_colormap(1, table | {NOTHING: (0, 0, 0, 0)})

    def write(self, numbers: np.ndarray) -> None:
        """The next rows (rows, columns) uint8."""
        rows = np.concatenate([self._waiting, numbers])
        whole = len(rows) // TILE * TILE
        if whole:
            self._put(rows[:whole])
        self._waiting = rows[whole:].copy()

    def _put(self, rows: np.ndarray) -> None:
        window = Window(0, self._next, self._grid.columns, len(rows))
        self._guard(self._dataset.write, rows, 1, window=window)
        self._next += len(rows)

    def _guard(self, write: Callable[..., Any], *values: Any, **options: Any) -> None:
        try:
            write(*values, **options)
        except rasterio.errors.RasterioError as error:
            raise InputError(f'{self._file}: cannot be written ({error}); is the disk full?') from error

    def finish(self) -> None:
        """Writes what waits, and lays the file out as a COG; overviews show the nearest pixel."""
        if len(self._waiting):
            self._put(self._waiting)
        self._dataset.close()
        copy = self._file.with_name(f'{self._file.name}.cog')
        try:
            options = {'driver': 'COG', 'COMPRESS': 'DEFLATE', 'OVERVIEW_RESAMPLING': 'NEAREST'}
            self._guard(rasterio.shutil.copy, self._file, copy, **options)
            os.replace(copy, self._file)
        finally:
            copy.unlink(missing_ok=True)

    def abort(self) -> None:
        """Closes the file, which the caller removes."""
        self._dataset.close()
