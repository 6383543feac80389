"""A user's own GeoTIFFs as an archive: what there is, cut into tiles and put into splits."""

import dataclasses
import functools
import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, NamedTuple

from fusmae_jax.errors import InputError
from fusmae_jax.geo.raster import Header
from fusmae_jax.geo.safe import level_of
from fusmae_jax.geo.values import baseline

from ..records import Item, RecordError, RecordSource
from . import cover
from .entries import Entry, Problem, roots
from .headers import read_headers
from .layout import (
    FileKind,
    RecordLayout,
    aligned,
    check_fill,
    check_ground,
    check_kind,
    kind_of,
    lowest,
    make_layout,
    shifts,
    tiles,
)
from .maps import check_like, label_map, map_header, number_map
from .names import by_name
from .schema import make_schema
from .settings import Archive, check
from .table import TIME, EntryTable, read_table
from .targets import targets_of
from .tiles import Tile, read_images, read_item, valid_shares

OnError = Literal['fail', 'skip']


class Image(NamedTuple):
    """An entry whose files can be used."""

    entry: Entry
    headers: Mapping[str, Sequence[Header]]  # modality -> those of its files
    kinds: Mapping[str, Sequence[FileKind]]
    map: Header | None = None  # of the label raster

    @property
    def fine(self) -> Header:
        """The header of the file with the smallest pixels."""
        every = [header for headers in self.headers.values() for header in headers]
        return min(every, key=lambda header: header.resolution)

    def size(self, layout: RecordLayout) -> tuple[int, int]:
        """Rows and columns in the finest pixels of a record, which a missing sensor may have."""
        ratio = self.fine.resolution / layout.finest
        return round(self.fine.rows * ratio), round(self.fine.columns * ratio)


def source(archive: Archive, on_error: OnError = 'fail') -> RecordSource:
    """The folders as the converter takes them; reads the header of every file.

    Raises InputError for settings that are missing or cannot be; for files that cannot be used, too, unless
    `on_error` is 'skip'.
    """
    check(archive)
    table = read_table(archive) if archive.table else EntryTable((), *by_name(archive))
    if archive.val_share and 'split' in table.columns:
        raise InputError(f'{archive.table}: has a column split, so config.archive.val_share must be 0')
    problems = [*table.problems]
    _stop_at(problems, on_error)
    classes = _classes(archive, table)
    images = _usable(archive, table, problems, on_error)
    if not images:
        raise InputError(f'{_where(archive)}: no image can be used; the first problem: {problems[0][1]}')
    folders = {m: str(folder) for m, folder in roots(archive).items()}
    layout = make_layout(_with_offset(archive, images[0].entry), folders, images[0].headers, classes)
    layout = dataclasses.replace(layout, targets=targets_of(archive))
    if archive.missing == 'keep':
        check_fill(layout)
    if images[0].map:
        about = number_map if archive.map_quantity else label_map
        held = about(archive, images[0].map, images[0].fine.resolution)
        layout = dataclasses.replace(layout, map=held, measured=archive.map_measured)
    layout, shifts = _one_offset(layout, images)
    splits: dict[str, list[Item]] = {}
    for image, shift in zip(images, shifts):
        items = _items(archive, image, layout, shift)
        splits.setdefault(image.entry.split or _split(archive, image.entry), []).extend(items)
        if not items and not archive.min_valid:
            problems.append((image.entry.id, _too_small(archive, image, layout)))
            _stop_at(problems, on_error)
    _check_val(archive, splits, len(images))
    return RecordSource(
        schema=make_schema(archive, layout, table.columns, _baselines(images), _level(archive, images)),
        splits={name: items for name, items in splits.items() if items or on_error == 'fail'},
        read=functools.partial(read_item, layout=layout),
        inputs=_inputs(archive),
        skips=[error.skip(name) for name, error in problems],
        notes=_notes(archive, layout, images, shifts),
    )


def _stop_at(problems: Sequence[Problem], on_error: OnError) -> None:
    if problems and on_error == 'fail':
        raise problems[0][1]


def _where(archive: Archive) -> str:
    return ', '.join(archive.of(m, 'root') for m in archive.modalities)


def _classes(archive: Archive, table: EntryTable) -> tuple[str, ...]:
    if 'labels' not in table.columns:
        if archive.classes:
            raise InputError(f'{archive.table}: config.archive.classes is set, but there is no column labels')
        return ()
    named = sorted({label for entry in table.entries for label in entry.labels})
    if not named:
        raise InputError(f'{archive.table}: no row has a label; leave the column labels out')
    return archive.classes or tuple(named)


def _usable(archive: Archive, table: EntryTable, problems: list[Problem], on_error: OnError) -> list[Image]:
    """The entries whose files can be used, with their headers; the first one sets what the others must be."""
    folders = roots(archive)
    usable: list[Image] = []
    # Those of all sensors first: one of them sets what the others must be.
    for entry in sorted(table.entries, key=lambda entry: not all(map(entry.files, archive.modalities))):
        if not usable and not all(map(entry.files, archive.modalities)):
            raise InputError(
                f"{_where(archive)}: missing='keep': no image that can be used has all sensors; leave the "
                'root of the one that is missing empty'
            )
        try:
            headers = {
                m: read_headers(
                    [folders[m] / f for f in entry.files(m)],
                    m,
                    archive.of(m, 'bands'),
                    archive.of(m, 'pixel'),
                )
                for m in archive.modalities
                if entry.files(m)
            }
            settings = _with_offset(archive, entry)
            kinds = {m: [kind_of(h, m, settings) for h in files] for m, files in headers.items()}
            image = Image(entry, headers, kinds, _map_header(archive, entry, folders))
            # A file that does not fit its partner is the wrong one, whatever the other images look like.
            check_ground(headers | ({'map': [image.map]} if image.map else {}))
            if usable:
                check_like(image.map, usable[0].map)
                _check_like_first(image, usable[0], 's2_offset' in table.columns)
        except RecordError as error:
            problems.append((entry.id, error))
            _stop_at(problems, on_error)
            continue
        usable.append(image)
    return usable


def _map_header(archive: Archive, entry: Entry, folders: Mapping[str, Path]) -> Header | None:
    if not archive.map_root:
        return None
    return map_header(folders['map'] / entry.map[0], bool(archive.map_quantity))


def _with_offset(archive: Archive, entry: Entry) -> Archive:
    """The settings for one image: its row of the table may give its own offset."""
    return dataclasses.replace(archive, s2_offset=entry.s2_offset or archive.s2_offset)


def _check_like_first(image: Image, first: Image, own_offsets: bool) -> None:
    for modality, headers in image.headers.items():
        examples = first.headers[modality]
        if len(headers) != len(examples):
            raise RecordError(
                headers[0].file,
                f'{modality} parts',
                f'{len(headers)} files, but {examples[0].file} is one of {len(examples)}',
                'every image needs as many files',
            )
        kinds = zip(headers, image.kinds[modality], first.kinds[modality], examples)
        for header, kind, wanted, example in kinds:
            if own_offsets and modality == 's2':
                kind = aligned(kind, wanted)
            check_kind(header, modality, kind, wanted, example)


def _one_offset(layout: RecordLayout, images: Sequence[Image]) -> tuple[RecordLayout, list[list[int]]]:
    """The layout with the lowest offset of all images, and what is added to the numbers of each of them."""
    kinds = [image.kinds for image in images]
    offsets = lowest(layout, kinds)
    groups = {
        name: dataclasses.replace(group, offset=offsets.get(name, group.offset))
        for name, group in layout.groups.items()
    }
    return (
        dataclasses.replace(layout, groups=groups),
        [shifts(layout, offsets, image.get('s2', ())) for image in kinds],
    )


def _notes(
    archive: Archive, layout: RecordLayout, images: Sequence[Image], moved: Sequence[Sequence[int]]
) -> list[str]:
    notes = []
    if count := sum(map(bool, moved)):
        notes.append(
            f'{count} of {len(images)} images have another Sentinel-2 offset: '
            f'{max(map(max, filter(None, moved)))} is added to their whole numbers, so that one offset '
            'holds for all'
        )
    if count := sum(len(image.headers) < len(archive.modalities) for image in images):
        notes.append(f'{count} of {len(images)} images lack a sensor, which is kept as nodata')
    sizes = Counter(image.size(layout) for image in images)
    if text := cover.note(archive, sizes, _multiple(layout)):
        notes.append(text)
    return notes


def _multiple(layout: RecordLayout) -> int:
    """Pixels of the finest file that a tile must be a multiple of, to be whole in every file."""
    return math.lcm(*(Fraction(part.step).limit_denominator(1000).numerator for part in layout.parts))


def _items(archive: Archive, image: Image, layout: RecordLayout, shift: Sequence[int]) -> list[Item]:
    """The tiles of one image, in rows from the upper left."""
    entry, fine = image.entry, image.fine
    times = {name: -1 for name in TIME if name[:2] in archive.modalities}
    facts: dict[str, Any] = {**times, **entry.facts, 'scene': _scene(entry)}
    labels = [layout.classes.index(label) for label in entry.labels]
    files = {m: list(entry.files(m)) for m in archive.modalities}
    result = []
    shape, label_file = image.size(layout), ''.join(entry.map)
    for row, column in tiles(archive, *shape):
        place, corner = list(fine.place), [row, column]
        tile = Tile(files, place, list(shape), corner, layout.finest, labels, facts, shift, label_file)
        if archive.min_valid and _empty(tile, layout, archive.min_valid):
            continue
        # Without targets the item is what it was before there were any: finished conversions stay recognised.
        values = tuple(tile)[:-1] + ((list(entry.targets),) if layout.targets else ())
        result.append(Item(f'{entry.id}_{row}_{column}', values))
    return result


def _empty(tile: Tile, layout: RecordLayout, least: float) -> bool:
    try:
        shares = valid_shares(read_images(tile, layout), layout)
    except RecordError:
        return False  # damaged: converting it will say so
    # A sensor that is missing as a whole is missing on purpose.
    return min(share for modality, share in shares.items() if tile.files[modality]) < least


def _scene(entry: Entry) -> str:
    return entry.facts.get('scene') or entry.id


def _split(archive: Archive, entry: Entry) -> str:
    """`val` or `train` by a hash of the scene, so that tiles of one image never part."""
    share = int.from_bytes(hashlib.blake2b(_scene(entry).encode(), digest_size=8).digest()) / 2**64
    return 'val' if share < archive.val_share else 'train'


def _too_small(archive: Archive, image: Image, layout: RecordLayout) -> RecordError:
    rows, columns = image.size(layout)
    multiple = _multiple(layout)
    largest = min(rows, columns) // multiple * multiple
    return RecordError(
        image.fine.file,
        'size',
        f'no tile of {archive.tile} pixels in {rows} x {columns}',
        (f'choose tile={largest} or smaller, ' if largest else 'choose ')
        + "edge='pad', or leave such images out with on_error=skip",
    )


def _baselines(images: Sequence[Image]) -> str:
    """The processing baselines that the metadata name, from..to; '' unless all files name one."""
    baselines = sorted({baseline(header) for image in images for header in image.headers.get('s2', ())})
    if not baselines or not baselines[0]:
        return ''
    return baselines[0] if len(baselines) == 1 else f'{baselines[0]}..{baselines[-1]}'


def _level(archive: Archive, images: Sequence[Image]) -> Literal['', 'L1C', 'L2A']:
    """The level of the optical products, as the setting or the metadata of all files say.

    Raises InputError where they contradict each other.
    """
    headers = [header for image in images for header in image.headers.get('s2', ())]
    levels = {level_of(header.tags): header.file for header in headers}
    for level, file in levels.items():
        if level and archive.s2_level and level != archive.s2_level:
            raise InputError(
                f'{file}: PRODUCT_TYPE says {level}, but config.archive.s2_level={archive.s2_level!r}; leave '
                'the setting out, or correct the tag'
            )
    return archive.s2_level or (next(iter(levels)) if len(levels) == 1 else '')


def _check_val(archive: Archive, splits: Mapping[str, Sequence[Item]], images: int) -> None:
    if archive.val_share and not (splits.get('train') and splits.get('val')):
        there = ', '.join(splits)
        raise InputError(
            f'config.archive.val_share={archive.val_share}: the hash of the names puts all {images} images '
            f'into {there}; name splits in a table, or choose another share'
        )


def _inputs(archive: Archive) -> dict[str, str]:
    """Every setting that is not its default, and the folders resolved."""
    defaults = Archive()
    changed = {
        field.name: str(getattr(archive, field.name))
        for field in dataclasses.fields(archive)
        if getattr(archive, field.name) != getattr(defaults, field.name)
    }
    return changed | {f'{m}_root': str(folder) for m, folder in roots(archive).items()}
