"""The headers of a user's files: what of them cannot be used, and what the stored numbers mean.

The meaning follows from the settings of the archive, held against the files' metadata.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import rasterio

from fusmae_jax.geo import UnusableError, bands, raster, rio
from fusmae_jax.geo.bands import SKIP
from fusmae_jax.geo.grid import check_grid, name_of, unplaced, warp
from fusmae_jax.geo.raster import Header
from fusmae_jax.geo.values import DN, Declared, Values
from fusmae_jax.geo.values import values_of as meaning

from ..geotiff import refused
from .settings import Archive, prefix_of

DTYPES = ('uint8', 'int16', 'uint16', 'int32', 'uint32', 'float32')
OPTIONS = raster.BESIDE
CHANGED = 'the file changed while it was converted; run the conversion again'


@contextmanager
def opened(file: Path, field: str) -> Iterator[rasterio.DatasetReader]:
    """An open GeoTIFF; whatever goes wrong while it is read becomes a RecordError."""
    with (
        refused(file, field, 'write it again, or repair the table'),
        raster.opened(file, **OPTIONS) as dataset,
    ):
        yield dataset


def read_headers(
    files: Sequence[Path], modality: str, names: Sequence[str], pixel: float = 0.0
) -> list[Header]:
    """The headers of the files of one image.

    Args:
        files: of one sensor.
        modality: the sensor.
        names: the channels of all files in their order, or nothing to take the band descriptions.
        pixel: metres, of chips without a place, whatever they say of it; 0: files must say where they lie.

    Raises RecordError for what cannot be used.
    """
    headers: list[Header] = []
    left = list(names)
    for file in files:
        with opened(file, modality) as dataset:
            kept = channels(file, dataset, modality, left[: dataset.count] if names else ())
            header = raster.read_header(file, dataset, kept)
            if pixel:
                header = header._replace(grid=unplaced(header.rows, header.columns, pixel))
            check(header, placed=not pixel)
        headers.append(header)
        left = left[len(kept) :]
    with refused(files[-1], modality, ''):
        if left:
            total = sum(len(header.bands) for header in headers)
            message = f'{total} channels in all, but {prefix_of(modality)}_bands names {len(names)}'
            raise UnusableError('bands', message, 'name every channel once')
        bands.check_unique(
            [band for header in headers for band in header.bands], f'{prefix_of(modality)}_bands'
        )
    return headers


def channels(
    file: Path, dataset: rasterio.DatasetReader, modality: str, names: Sequence[str]
) -> tuple[str, ...]:
    """The band of each channel, '' for one to leave out: as `names` say, else by the band descriptions.

    Raises RecordError where a channel has no name, or the two disagree; the position alone says nothing.
    """
    texts, setting = raster.descriptions(dataset), f'{prefix_of(modality)}_bands'
    with refused(file, modality, ''):
        if names:
            return bands.by_setting(texts, modality, names, setting)
        described = bands.by_description(texts, modality)
        if unknown := [
            f'{i} ({text!r})' for i, (text, b) in enumerate(zip(texts, described), 1) if b is None
        ]:
            raise UnusableError(
                'bands',
                f'no band name in the description of channel {", ".join(unknown)} of {len(texts)}',
                f"name the channels in their order, {setting}=('{bands.BANDS[modality][0]}', ...), with "
                f"'{SKIP}' for one to leave out; a position alone says nothing",
            )
    return tuple(band or '' for band in described)


def check(header: Header, placed: bool = True) -> None:
    """Raises UnusableError with the first of `refusals`."""
    for problem in refusals(header, placed):
        raise problem


def refusals(header: Header, placed: bool = True) -> Iterator[UnusableError]:
    """Everything in a header that records cannot hold; `placed`: it must say where it lies."""
    if not header.channels:
        there = ', '.join(filter(None, header.descriptions)) or 'none is named'
        advice = 'name the channels; where each sensor has files of its own in one folder, s1_suffix and '
        advice += 's2_suffix tell them apart'
        yield UnusableError('bands', f'no channel is one of this sensor ({there})', advice)
        return
    for dtype in set(header.dtypes) - set(DTYPES):
        yield UnusableError(
            'dtype',
            f'{dtype}, expected one of {", ".join(DTYPES)}',
            'detect and calibrate complex values first'
            if dtype.startswith('complex')
            else rio.convert(dtype='float32'),
        )
    if header.masked:
        yield UnusableError(
            'mask',
            'validity lies in a mask, which records cannot hold',
            f'write it into the pixels: {rio.mask_into_pixels(header.dtypes[0], alpha=header.alpha)}',
        )
    for field in ('dtype', 'scale', 'offset', 'nodata'):
        try:
            getattr(header, field)
        except UnusableError as problem:
            yield problem
    if not placed:
        return
    try:
        check_grid(header.grid, header.points, header.dtypes[0], header.nodatas[0])
    except UnusableError as problem:
        yield problem
        return
    if header.grid.epsg is None:
        assert header.grid.crs is not None
        message = f'{name_of(header.grid.crs)}, a system without an EPSG code'
        yield UnusableError('CRS', message, warp(step=header.resolution))


def values_of(header: Header, modality: str, archive: Archive) -> Values:
    """The values of a file; raises RecordError where metadata and settings disagree or say too little."""
    unit = archive.of(modality, 'unit')
    dn, offset = DN.get(unit, 1.0), archive.s2_offset if modality == 's2' else 'auto'
    declared = Declared(
        prefix=f'{prefix_of(modality)}_',
        unit=unit,
        scale=archive.of(modality, 'scale'),
        offset=None if offset == 'auto' else int(offset) * dn,
        nodata=archive.of(modality, 'nodata'),
        calibration=archive.s1_calibration if modality in bands.RADAR else '',
        step=dn,
    )
    with refused(header.file, modality, ''):
        return meaning(header, modality, declared)
