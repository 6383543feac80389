"""Reading the zarr files of version 1.1: 64 locations with four time stamps in one zip.

With one time stamp of all locations to a chunk, a single image costs as much to read as 64 of them. Decoded
chunks, whatever they hold, are therefore kept, a few at a time, and records are read file by file and time
stamp by time stamp (`cubes.together`). Every chunk that is read is checked against its CRC-32.

The metadata of a zarr file names the codecs that decode it, and some of them run code (pickle). Those of a
short list are accepted; a file that names another is refused before zarr sees it.
"""

import functools
import json
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..records import RecordError
from .schema import RESOLUTION, S1_BANDS, S2_BANDS, SIZE, TIMES

S1 = 'S1GRD'
BANDS = {S1: S1_BANDS, **S2_BANDS}
DTYPES = {S1: 'float16', **dict.fromkeys(S2_BANDS, 'int16')}
# One time stamp of Sentinel-2 and of its mask, and all four of Sentinel-1, whose order differs.
KEPT_CHUNKS = 6
AGAIN = 'the file is truncated or damaged; download it again'
OTHER = 'this is no file of SSL4EO-S12 v1.1'
METADATA = ('.zarray', '.zgroup', '.zmetadata', 'zarr.json')  # of zarr's formats 2 and 3
# Plain decompression and the order of bytes, by their names in both formats.
CODECS = (
    *('blosc', 'zstd', 'zlib', 'gzip', 'lz4', 'shuffle', 'crc32', 'crc32c', 'adler32', 'vlen-utf8', 'bytes'),
    *('transpose', 'sharding_indexed', 'numcodecs.zlib', 'numcodecs.lz4', 'numcodecs.shuffle'),
)
_CODEC_FIELDS = ('compressor', 'filters', 'codecs', 'index_codecs', 'storage_transformers')
_NEAR = 0.01  # metres, between coordinates that are the same

Stamp = tuple[int, int]  # size and time of a file: a file that was replaced is read anew


class Cube(NamedTuple):
    """One zarr file: everything about its samples but the images."""

    file: Path
    samples: tuple[str, ...]  # location of each sample
    names: tuple[tuple[str, ...], ...]  # of its four images
    epsg: np.ndarray  # (samples,)
    upper_left: np.ndarray  # (samples, 2): easting, northing, metres
    center: np.ndarray  # (samples, 2): latitude, longitude, degrees
    order: tuple[int, ...]  # where the bands of BANDS lie in the file
    masked: bool  # whether there is a cloud mask


def open_cube(file: Path, kind: str) -> Cube:
    """What a file of `kind` (S1GRD, S2L2A or S2L1C) says of its samples.

    Raises RecordError for a file that is missing, damaged, incomplete or of another kind.
    """
    return _cube(file, kind, _stamp(file))


def image(cube: Cube, sample: int, time: int) -> np.ndarray:
    """An image of a cube, (rows, columns, bands) in the stored type; raises RecordError if it is damaged."""
    planes = _plane(cube.file, 'bands', sample, time)
    if cube.order != tuple(range(len(planes))):
        planes = planes[list(cube.order)]
    return np.ascontiguousarray(np.moveaxis(planes, 0, -1))


def mask(cube: Cube, sample: int, time: int) -> np.ndarray:
    """The cloud mask of an image, (rows, columns) uint8; raises RecordError if it is damaged."""
    return _plane(cube.file, 'cloud_mask', sample, time)


def open_store(file: Path) -> Any:
    """The zarr group in a zip.

    Raises RecordError if it is missing or damaged, or names a codec that may run code.
    """
    return _group(file, _stamp(file))


def _stamp(file: Path) -> Stamp:
    try:
        status = os.stat(file)
    except FileNotFoundError as error:
        raise RecordError(file, 'file', 'missing', 'download it too') from error
    return status.st_size, status.st_mtime_ns


@contextmanager
def reading(file: Path, field: str) -> Iterator[None]:
    """Whatever goes wrong while `field` of a file is read becomes a RecordError."""
    try:
        yield
    except RecordError:
        raise
    except Exception as error:  # zipfile, zarr and each codec have exceptions of their own
        message = f'cannot be read: {type(error).__name__}: {error}'
        raise RecordError(file, field, message, AGAIN) from error


@functools.lru_cache(maxsize=4)
def _group(file: Path, stamp: Stamp) -> Any:
    import zarr
    from zarr.storage import ZipStore

    with reading(file, 'zip'):
        _check_codecs(file)
        return zarr.open_group(ZipStore(file, mode='r'), mode='r')


def _check_codecs(file: Path) -> None:
    """Raises RecordError where the metadata name a codec that is not of CODECS."""
    with zipfile.ZipFile(file) as archive:
        for member in archive.namelist():
            if member.rpartition('/')[2] in METADATA:
                for name in _codecs(json.loads(archive.read(member))):
                    if name not in CODECS:
                        raise RecordError(file, member, f'codec {name!r}, which may run code', OTHER)


def _codecs(metadata: Any) -> Iterator[str]:
    """The names of all codecs in metadata, however deep."""
    if isinstance(metadata, dict):
        for field in _CODEC_FIELDS:
            value = metadata.get(field)
            for codec in value if isinstance(value, list) else [value] if value is not None else []:
                about = codec if isinstance(codec, dict) else {'name': codec}
                yield str(about.get('id', about.get('name')))
        yield from (name for value in metadata.values() for name in _codecs(value))
    elif isinstance(metadata, list):
        yield from (name for value in metadata for name in _codecs(value))


@functools.lru_cache(maxsize=4)
def _cube(file: Path, kind: str, stamp: Stamp) -> Cube:
    group = _group(file, stamp)
    with reading(file, 'metadata'):
        names = sorted(group.array_keys())
    for field in ('bands', 'band', 'sample', 'file_id', 'crs', 'x_', 'y_', 'center_lat', 'center_lon'):
        if field not in names:
            raise RecordError(file, field, f'no such array (found: {", ".join(names)})', OTHER)
    samples = tuple(_strings(file, group, 'sample'))
    _check_images(file, group['bands'], len(samples), kind)
    if 'cloud_mask' in names:
        _check_mask(file, group['cloud_mask'], len(samples))
    return Cube(
        file,
        samples,
        tuple(map(tuple, _strings(file, group, 'file_id', (len(samples), TIMES)))),
        _numbers(file, group, 'crs', (len(samples),)),
        np.stack([_edge(file, group, axis, len(samples)) for axis in ('x_', 'y_')], axis=1),
        np.stack([_numbers(file, group, f'center_{a}', (len(samples),)) for a in ('lat', 'lon')], axis=1),
        _order(file, _strings(file, group, 'band'), kind),
        'cloud_mask' in names,
    )


def _check_images(file: Path, bands: Any, samples: int, kind: str) -> None:
    for what, actual, expected in (
        ('shape', bands.shape, (samples, TIMES, len(BANDS[kind]), SIZE, SIZE)),
        ('dtype', str(bands.dtype), DTYPES[kind]),
        ('chunks', bands.nchunks_initialized, bands.nchunks),
    ):
        if actual != expected:
            raise RecordError(file, f'bands {what}', f'{actual}, expected {expected}', f'{OTHER}, or {AGAIN}')


def _check_mask(file: Path, masks: Any, samples: int) -> None:
    actual, expected = (masks.shape, str(masks.dtype)), ((samples, TIMES, SIZE, SIZE), 'uint8')
    if actual != expected:
        raise RecordError(file, 'cloud_mask', f'shape and dtype {actual}, expected {expected}', OTHER)


def _strings(file: Path, group: Any, field: str, shape: tuple[int, ...] = ()) -> list[Any]:
    with reading(file, field):
        values = np.asarray(group[field][...])
        if values.dtype.kind == 'S':
            values = np.char.decode(values, 'utf-8')
    if values.shape != (shape or values.shape[:1]) or not values.size:
        raise RecordError(file, field, f'shape {values.shape}, expected {shape or "(n,)"}', OTHER)
    return values.astype(str).tolist()


def _numbers(file: Path, group: Any, field: str, shape: tuple[int, ...]) -> np.ndarray:
    with reading(file, field):
        values = np.asarray(group[field][...])
    if values.shape != shape or values.dtype.kind not in 'iuf':
        message = f'{values.dtype} of shape {values.shape}, expected numbers of shape {shape}'
        raise RecordError(file, field, message, OTHER)
    return values


def _order(file: Path, bands: list[str], kind: str) -> tuple[int, ...]:
    names = [name.upper() for name in bands]
    if sorted(names) != sorted(BANDS[kind]):
        raise RecordError(file, 'band', f'{bands}, expected {list(BANDS[kind])}', OTHER)
    return tuple(map(names.index, BANDS[kind]))


def _edge(file: Path, group: Any, field: str, samples: int) -> np.ndarray:
    """The left or upper edge of every sample.

    The archive does not say whether it lists centres or upper left corners of pixels. All its patches lie
    on the 10 m grid of Sentinel-2, whose lines are multiples of 10 m: a coordinate ending in 5 is a centre.
    """
    values = _numbers(file, group, field, (samples, SIZE))
    step = RESOLUTION if field == 'x_' else -RESOLUTION
    if not np.allclose(np.diff(values, axis=1), step, rtol=0, atol=_NEAR):
        message = f'steps from {np.diff(values).min():g} to {np.diff(values).max():g} m, expected {step}'
        raise RecordError(file, field, message, OTHER)
    lines = np.round(values[:, 0] / (RESOLUTION / 2))  # half pixels
    if not np.allclose(lines * RESOLUTION / 2, values[:, 0], rtol=0, atol=_NEAR):
        raise RecordError(file, field, 'coordinates off the 10 m grid of Sentinel-2', OTHER)
    return (lines - (lines % 2) * np.sign(step)) * RESOLUTION / 2


def _plane(file: Path, field: str, sample: int, time: int) -> np.ndarray:
    stamp = _stamp(file)
    rows, columns = _group(file, stamp)[field].chunks[:2]
    chunk = _chunk(file, stamp, field, sample // rows, time // columns)
    return chunk[sample % rows, time % columns]


@functools.lru_cache(maxsize=KEPT_CHUNKS)
def _chunk(file: Path, stamp: Stamp, field: str, row: int, column: int) -> np.ndarray:
    """The images that share a chunk, of all bands and rows and columns."""
    with reading(file, field):
        array = _group(file, stamp)[field]
        rows, columns = array.chunks[:2]
        return array[row * rows : (row + 1) * rows, column * columns : (column + 1) * columns]
