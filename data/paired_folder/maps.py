"""The label rasters of a user's folder: a class or a number for each pixel, cut along with the images.

A label raster covers the ground of its image, in pixels of its own size. Its numbers are never changed: what
would have to be resampled, or means no class, is refused.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rasterio.windows import Window

from fusmae_jax.errors import InputError
from fusmae_jax.geo import UnusableError, raster
from fusmae_jax.geo.grid import check_grid
from fusmae_jax.geo.raster import Header
from fusmae_jax.input import label_maps, number_maps
from fusmae_jax.input.contract import LabelMap, NumberMap

from ..geotiff import refused
from ..records import RecordError
from .headers import CHANGED, opened
from .layout import tile_size
from .settings import Archive

MAP = 'map'  # the record field
DTYPES = ('uint8', 'int8', 'int16', 'uint16', 'int32', 'uint32')
NUMBER_DTYPES = ('float32', 'uint8', 'int8', 'int16', 'uint16')  # a batch carries them as float32


def map_header(file: Path, numbers: bool = False) -> Header:
    """The header of a label raster; raises RecordError for one that records cannot hold.

    `numbers`: its pixels are numbers, not classes.
    """
    with opened(file, MAP) as dataset:
        header = raster.read_header(file, dataset, (MAP,) * dataset.count)
    with refused(file, MAP, ''):
        if dataset.count != 1:
            kept = 'numbers' if numbers else 'classes'
            advice = f'keep the one with the {kept}: rio stack {file} --bidx 1 OUT.tif'
            raise UnusableError('channels', f'{dataset.count}, expected one', advice)
        if numbers and header.dtype not in NUMBER_DTYPES:
            advice = f'write them as one of {", ".join(NUMBER_DTYPES)}'
            raise UnusableError('dtype', f'{header.dtype}, which records do not hold', advice)
        if not numbers and header.dtype not in DTYPES:
            raise UnusableError(
                'dtype',
                f'{header.dtype}, but classes are whole numbers',
                f'write them as one of {", ".join(DTYPES)}; a map that was interpolated has to be made anew, '
                'with nearest neighbours; of numbers say what they are, map_quantity',
            )
        if not numbers and (header.scale, header.offset) != (1, 0):
            raise UnusableError(
                'scale, offset',
                f'{header.scale:g}, {header.offset:g}',
                'classes have neither: remove the tags',
            )
        if header.masked:
            raise UnusableError(
                'mask', 'a mask says what is labelled', 'write a nodata value into the pixels'
            )
        check_grid(header.grid, header.points)
    return header


def check_like(header: Header | None, first: Header | None) -> None:
    """Raises RecordError where a label raster is of another kind than the first one."""
    if header is None or first is None:
        return
    for what in ('dtype', 'nodata', 'resolution', 'scale', 'offset'):
        value, wanted = getattr(header, what), getattr(first, what)
        if value != wanted:
            raise RecordError(
                header.file,
                f'{MAP} {what}',
                f'{value}, but {first.file} has {wanted}',
                'all label rasters need one type, nodata value, scale and pixel size: write them alike',
            )


def label_map(archive: Archive, header: Header, finest: float) -> LabelMap:
    """What the label rasters hold; `finest` is the pixel size of the finest image, in metres.

    Raises:
        InputError: tiles that are no whole number of its pixels, a nodata value that is a class, a value to
            ignore that its type does not have, or edges to fill up without one.
    """
    held, ignore = np.iinfo(header.dtype), set(archive.map_ignore)
    if wrong := [value for value in sorted(ignore) if not held.min <= value <= held.max]:
        raise InputError(
            f'config.archive.map_ignore={archive.map_ignore}: no pixel of {header.file} can be {wrong[0]}, '
            f'they are {header.dtype}; leave it out'
        )
    if header.nodata in archive.map_codes:
        name = archive.map_classes[archive.map_codes.index(int(header.nodata))]
        raise InputError(
            f'{header.file}: {MAP} nodata: {header.nodata:g} is also the value of the class {name!r}: remove '
            f'the tag (rio edit-info --unset-nodata {header.file}), or leave the class out'
        )
    # A tag that no pixel can have says nothing.
    if header.nodata is not None and held.min <= header.nodata <= held.max:
        ignore.add(int(header.nodata))
    if archive.edge == 'pad' and not ignore:
        raise InputError(
            "config.archive.edge='pad': the label rasters have no value for pixels without a label to fill "
            "up with; set map_ignore, or edge='drop'"
        )
    return LabelMap(
        classes=archive.map_classes,
        values=archive.map_codes,
        ignore=tuple(sorted(ignore)),
        size=tile_size(archive, header, finest),
        dtype=header.dtype,
        resolution=round(header.resolution, 9),
    )


def number_map(archive: Archive, header: Header, finest: float) -> NumberMap:
    """What the rasters of numbers hold; see `label_map`.

    Raises:
        InputError: tiles that are no whole number of its pixels, a nodata value that its type does not have,
            edges to fill up without one, or a scale that makes all numbers one.
    """
    decimals, given = header.dtype == 'float32', archive.map_nodata
    held = np.iinfo('int8' if decimals else header.dtype)

    def fits(value: float) -> bool:
        return decimals or (value.is_integer() and held.min <= value <= held.max)

    if wrong := [value for value in given if not fits(value)]:
        raise InputError(
            f'config.archive.map_nodata={given}: no pixel of {header.file} can be {wrong[0]:g}, they are '
            f'{header.dtype}; leave it out'
        )
    # Numbers are float32 from then on.
    if not header.scale or (not decimals and np.spacing(np.float32(abs(header.offset))) > abs(header.scale)):
        raise InputError(
            f'{header.file}: {MAP} scale, offset: {header.scale:g}, {header.offset:g}, with which numbers of '
            '32 bits cannot be told apart; write them without the offset'
        )
    # NaN and infinity never are a number; a tag that no pixel can have says nothing.
    nodata = {*given, *(() if header.nodata is None else (header.nodata,))}
    kept = tuple(sorted(value for value in nodata if math.isfinite(value) and fits(value)))
    if archive.edge == 'pad' and not kept and not decimals:
        raise InputError(
            "config.archive.edge='pad': the rasters of numbers have no value to fill pixels up "
            "with; set map_nodata, or edge='drop'"
        )
    return NumberMap(
        quantity=archive.map_quantity,
        unit=archive.map_unit,
        scale=header.scale,
        offset=header.offset,
        nodata=kept,
        size=tile_size(archive, header, finest),
        dtype=header.dtype,
        resolution=round(header.resolution, 9),
    )


def label_words(about: LabelMap | NumberMap) -> str:
    """The values of a map in words."""
    if isinstance(about, NumberMap):
        title = f'{about.quantity} ({about.unit})' if about.unit else about.quantity
        way = (
            '' if (about.scale, about.offset) == (1, 0) else f', stored x {about.scale:g} + {about.offset:g}'
        )
        return title + way + ''.join(f', {value:g} no number' for value in about.nodata)
    words = [f'{value} {name}' for value, name in zip(about.values, about.classes)]
    return ', '.join([*words, *(f'{value} no label' for value in about.ignore)])


def read_map(
    file: Path, about: LabelMap | NumberMap, tile: Any, measured: Sequence[float] = ()
) -> np.ndarray:
    """The labels within a `tiles.Tile`, (rows, columns) as stored; what no file fills is to be ignored.

    `measured` are stored values that are numbers, though they mostly mean none.

    Raises:
        RecordError: a file that changed, or a value that is no class, or hardly a number.
    """
    step = about.resolution / tile.pixel
    row, column = (round(x / step) for x in tile.corner)
    shape = tuple(round(x / step) for x in tile.shape)
    rows, columns = (min(side, x - start) for side, x, start in zip(about.size, shape, (row, column)))
    with opened(file, MAP) as dataset:
        corner = (dataset.transform.c, dataset.transform.f)
        moved = any(abs(a - b) > tile.pixel / 2 for a, b in zip(corner, tile.place[1:]))
        if dataset.shape != shape or moved or dataset.dtypes[0] != about.dtype:
            message = f'{dataset.shape} {dataset.dtypes[0]} at {corner}, listed {shape} {about.dtype}'
            raise RecordError(file, f'{MAP} size', message, CHANGED)
        block = dataset.read(1, window=Window(column, row, columns, rows))
    if isinstance(about, NumberMap):
        if (wrong := number_maps.doubtful(block, about, measured)) is not None:
            raise RecordError(
                file,
                MAP,
                f'{wrong}, counted from row {row}, column {column} of the file; mostly it means no value',
                'set config.archive.map_nodata to it, or map_measured if it is a number',
            )
    elif (wrong := label_maps.unknown(block, about)) is not None:
        raise RecordError(
            file,
            MAP,
            f'{wrong}, counted from row {row}, column {column} of the file',
            'name it (config.archive.map_classes, map_values) or leave it out (map_ignore); a map that was '
            'interpolated has to be made anew, with nearest neighbours',
        )
    if block.shape == about.size:
        return block
    if isinstance(about, NumberMap):
        fill = np.nan if about.dtype == 'float32' else (*about.nodata, 0)[0]
    else:
        fill = about.ignore[0] if about.ignore else 0
    whole = np.full(about.size, fill, about.dtype)
    whole[:rows, :columns] = block
    return whole
