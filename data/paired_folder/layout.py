"""The layout of all images: which file gives which bands of a record, and where a tile lies in each.

Products of Sentinel-2 since processing baseline 04.00 hold 1000 more than the older ones, and records have
one offset. Whole numbers are brought to the lowest offset without a loss: 1000 is added to the others, which
the offset of the contract takes off again.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fusmae_jax.errors import InputError
from fusmae_jax.geo import rio
from fusmae_jax.geo.bands import BANDS
from fusmae_jax.geo.raster import Header
from fusmae_jax.geo.values import Values
from fusmae_jax.input.contract import Group, LabelMap, NumberMap, Targets

from ..records import RecordError, validity
from .headers import values_of
from .settings import Archive, prefix_of

CLOSE = 1e-3  # of the finest pixel; edges further apart than this do not agree


@dataclasses.dataclass(frozen=True)
class LayoutPart:
    """One file of an image: the group that it belongs to and the bands that it gives."""

    modality: str
    index: int  # among the files of the sensor
    group: str  # record field
    names: tuple[str, ...]  # of its channels where the settings give them; () by description
    bands: tuple[str, ...]
    step: float  # pixels of the finest file in one of this file


@dataclasses.dataclass(frozen=True)
class RecordLayout:
    """How records are cut from the files of an image."""

    roots: Mapping[str, str]  # modality -> folder
    parts: tuple[LayoutPart, ...]
    groups: Mapping[str, Group]
    classes: tuple[str, ...]
    map: LabelMap | NumberMap | None = None  # of the label rasters, or those of numbers
    targets: Targets | None = None  # of the columns of numbers
    measured: tuple[float, ...] = ()  # numbers of the rasters that are some, whatever they mostly mean

    @property
    def finest(self) -> float:
        """Metres of the smallest pixels of a record, in which tiles are counted."""
        return min(group.resolution for group in self.groups.values())


class FileKind(NamedTuple):
    """What must be the same for the files at one position of all images."""

    bands: frozenset[str]
    dtype: str
    pixel: float  # metres
    values: Values


def kind_of(header: Header, modality: str, archive: Archive) -> FileKind:
    """Raises RecordError where metadata and settings disagree."""
    bands = frozenset(band for band in header.bands if band)
    return FileKind(bands, header.dtype, round(header.resolution, 9), values_of(header, modality, archive))


def check_kind(header: Header, modality: str, found: FileKind, first: FileKind, example: Header) -> None:
    """Raises RecordError, naming the remedy, where a file is of another kind than the first one."""
    remedies = {
        'bands': 'all files need the same bands; leave others out by name, or convert them as another set',
        'dtype': 'all files need one type; write them again, or convert them as another set',
        'pixel': 'if its geotransform is right (other files of as many pixels say otherwise): '
        * ((header.rows, header.columns) == (example.rows, example.columns))
        + rio.warp(header.file, step=first.pixel, dtype=header.dtype, nodata=header.nodata),
        'values': 'files of another scale, offset or nodata value are another data set: convert them apart '
        '(mixtures are made when training), or rewrite them',
    }
    for what, remedy in remedies.items():
        value, expected = getattr(found, what), getattr(first, what)
        if value != expected:
            texts = [
                ', '.join(sorted(x)) if what == 'bands' else str(tuple(x)) if what == 'values' else str(x)
                for x in (value, expected)
            ]
            title = 'scale, offset, nodata' if what == 'values' else what
            raise RecordError(
                header.file, f'{modality} {title}', f'{texts[0]}, but {example.file} has {texts[1]}', remedy
            )


def check_ground(headers: Mapping[str, Sequence[Header]]) -> None:
    """Raises RecordError unless all files of an image cover exactly the same ground in the same system."""
    every = [(m, header) for m, files in headers.items() for header in files]
    # The optical image leads where there is one: radar is the one that was projected for the purpose.
    leader = next((h for m, h in every if m == 's2'), every[0][1])
    limit = CLOSE * min(header.resolution for _, header in every)
    box = leader.box
    for modality, header in every:
        if header.place.epsg == leader.place.epsg and all(
            abs(a - b) <= limit for a, b in zip(header.box, box)
        ):
            continue
        raise RecordError(
            header.file,
            f'{modality} position',
            f'EPSG:{header.place.epsg}, left, bottom, right, top = {header.box}, but {leader.file} has '
            f'EPSG:{leader.place.epsg} {box}',
            _onto(header, leader, 'nearest' if modality == 'map' else 'bilinear'),
        )


def _onto(header: Header, leader: Header, resampling: str) -> str:
    """The remedy for a file that covers other ground than the leader of its image."""
    if wrong := rio.wrong_transform(_placed(header), _placed(leader)):
        return wrong
    command = rio.warp(
        header.file,
        crs=f'EPSG:{leader.place.epsg}',
        bounds=leader.box,
        step=header.resolution,
        dtype=header.dtype,
        nodata=header.nodata,
        resampling=resampling,
    )
    return f'bring it onto the same ground: {command}'


def _placed(header: Header) -> rio.Placed:
    corner = header.place[1:]
    return rio.Placed(header.file, header.rows, header.columns, *corner, header.resolution)


def check_fill(layout: RecordLayout) -> None:
    """Raises InputError where a sensor that is missing could not be told from one that is there."""
    for name, group in layout.groups.items():
        if not group.dtype.startswith('float') and not group.nodata:
            raise InputError(
                f"config.archive.missing='keep': field {name!r} is {group.dtype} without a nodata value, so "
                'nothing can stand for what is missing; set '
                f'{prefix_of(group.modality)}_nodata=(VALUE,) to one that no pixel has'
            )


def make_layout(
    archive: Archive,
    roots: Mapping[str, str],
    headers: Mapping[str, Sequence[Header]],
    classes: Sequence[str],
) -> RecordLayout:
    """The layout that the first image sets; raises InputError where tiles do not fit its pixels."""
    finest = min(header.resolution for files in headers.values() for header in files)
    parts: list[LayoutPart] = []
    groups: dict[str, Group] = {}
    for modality, files in headers.items():
        pixels = {round(header.resolution, 9) for header in files}
        left = list(archive.of(modality, 'bands'))
        for index, header in enumerate(files):
            field = modality if len(pixels) == 1 else f'{modality}_{header.resolution:g}m'
            values = values_of(header, modality, archive)
            group = Group(
                modality=modality,
                bands=tuple(band for band in BANDS[modality] if band in header.bands),
                size=tile_size(archive, header, finest),
                dtype=header.dtype,
                unit=archive.of(modality, 'unit'),
                resolution=round(header.resolution, 9),
                scale=values.scale,
                offset=values.offset,
                nodata=values.nodata,
            )
            _check_padding(archive, field, group)
            names, left = tuple(left[: len(header.bands)]), left[len(header.bands) :]
            parts.append(LayoutPart(modality, index, field, names, group.bands, header.resolution / finest))
            groups[field] = _merged(groups.get(field), group, header)
    return RecordLayout(dict(roots), tuple(parts), groups, tuple(classes))


def _merged(group: Group | None, other: Group, header: Header) -> Group:
    """The group of several files with one pixel size."""
    if group is None:
        return other
    if dataclasses.replace(group, bands=()) != dataclasses.replace(other, bands=()):
        raise RecordError(
            header.file,
            f'{group.modality} parts',
            f'type, scale, offset or nodata differ from those of the other files with {group.resolution:g} m',
            'files of one pixel size become one field: write them alike',
        )
    both = {*group.bands, *other.bands}
    return dataclasses.replace(group, bands=tuple(band for band in BANDS[group.modality] if band in both))


def tile_size(archive: Archive, header: Header, finest: float) -> tuple[int, int]:
    """Pixels on the sides of a tile in a file."""
    ratio = header.resolution / finest
    for name, pixels in (('tile', archive.tile), ('stride', archive.step)):
        if not whole(pixels / ratio):
            few = max(1, round(pixels / ratio))
            raise InputError(
                f'config.archive.{name}={pixels} pixels of {finest:g} m are {pixels / ratio:.4g} pixels of '
                f'{header.resolution:g} m ({header.file}): choose a multiple, such as {few * ratio:g}'
            )
    side = round(archive.tile / ratio)
    return side, side


def _check_padding(archive: Archive, field: str, group: Group) -> None:
    if archive.edge == 'pad' and not group.dtype.startswith('float') and not group.nodata:
        raise InputError(
            f"config.archive.edge='pad': {field} ({group.dtype}) has no nodata value to fill up with; set "
            f"{prefix_of(group.modality)}_nodata, or edge='drop'"
        )


def whole(number: float) -> bool:
    """Whether a number of pixels is a whole one, as far as rounding tells."""
    return number >= 1 and math.isclose(number, round(number), rel_tol=1e-6)


def tiles(archive: Archive, rows: int, columns: int) -> list[tuple[int, int]]:
    """Upper left corners (row, column) of the tiles of an image, in pixels of its finest file."""
    return [(row, column) for row in starts(archive, rows) for column in starts(archive, columns)]


def starts(archive: Archive, length: int) -> range:
    """Where tiles begin along a side of an image, in pixels of its finest file."""
    over = length - archive.tile
    count = over // archive.step + 1 if archive.edge == 'drop' else -(-max(over, 0) // archive.step) + 1
    return range(0, max(count, 0) * archive.step, archive.step)


def aligned(kind: FileKind, first: FileKind) -> FileKind:
    """A kind of whole numbers with the offset of the first one, so that this alone is no difference."""
    if kind.dtype.startswith('float') or first.dtype.startswith('float'):
        return kind
    return kind._replace(values=kind.values._replace(offset=first.values.offset))


def lowest(layout: RecordLayout, kinds: Sequence[Mapping[str, Sequence[FileKind]]]) -> dict[str, float]:
    """Optical group of records -> the lowest offset of any image."""
    offsets: dict[str, float] = {}
    for part in layout.parts:
        if part.modality == 's2':
            offset = min(image['s2'][part.index].values.offset for image in kinds if 's2' in image)
            offsets[part.group] = min(offset, offsets.get(part.group, offset))
    return offsets


def shifts(layout: RecordLayout, offsets: Mapping[str, float], kinds: Sequence[FileKind]) -> list[int]:
    """What is added to the stored numbers of each Sentinel-2 file of an image; [] where nothing is.

    Raises InputError where it is no whole number.
    """
    if not kinds:
        return []
    parts = [part for part in layout.parts if part.modality == 's2']
    values = [kinds[part.index].values for part in parts]
    exact = [(v.offset - offsets[part.group]) / v.scale for part, v in zip(parts, values)]
    if odd := [x for x in exact if abs(x - round(x)) > 1e-6]:
        raise InputError(
            f'column s2_offset: the offsets of the images differ by {odd[0]:.6g} stored numbers, which is no '
            'whole one; convert images of one offset at a time'
        )
    return [*map(round, exact)] if any(map(round, exact)) else []


def shifted(file: Path, block: np.ndarray, group: Group, shift: int) -> np.ndarray:
    """Stored numbers with `shift` added where they are valid.

    Raises RecordError where a sum does not fit its type or would mean nodata.
    """
    valid = validity(block, group)
    moved = block.astype(np.int64) + shift
    values = moved[valid]
    highest = values.max(initial=0)
    if highest > np.iinfo(block.dtype).max or np.isin(values, np.array(group.nodata)).any():
        raise RecordError(
            file,
            's2 offset',
            f'{highest - shift} + {shift} has no room in {block.dtype} with nodata {group.nodata}',
            'numbers of images with another offset than the others are moved; convert this image apart',
        )
    return np.where(valid, moved, block).astype(block.dtype)
