"""Which file gives which bands of a record, and where a tile lies in each: one layout for all images."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from data.paired_folder.headers import Header
from data.paired_folder.settings import Archive
from data.paired_folder.values import Values, values_of
from data.records import RecordError
from fusmae_jax.errors import InputError
from fusmae_jax.geo import rio
from fusmae_jax.geo.bands import BANDS
from fusmae_jax.input.contract import Group

CLOSE = 1e-3  # of the finest pixel; edges further apart than this do not agree


@dataclasses.dataclass(frozen=True)
class Part:
    """One file of an image: the group that it belongs to and the bands that it gives."""

    modality: str
    index: int  # among the files of the sensor
    group: str  # record field
    names: tuple[str, ...]  # of its channels where the settings give them; () by description
    bands: tuple[str, ...]
    step: float  # pixels of the finest file in one of this file


@dataclasses.dataclass(frozen=True)
class Layout:
    """How records are cut from the files of an image."""

    roots: Mapping[str, str]  # modality -> folder
    parts: tuple[Part, ...]
    groups: Mapping[str, Group]
    classes: tuple[str, ...]


class Kind(NamedTuple):
    """What must be the same for the files at one position of all images."""

    bands: frozenset[str]
    dtype: str
    pixel: float  # metres
    values: Values


def kind_of(header: Header, modality: str, archive: Archive) -> Kind:
    """Raises RecordError where metadata and settings disagree."""
    bands = frozenset(band for band in header.bands if band)
    return Kind(bands, header.dtype, round(header.resolution, 9), values_of(header, modality, archive))


def check_kind(header: Header, modality: str, found: Kind, first: Kind, example: Header) -> None:
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
        one, other = getattr(found, what), getattr(first, what)
        if one != other:
            texts = [
                ', '.join(sorted(x)) if what == 'bands' else str(tuple(x)) if what == 'values' else str(x)
                for x in (one, other)
            ]
            title = 'scale, offset, nodata' if what == 'values' else what
            raise RecordError(
                header.file, f'{modality} {title}', f'{texts[0]}, but {example.file} has {texts[1]}', remedy
            )


def check_ground(headers: Mapping[str, Sequence[Header]]) -> None:
    """Raises RecordError unless all files of an image cover exactly the same ground in the same system."""
    every = [(m, header) for m, found in headers.items() for header in found]
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
            _onto(header, leader),
        )


def _onto(header: Header, leader: Header) -> str:
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
    )
    return f'bring it onto the same ground: {command}'


def _placed(header: Header) -> rio.Placed:
    corner = header.place[1:]
    return rio.Placed(header.file, header.rows, header.columns, *corner, header.resolution)


def make_layout(
    archive: Archive,
    roots: Mapping[str, str],
    headers: Mapping[str, Sequence[Header]],
    classes: Sequence[str],
) -> Layout:
    """The layout that the first image sets; raises InputError where tiles do not fit its pixels."""
    finest = min(header.resolution for found in headers.values() for header in found)
    parts: list[Part] = []
    groups: dict[str, Group] = {}
    for modality, found in headers.items():
        pixels = {round(header.resolution, 9) for header in found}
        left = list(getattr(archive, f'{modality}_bands'))
        for index, header in enumerate(found):
            field = modality if len(pixels) == 1 else f'{modality}_{header.resolution:g}m'
            values = values_of(header, modality, archive)
            group = Group(
                modality=modality,
                bands=tuple(band for band in BANDS[modality] if band in header.bands),
                size=_size(archive, header, finest),
                dtype=header.dtype,
                unit=getattr(archive, f'{modality}_unit'),
                resolution=round(header.resolution, 9),
                scale=values.scale,
                offset=values.offset,
                nodata=values.nodata,
            )
            _check_padding(archive, field, group)
            names, left = tuple(left[: len(header.bands)]), left[len(header.bands) :]
            parts.append(Part(modality, index, field, names, group.bands, header.resolution / finest))
            groups[field] = _merged(groups.get(field), group, header)
    return Layout(dict(roots), tuple(parts), groups, tuple(classes))


def _merged(one: Group | None, other: Group, header: Header) -> Group:
    """The group of several files with one pixel size."""
    if one is None:
        return other
    if dataclasses.replace(one, bands=()) != dataclasses.replace(other, bands=()):
        raise RecordError(
            header.file,
            f'{one.modality} parts',
            f'type, scale, offset or nodata differ from those of the other files with {one.resolution:g} m',
            'files of one pixel size become one field: write them alike',
        )
    both = {*one.bands, *other.bands}
    return dataclasses.replace(one, bands=tuple(band for band in BANDS[one.modality] if band in both))


def _size(archive: Archive, header: Header, finest: float) -> tuple[int, int]:
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
            f"{group.modality}_nodata, or edge='drop'"
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
