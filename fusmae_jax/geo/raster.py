"""Opening a GeoTIFF, what its header says, and which of its pixels are valid.

Every raster of the project is opened here, as a GeoTIFF (a COG is one) and as nothing else: other formats
follow paths and addresses that stand in the file, so that a file from elsewhere would read other files and
fetch from the network. Only the band files of a Sentinel-2 product are JPEG 2000 (`products.py`). GDAL
opens masks and overviews beside a file in any format, so these are looked at before it does.
"""

import math
import os
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import rasterio
import rasterio.errors
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.io import MemoryFile
from rasterio.windows import Window

from fusmae_jax.geo import UnusableError
from fusmae_jax.geo.bands import BANDS, band_of
from fusmae_jax.geo.formats import MAKE, TIFF, begins, check_beside, check_source
from fusmae_jax.geo.grid import Grid, Place, grid_of
from fusmae_jax.geo.products import check_part, stack_of
from fusmae_jax.geo.stack import Stack, open_stack
from fusmae_jax.geo.vrt import checked_vrt

# Published archives have no files beside the images: no search for them.
PUBLISHED = {'GDAL_DISABLE_READDIR_ON_OPEN': 'EMPTY_DIR'}
# Files beside a user's image (.aux.xml, .msk) are looked up by name, without listing the folder each time.
BESIDE = {'GDAL_DISABLE_READDIR_ON_OPEN': 'TRUE'}
# The code of the reference system is taken from the file's keys; its full definition is not looked up again.
# A third faster.
KEYS = {'GTIFF_SRS_SOURCE': 'GEOKEYS'}

T = TypeVar('T')


@contextmanager
def opened(file: Path, **options: str) -> Iterator[rasterio.DatasetReader]:
    """An open GeoTIFF under options of GDAL; whatever rasterio raises meanwhile becomes UnusableError."""
    with rasterio.Env(**options):
        if stack := stack_of(file):
            try:
                yield _kept_open(file, stack)
            except rasterio.errors.RasterioError as error:
                raise _damaged(file, error) from error
            return
        dataset = open_raster(file, beside=options.get('GDAL_DISABLE_READDIR_ON_OPEN') != 'EMPTY_DIR')
        try:
            with dataset:
                yield dataset
        except rasterio.errors.RasterioError as error:
            raise _damaged(file, error) from error


# Of each thread, the rasters of products that it read last. A block of JPEG 2000 is a million pixels, and
# GDAL keeps unpacked blocks for as long as their file is open: reading tiles is a hundred times faster.
_kept = threading.local()
_KEPT = 6


def _kept_open(file: Path, stack: Stack) -> rasterio.DatasetReader:
    """A raster of a product, which stays open for the next reader."""
    key = os.getpid(), file, stack
    kept = [entry for entry in getattr(_kept, 'entries', []) if entry[0][0] == os.getpid()]
    dataset = next((opened for known, opened in kept if known == key), None)
    if dataset is None:
        dataset = open_raster(file)
    kept = [(key, dataset), *(entry for entry in kept if entry[1] is not dataset)]
    for _, old in kept[_KEPT:]:
        old.close()
    _kept.entries = kept[:_KEPT]
    return dataset


@contextmanager
def opened_bytes(content: bytes, **options: str) -> Iterator[rasterio.DatasetReader]:
    """An open GeoTIFF that lies in memory, such as a member of a container; otherwise as `opened`.

    Nothing lies beside it, and a mask or overview outside of it is not looked for.

    Raises:
        UnusableError: no GeoTIFF, or one that is damaged.
    """
    if not content.startswith(TIFF):
        raise UnusableError('', f'{len(content):,} bytes that are no GeoTIFF', '')
    with rasterio.Env(**{**PUBLISHED, **options}), MemoryFile(content) as memory:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore', rasterio.errors.NotGeoreferencedWarning)
                dataset = memory.open(driver='GTiff')
            with dataset:
                yield dataset
        except rasterio.errors.RasterioError as error:
            message = f'cannot be read in full ({len(content):,} bytes): {error}'
            raise UnusableError('', message, 'the GeoTIFF is truncated or damaged') from error


def open_raster(file: Path, beside: bool = True, vrt: bool = False) -> rasterio.DatasetReader:
    """An open GeoTIFF, which the caller closes.

    Args:
        file: on a local disk; or a raster of a product, see `products.rasters_of`.
        beside: whether GDAL may look for files beside it.
        vrt: take a VRT of local GeoTIFFs as well.

    Raises:
        UnusableError: no such file, one of another format, or one that is damaged.
    """
    if stack := stack_of(file):
        try:
            return open_stack(stack)
        except rasterio.errors.RasterioError as error:
            raise UnusableError('', f'cannot be read: {error}', 'download the product again') from error
    if not file.is_file():
        raise UnusableError('', *_no_file(file))
    check_part(file)
    # An absolute path is never taken for the address of something else.
    name, driver = os.path.abspath(file), 'GTiff'
    if beside:
        check_beside(file)
    if vrt and file.suffix.lower() == '.vrt':
        name, driver = checked_vrt(file, check_source), 'VRT'
    try:
        with warnings.catch_warnings():
            # A file without a place on the ground is told by its grid.
            warnings.simplefilter('ignore', rasterio.errors.NotGeoreferencedWarning)
            return rasterio.open(name, driver=driver)
    except rasterio.errors.RasterioError as error:
        raise _damaged(file, error) from error


def _no_file(file: Path) -> tuple[str, str]:
    if file.is_dir():
        return 'is a folder', 'give a GeoTIFF, a product in a folder NAME.SAFE, or an item of STAC'
    return 'the file is missing', ''


def _damaged(file: Path, error: Exception) -> UnusableError:
    if not file.is_file():
        return UnusableError('', f'cannot be read: {error}', 'download the product again')
    if not begins(file, *TIFF):
        return UnusableError(
            '', f'cannot be read in full ({file.stat().st_size:,} bytes): it is no GeoTIFF', MAKE
        )
    message = f'cannot be read in full ({file.stat().st_size:,} bytes): {error}'
    return UnusableError('', message, 'the GeoTIFF is truncated or damaged')


class Header(NamedTuple):
    """What is known of a file without reading a pixel."""

    file: Path
    grid: Grid
    bands: tuple[str, ...]  # of each channel; '' for one that is left out
    descriptions: tuple[str, ...]  # of each channel, as the file has them
    dtypes: tuple[str, ...]  # of the kept channels, and so for the next ones
    scales: tuple[float, ...]
    offsets: tuple[float, ...]
    nodatas: tuple[float | None, ...]  # None: none, or NaN
    masked: bool  # validity lies in a mask, or in an alpha channel that is no band
    alpha: int  # number of the latter, 0 for none
    points: bool  # it has ground control points
    tags: Mapping[str, str]  # metadata of the file and its kept channels, names in capitals

    @property
    def channels(self) -> tuple[int, ...]:
        """The numbers of the kept channels, from 1."""
        return tuple(number for number, band in enumerate(self.bands, 1) if band)

    @property
    def rows(self) -> int:
        """Pixels from top to bottom."""
        return self.grid.rows

    @property
    def columns(self) -> int:
        """Pixels from left to right."""
        return self.grid.columns

    @property
    def resolution(self) -> float:
        """Metres a pixel, of a grid that `check_grid` lets pass."""
        return self.grid.resolution

    @property
    def place(self) -> Place:
        """The upper left corner, of a grid with an EPSG code; -1 and NaN of a chip without a place."""
        if self.grid.epsg is None:
            return Place(-1, math.nan, math.nan)
        return Place(self.grid.epsg, self.grid.left, self.grid.top)

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, bottom, right and top edge in metres."""
        return self.grid.bounds

    @property
    def dtype(self) -> str:
        """The type of all kept channels; raises UnusableError where they differ, as the next ones do."""
        return self._same('dtype', self.dtypes, 'write channels of one type')

    @property
    def scale(self) -> float:
        """The scale tag of all kept channels."""
        return self._same('scale', self.scales, 'take channels of other scales apart')

    @property
    def offset(self) -> float:
        """The offset tag of all kept channels."""
        return self._same('offset', self.offsets, 'take channels of other offsets apart')

    @property
    def nodata(self) -> float | None:
        """The nodata tag of all kept channels."""
        return self._same('nodata', self.nodatas, 'rio edit-info --nodata VALUE IN.tif')

    def _same(self, field: str, values: Sequence[T], advice: str) -> T:
        if len(set(values)) > 1:
            raise UnusableError(field, f'{sorted(set(values), key=str)} in one file', advice)
        return values[0]


def read_header(file: Path, dataset: rasterio.DatasetReader, bands: Sequence[str]) -> Header:
    """The header of an open file whose channels are `bands`, '' for one that is left out."""
    kept = [index for index, band in enumerate(bands) if band]
    alpha = _alpha(dataset, kept)
    tags = {key.upper(): value for index in kept for key, value in dataset.tags(index + 1).items()}
    return Header(
        file=file,
        grid=grid_of(dataset),
        bands=tuple(bands),
        descriptions=descriptions(dataset),
        dtypes=tuple(dataset.dtypes[index] for index in kept),
        scales=tuple(dataset.scales[index] for index in kept),
        offsets=tuple(dataset.offsets[index] for index in kept),
        nodatas=tuple(_number(dataset.nodatavals[index]) for index in kept),
        masked=bool(alpha) or _has_mask(dataset, kept),
        alpha=alpha,
        points=bool(dataset.gcps[0]),
        tags=tags | {key.upper(): value for key, value in dataset.tags().items()},
    )


def descriptions(dataset: rasterio.DatasetReader) -> tuple[str, ...]:
    """What stands beside each channel, '' for nothing."""
    return tuple(text or '' for text in dataset.descriptions)


def _number(value: float | None) -> float | None:
    return None if value is None or value != value else value


def _alpha(dataset: rasterio.DatasetReader, kept: Sequence[int]) -> int:
    """The number of an alpha channel that is no band, 0 for none; GDAL itself takes none of floats.

    Writers declare channels to be alpha whatever is in them, so that one with the name of a band is a band.
    """
    for index, (kind, text) in enumerate(zip(dataset.colorinterp, descriptions(dataset))):
        if kind == ColorInterp.alpha and index not in kept and not any(band_of(text, m) for m in BANDS):
            return index + 1
    return 0


def _has_mask(dataset: rasterio.DatasetReader, kept: Sequence[int]) -> bool:
    """Whether there is a mask in the file or beside it, which is one for all channels."""
    flags = dataset.mask_flag_enums[kept[0]] if kept else ()
    # Not by alpha: `_alpha` has looked at that channel, which may be a band all the same.
    return MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags


def read_valid(
    dataset: rasterio.DatasetReader, header: Header, channels: Sequence[int], window: Window | None = None
) -> np.ndarray:
    """Channels (by number, from 1) as stored, (bands, rows, columns), with NaN where a mask says invalid.

    Whole numbers become float32 where there is such a mask, int32 and uint32 float64, and stay otherwise.
    """
    stored = dataset.read(list(channels), window=window)
    if not header.masked:
        return stored
    read = dataset.read if header.alpha else dataset.read_masks
    valid = read(header.alpha or channels[0], window=window) > 0
    return np.where(valid, stored, np.array(np.nan, np.promote_types(stored.dtype, np.float32)))
