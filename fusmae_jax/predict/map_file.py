"""Maps as Cloud Optimized GeoTIFFs, written row by row: classes in colours, probabilities, numbers."""

import colorsys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fusmae_jax.embed.row_file import RowFile
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
    """Takes rows of a map from the top.

    The tiles of `embed.geotiff` are small, for the hundreds of numbers that an embedding has.
    """

    def __init__(self, file: Path, grid: Grid, bands: int, description: Mapping[str, Any], **profile: Any):
        """Creates the file; see `class_map` and `probability_map`."""
        self._rows = RowFile(file, grid, bands, TILE, description, compress='deflate', **profile)
        # Overviews of classes show the nearest pixel.
        kind = 'NEAREST' if profile['dtype'] == 'uint8' else 'AVERAGE'
        self._cog = {'COMPRESS': 'DEFLATE', 'OVERVIEW_RESAMPLING': kind}

    def name(
        self,
        bands: Sequence[str],
        palette: Mapping[int, tuple[int, int, int, int]],
        units: Sequence[str] = (),
    ) -> None:
        """Describes the bands and their units, and gives the first one its colours, if there are any."""
        dataset = self._rows.dataset
        dataset.descriptions = tuple(bands)
        if units:
            dataset.units = tuple(units)
        if palette:
            dataset.write_colormap(1, dict(palette))

    def write(self, values: np.ndarray) -> None:
        """The next rows (rows, columns, bands)."""
        self._rows.write(values)

    def finish(self) -> None:
        """Writes what waits, lays the file out as a COG, and looks whether all of it is there."""
        self._rows.finish(self._cog)

    def abort(self) -> None:
        """Closes the file, which the caller removes."""
        self._rows.abort()


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
