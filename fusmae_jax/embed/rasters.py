"""Input rasters: opened, checked, and read window by window, bands by name."""

import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import rasterio
import rasterio.errors
from rasterio.crs import CRS
from rasterio.enums import MaskFlags
from rasterio.windows import Window

from fusmae_jax import rio
from fusmae_jax.embed.settings import SensorFile
from fusmae_jax.errors import InputError, nearest

DRIVERS = ('GTiff', 'VRT')


class Extent(NamedTuple):
    """Where a raster lies on the ground, north up, in metres."""

    crs: CRS
    left: float
    top: float
    resolution: float
    rows: int
    columns: int

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """Left, bottom, right, top."""
        bottom = self.top - self.rows * self.resolution
        return self.left, bottom, self.left + self.columns * self.resolution, self.top


class Part(NamedTuple):
    """Pixels of a raster, the rows and columns that are used."""

    row: int
    column: int
    rows: int
    columns: int


class Raster:
    """One open input file: what it holds, and its pixels as float32 with NaN where there is no data."""

    def __init__(self, file: Path, modality: str, settings: SensorFile, nodata: tuple[float, ...] = ()):
        """Opens a file; raises InputError where it is none, or does not say what its pixels are.

        Args:
            file: a GeoTIFF or VRT.
            modality: the sensor, as the model calls it.
            settings: what was declared of the file.
            nodata: stored values without meaning in the model's training data.
        """
        self.file, self.modality = file, modality
        self.nodata = (*settings.nodata, *nodata)
        if not file.is_file():
            raise InputError(f'--{modality}={file}: there is no such file')
        try:
            with warnings.catch_warnings():
                # A file without a place on the ground gets an error of its own, in `_extent`.
                warnings.simplefilter('ignore', rasterio.errors.NotGeoreferencedWarning)
                self._dataset = rasterio.open(file)
        except rasterio.errors.RasterioIOError as error:
            raise InputError(f'{file}: not a GeoTIFF (or VRT) that can be read: {error}') from error
        try:
            if self._dataset.driver not in DRIVERS:
                raise InputError(f'{file}: is {self._dataset.driver}; make it a GeoTIFF: {rio.convert(file)}')
            self.extent = _extent(file, self._dataset)
            self.bands = _band_names(file, modality, self._dataset, settings.bands)
            self.scale, self.offset = _scaling(file, modality, self._dataset, settings)
            self.dtype = _dtype(file, self._dataset)
        except InputError:
            self._dataset.close()
            raise
        self._masked = any(MaskFlags.all_valid not in flags for flags in self._dataset.mask_flag_enums)
        self.part = Part(0, 0, self.extent.rows, self.extent.columns)

    def read(self, bands: Sequence[str], row: int, column: int, rows: int, columns: int) -> np.ndarray:
        """Pixels (rows, columns, bands) float32 as stored, NaN for nodata and outside of the used part.

        Args:
            bands: which ones, in this order.
            row: first row, counted from the used part.
            column: first column, likewise.
            rows: how many.
            columns: how many.
        """
        out = np.full((rows, columns, len(bands)), np.nan, np.float32)
        height, width = min(rows, self.part.rows - row), min(columns, self.part.columns - column)
        if height <= 0 or width <= 0:
            return out
        window = Window(self.part.column + column, self.part.row + row, width, height)
        indexes = [self.bands.index(band) + 1 for band in bands]
        try:
            stored = self._dataset.read(indexes, window=window, masked=self._masked)
        except rasterio.errors.RasterioError as error:
            raise InputError(
                f'{self.file}: {height} x {width} pixels from row {window.row_off}, column {window.col_off} '
                f'cannot be read ({error}); is the file complete?'
            ) from error
        values = np.ma.getdata(stored).astype(np.float32)
        if self._masked:
            values[np.ma.getmaskarray(stored)] = np.nan
        for value in self.nodata:
            values[np.ma.getdata(stored) == value] = np.nan
        values[np.isinf(values)] = np.nan
        out[:height, :width] = np.moveaxis(values, 0, -1)
        return out

    def close(self) -> None:
        """Closes the file."""
        self._dataset.close()


def band_name(text: str) -> str:
    """A band description as this project writes it: `B2`, `b02` and `B02` are one band."""
    name = text.strip().upper()
    return f'B0{found[1]}' if (found := re.fullmatch(r'B(\d)', name)) else name


def _band_names(
    file: Path, modality: str, dataset: rasterio.DatasetReader, given: tuple[str, ...]
) -> tuple[str, ...]:
    if given:
        names = tuple(band_name(band) for band in given)
        if len(names) != dataset.count:
            raise InputError(
                f'{file}: config.{modality}.bands names {len(names)} bands, the file has {dataset.count}'
            )
        return names
    names = tuple(band_name(text or '') for text in dataset.descriptions)
    if not all(names) or len(set(names)) < len(names):
        raise InputError(
            f'{file}: its {dataset.count} bands do not say which they are (descriptions: '
            f'{", ".join(name or "none" for name in names)}); name all of them, in the order of the file: '
            f"--config.{modality}.bands=\"('VV', 'VH')\""
        )
    return names


def _scaling(
    file: Path, modality: str, dataset: rasterio.DatasetReader, settings: SensorFile
) -> tuple[float, float]:
    """Scale and offset of the stored values: as set, or as the file's own tags say."""
    tags = set(zip(dataset.scales, dataset.offsets))
    if len(tags) > 1:
        raise InputError(f'{file}: its bands have different scales or offsets; apply them first (rio calc)')
    tagged, given = tags.pop(), (settings.scale, settings.offset)
    if given == (1.0, 0.0) or given == tagged:
        return tagged
    if tagged != (1.0, 0.0):
        raise InputError(
            f'{file}: states scale {tagged[0]:g} and offset {tagged[1]:g}, config.{modality} has scale '
            f'{given[0]:g} and offset {given[1]:g}; leave those at 1 and 0, or correct the file'
        )
    return given


def _dtype(file: Path, dataset: rasterio.DatasetReader) -> str:
    kinds = sorted(set(dataset.dtypes))
    if any('complex' in kind for kind in kinds):
        raise InputError(f'{file}: holds complex numbers; give detected backscatter, not single-look complex')
    return '/'.join(kinds)


def _extent(file: Path, dataset: rasterio.DatasetReader) -> Extent:
    step, crs = dataset.transform, dataset.crs
    if crs is None or step.is_identity:
        hint = 'it has ground control points only; ' if dataset.gcps[0] else ''
        raise InputError(
            f'{file}: has no reference system or no geotransform; {hint}{rio.georeference(file)}'
        )
    if step.b or step.d or step.a <= 0 or step.e >= 0:
        kind = 'rotated' if step.b or step.d else 'not north up'
        found = ', '.join(f'{value:g}' for value in step[:6])
        raise InputError(
            f'{file}: is {kind} (geotransform {found}); bring it onto a north-up grid: '
            f'{rio.warp_to_utm(file, dataset)}'
        )
    if not crs.is_projected or abs(crs.linear_units_factor[1] - 1) > 1e-9:
        unit = crs.linear_units_factor[0] if crs.is_projected else 'degree'
        raise InputError(
            f'{file}: its reference system ({name_of(crs)}) counts in {unit}, windows in metres: '
            f'{rio.warp_to_utm(file, dataset)}'
        )
    if abs(step.a + step.e) > 1e-6 * step.a:
        raise InputError(
            f'{file}: pixels of {step.a:g} x {-step.e:g} m are not square: '
            f'{rio.warp(file, step=step.a, dtype=dataset.dtypes[0], nodata=dataset.nodata)}'
        )
    return Extent(crs, step.c, step.f, step.a, dataset.height, dataset.width)


def name_of(crs: CRS) -> str:
    """A short name of a reference system: its EPSG code where it has one."""
    code = crs.to_epsg()
    return f'EPSG:{code}' if code else crs.to_wkt().split('"')[1]


def pick(raster: Raster, wanted: Sequence[str], absent: str) -> list[str]:
    """The bands of a raster that a model reads, in the model's order.

    Raises:
        InputError: a band is missing and `absent` is 'error', or not one of them is there.
    """
    found = [band for band in wanted if band in raster.bands]
    missing = [band for band in wanted if band not in raster.bands]
    if not found or (missing and absent == 'error'):
        raise InputError(
            f'{raster.file}: bands {", ".join(missing)} of {raster.modality} are missing; '
            f'{nearest(missing[0], raster.bands)} (found {", ".join(raster.bands)}); if they do not exist, '
            "--config.absent_bands=mean puts the model's mean in their place"
        )
    return found
