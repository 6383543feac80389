"""Maps as Cloud Optimized GeoTIFFs, written row by row: classes in colours, probabilities, numbers."""

import colorsys
import json
import os
from collections.abc import Callable, Mapping, Sequence
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


class MapFile:
    """Takes rows of a map from the top; whole tiles are written, so that nothing is read back.

    The tiles of `embed.geotiff` are small, for the hundreds of numbers that an embedding has.
    """

    def __init__(self, file: Path, grid: Grid, bands: int, description: Mapping[str, Any], **profile: Any):
        """Creates the file; see `class_map` and `probability_map`."""
        self._file, self._grid = file, grid
        self._waiting = np.zeros((0, grid.columns, bands), profile['dtype'])
        self._next = 0
        self._dataset = rasterio.open(
            file,
            'w',
            driver='GTiff',
            width=grid.columns,
            height=grid.rows,
            count=bands,
            crs=grid.crs,
            transform=grid.transform,
            tiled=True,
            blockxsize=TILE,
            blockysize=TILE,
            compress='deflate',
            BIGTIFF='IF_SAFER',
            **profile,
        )
        self._dataset.update_tags(**{TAG: json.dumps(description)})

    def name(
        self,
        bands: Sequence[str],
        palette: Mapping[int, tuple[int, int, int, int]],
        units: Sequence[str] = (),
    ) -> None:
        """Describes the bands and their units, and gives the first one its colours, if there are any."""
        self._dataset.descriptions = tuple(bands)
        if units:
            self._dataset.units = tuple(units)
        if palette:
            self._dataset.write_colormap(1, dict(palette))

    def write(self, values: np.ndarray) -> None:
        """The next rows (rows, columns, bands)."""
        rows = np.concatenate([self._waiting, values])
        whole = len(rows) // TILE * TILE
        if whole:
            self._put(rows[:whole])
        self._waiting = rows[whole:].copy()

    def _put(self, rows: np.ndarray) -> None:
        window = Window(0, self._next, self._grid.columns, len(rows))
        self._guard(self._dataset.write, np.moveaxis(rows, -1, 0), window=window)
        self._next += len(rows)

    def _guard(self, write: Callable[..., Any], *values: Any, **options: Any) -> None:
        try:
            write(*values, **options)
        except rasterio.errors.RasterioError as error:
            raise InputError(f'{self._file}: cannot be written ({error}); is the disk full?') from error

    def finish(self) -> None:
        """Writes what waits, and lays the file out as a COG; overviews of classes show the nearest pixel."""
        if len(self._waiting):
            self._put(self._waiting)
        self._dataset.close()
        copy = self._file.with_name(f'{self._file.name}.cog')
        try:
            kind = 'NEAREST' if self._dataset.dtypes[0] == 'uint8' else 'AVERAGE'
            options = {'driver': 'COG', 'COMPRESS': 'DEFLATE', 'OVERVIEW_RESAMPLING': kind}
            self._guard(rasterio.shutil.copy, self._file, copy, **options)
            os.replace(copy, self._file)
        finally:
            copy.unlink(missing_ok=True)

    def abort(self) -> None:
        """Closes the file, which the caller removes."""
        self._dataset.close()


def class_map(file: Path, grid: Grid, palette: Sequence[Colour], description: Mapping[str, Any]) -> MapFile:
    """A map of class numbers in 8 bits, NOTHING where there is none."""
    opened = MapFile(file, grid, 1, description, dtype='uint8', nodata=NOTHING)
    shown = {number: (*colour, 255) for number, colour in enumerate(palette)}
    opened.name(['class'], shown | {NOTHING: (0, 0, 0, 0)})
    return opened


def probability_map(
    file: Path, grid: Grid, classes: Sequence[str], description: Mapping[str, Any]
) -> MapFile:
    """A band of probabilities for each class, float32, NaN where there is none."""
    opened = MapFile(file, grid, len(classes), description, dtype='float32', nodata=np.nan)
    opened.name(classes, {})
    return opened


def number_map(file: Path, grid: Grid, quantity: str, unit: str, description: Mapping[str, Any]) -> MapFile:
    """A map of numbers, float32, NaN where there is none; the unit stands where GeoTIFFs have it."""
    opened = MapFile(file, grid, 1, description, dtype='float32', nodata=np.nan)
    opened.name([quantity], {}, [unit] if unit else [])
    return opened
