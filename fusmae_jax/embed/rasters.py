"""Input rasters: opened, checked, and read window by window, bands by name."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import rasterio.errors
from rasterio.windows import Window

from fusmae_jax.embed.settings import SensorFile, settings_name
from fusmae_jax.errors import InputError, nearest
from fusmae_jax.geo import UnusableError, raster
from fusmae_jax.geo.bands import SKIP, by_description, by_setting, check_unique, spelt
from fusmae_jax.geo.grid import Grid, check_grid, pixel_ground, unplaced, whole_step, window_onto
from fusmae_jax.geo.values import Declared, values_of
from fusmae_jax.geo.warp import Warp


class Raster:
    """One open input file: what it holds, and its pixels as float32 with NaN where there is no data."""

    def __init__(
        self,
        file: Path,
        modality: str,
        settings: SensorFile,
        vrt: bool = False,
        reproject: float = 0.0,
        placed: bool = True,
    ):
        """Opens a file; raises InputError where it is none, or does not say what its pixels are.

        Args:
            file: a GeoTIFF, or one of `products.rasters_of`.
            modality: the sensor, as the model calls it.
            settings: what was declared of the file.
            vrt: take a VRT of local GeoTIFFs as well.
            reproject: pixel size in UTM that a file in degrees is interpolated to; 0 refuses it.
            placed: False: the file is a chip without a place, of pixels as large as the settings say.
        """
        self.file, self.modality, self._unit = file, modality, settings.unit
        self._reproject, self._placed = reproject, placed
        try:
            self._dataset = raster.open_raster(file, vrt=vrt)
            try:
                self._read_header(settings)
            except BaseException:
                self._dataset.close()
                raise
        except UnusableError as error:
            where = ' '.join(filter(None, (modality, error.field)))
            problem = f'{file}: {where}: {error.found}'
            raise InputError('; '.join(filter(None, (problem, error.advice_for(file))))) from error
        except rasterio.errors.RasterioError as error:
            raise InputError(f'{file}: {modality}: its header cannot be read ({error})') from error

    def _read_header(self, settings: SensorFile) -> None:
        names = _names(self._dataset, self.modality, settings.bands)
        self.header = raster.read_header(self.file, self._dataset, names)
        self.bands = tuple(name for name in names if name)
        self.dtype = self.header.dtype
        if 'complex' in self.dtype:
            advice = 'give detected backscatter, not single-look complex'
            raise UnusableError('dtype', f'complex numbers ({self.dtype})', advice)
        self.extent, self._warp = self._ground(settings)
        prefix, offset = f'{settings_name(self.modality)}.', settings.offset
        declared = Declared(
            prefix,
            settings.unit,
            settings.scale,
            offset,
            settings.nodata,
            settings.product.calibration,
            product='product.',
        )
        self.scale, self.offset, self.nodata = values_of(self.header, self.modality, declared)
        self.part = window_onto(self.extent, self.extent)

    def _ground(self, settings: SensorFile) -> tuple[Grid, Warp | None]:
        """The grid that pixels are read on, and how they get there; None: as they lie in the file."""
        grid, header = self.header.grid, self.header
        if not self._placed:
            if not settings.pixel:
                advice = f'say how large a pixel is, in metres: --{settings_name(self.modality)}.pixel=10'
                raise UnusableError('pixel size', "not known, with georeference='none'", advice)
            return unplaced(grid.rows, grid.columns, settings.pixel), None
        try:
            check_grid(grid, header.points, header.dtypes[0], header.nodatas[0])
        except UnusableError as error:
            here = grid.crs is not None and grid.placed and not grid.turned and grid.step_y > 0
            if self._reproject and here:
                warp = Warp(grid, self._reproject)
                return warp.grid, warp
            if here:
                step = whole_step(max(pixel_ground(grid)))
                error.advice = f'--config.reproject={step:g} interpolates on the fly; or once: {error.advice}'
            elif (grid.crs is None or not grid.placed) and not header.points:
                error.advice += '; for chips whose place does not matter: --config.georeference=none'
            raise
        return grid, None

    def read(self, bands: Sequence[str], row: int, column: int, rows: int, columns: int) -> np.ndarray:
        """Pixels (rows, columns, bands) float32 as stored, NaN for nodata and outside of the used part.

        Args:
            bands: which ones, in this order.
            row: first row, counted from the used part; may be negative.
            column: first column, likewise.
            rows: how many.
            columns: how many.
        """
        out = np.full((rows, columns, len(bands)), np.nan, np.float32)
        top, left = max(0, -row), max(0, -column)
        height = min(row + rows, self.part.height) - (row + top)
        width = min(column + columns, self.part.width) - (column + left)
        if height <= 0 or width <= 0:
            return out
        first = self.part.row_off + row + top, self.part.col_off + column + left
        window = Window(first[1], first[0], width, height)
        channels = [self.header.bands.index(band) + 1 for band in bands]
        if self._warp is None:
            values = self._pixels(channels, window)
        else:
            values = self._warp.read(lambda part: self._to_power(self._pixels(channels, part)), window)
            values = self._from_power(values)
        out[top : top + height, left : left + width] = np.moveaxis(values, 0, -1)
        return out

    def _pixels(self, channels: Sequence[int], window: Window) -> np.ndarray:
        """Pixels of the file (bands, rows, columns) float32 as stored, NaN where there are none."""
        try:
            stored = raster.read_valid(self._dataset, self.header, channels, window)
        except rasterio.errors.RasterioError as error:
            raise InputError(
                f'{self.file}: {window.height} x {window.width} pixels from row {window.row_off}, column '
                f'{window.col_off} cannot be read ({error}); is the file complete?'
            ) from error
        values = stored.astype(np.float32)
        for value in self.nodata:
            # As stored: float32 cannot tell large whole numbers apart.
            values[stored == (value if stored.dtype.kind == 'f' else int(value))] = np.nan
        values[np.isinf(values)] = np.nan
        return values

    def _to_power(self, stored: np.ndarray) -> np.ndarray:
        """Stored numbers as what may be averaged: backscatter as power, reflectance as it is."""
        values = stored.astype(np.float64) * self.scale + self.offset
        if self._unit == 'dB':
            return 10 ** (values / 10)
        return values**2 if self._unit == 'amplitude' else values

    def _from_power(self, values: np.ndarray) -> np.ndarray:
        """The inverse of `_to_power`."""
        if self._unit == 'dB':
            values = 10 * np.log10(values)
        elif self._unit == 'amplitude':
            values = np.sqrt(values)
        return (values - self.offset) / self.scale

    def tags(self) -> dict[str, str]:
        """What the file says of its making, as text."""
        return self._dataset.tags() | self._dataset.tags(ns='IMAGERY')

    @property
    def channels(self) -> frozenset[int]:
        """The channels of the file that are read, counted from 1."""
        return frozenset(i for i, band in enumerate(self.header.bands, 1) if band)

    def close(self) -> None:
        """Closes the file."""
        self._dataset.close()


def _names(dataset: rasterio.DatasetReader, modality: str, given: tuple[str, ...]) -> tuple[str, ...]:
    """The band of each channel, '' for one left out; raises UnusableError for one without a name."""
    texts, setting = raster.descriptions(dataset), f'{settings_name(modality)}.bands'
    if given:
        names = by_setting(texts, modality, given, setting)
    else:
        described = by_description(texts, modality)
        # A model may know bands that Sentinel does not have, such as the angle of incidence.
        names = tuple(spelt(text, modality) if band is None else band for text, band in zip(texts, described))
        if unknown := [
            i for i, (band, name) in enumerate(zip(described, names), 1) if band is None and not name
        ]:
            raise UnusableError(
                'bands',
                f'channel {", ".join(map(str, unknown))} of {len(texts)} does not say which it is '
                f'(descriptions: {", ".join(text or "none" for text in texts)})',
                f'name all of them, in the order of the file, {SKIP!r} for one to leave out: '
                f"--{setting}=\"('VV', 'VH')\"",
            )
    check_unique(names, setting)
    return names


def pick(rasters: Mapping[str, Raster], wanted: Sequence[str], absent: str) -> dict[str, list[str]]:
    """The bands of the rasters of one sensor that a model reads: field -> bands, in the model's order.

    Raises:
        InputError: a band is missing and `absent` is 'error', or not one of them is there.
    """
    first = next(iter(rasters.values()))
    there = [band for raster in rasters.values() for band in raster.bands]
    missing = [band for band in wanted if band not in there]
    if len(missing) == len(wanted) or (missing and absent == 'error'):
        raise InputError(
            f'{first.file}: bands {", ".join(missing)} of {first.modality} are missing; '
            f'{nearest(missing[0], there)} (found {", ".join(there)}); if they do not exist, '
            "--config.absent_bands=mean puts the model's mean in their place"
        )
    return {name: [band for band in wanted if band in raster.bands] for name, raster in rasters.items()}
