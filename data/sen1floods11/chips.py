"""Listing the archive: which chips there are, and the split that each belongs to."""

import csv
import dataclasses
import functools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from fusmae_jax.config.setting import setting
from fusmae_jax.errors import InputError, nearest

from .. import records
from ..records import Item, RecordError, RecordSource
from .images import DATA, KINDS, Chip, read_item
from .schema import EVENTS, LISTS, PUBLISHED, SIZE, SPLITS, schema
from .schema import SCHEMA as SCHEMA

LIST_FOLDER = Path('splits/flood_handlabeled')
_CHIP = re.compile(r'([A-Za-z-]+)_(\d+)_(S1Hand|LabelHand)\.tif')
Problems = list[tuple[str, RecordError]]


@dataclasses.dataclass(frozen=True)
class Archive:
    """Where the archive is, how it is split, and what becomes a record."""

    root: str = setting('', path=True)  # the folder v1.1 of the bucket, with data/ and splits/ in it
    splits: Literal['official', 'one'] = 'official'  # the four lists of the authors; one: all into train
    # Pixels a side of a record: a chip has 512, and one that this divides is cut
    tile: int = setting(SIZE, least=1, most=SIZE)


def source(archive: Archive, on_error: Literal['fail', 'skip'] = 'fail') -> RecordSource:
    """The archive as the converter takes it.

    Raises InputError for a wrong folder or tile, and with `on_error='fail'` for a chip that cannot be used.
    """
    if SIZE % archive.tile:
        raise InputError(
            f'config.archive.tile={archive.tile} does not divide {SIZE}, the side of a chip; take 128 or 256'
        )
    root = _root(archive.root)
    chips, problems = _listed(root) if archive.splits == 'official' else find(root)
    if problems and on_error == 'fail':
        raise problems[0][1]
    names = SPLITS.values() if archive.splits == 'official' else ('train',)
    splits: dict[str, list[Item]] = {name: [] for name in names}
    for chip in chips:
        split = chip.split if archive.splits == 'official' else 'train'
        splits[split] += [_item(tile, archive.tile) for tile in cut(chip, archive.tile)]
    whole = archive.splits == 'official'
    each = (SIZE // archive.tile) ** 2
    return RecordSource(
        schema=schema(archive.tile),
        splits={name: items for name, items in splits.items() if items or on_error == 'fail'},
        read=functools.partial(read_item, root=str(root), tile=archive.tile),
        inputs={'root': str(root), 'splits': archive.splits, 'tile': str(archive.tile)},
        skips=[error.skip(name) for name, error in problems],
        published={name: count * each for name, count in PUBLISHED.items()} if whole else {},
    )


def cut(chip: Chip, tile: int) -> Iterator[Chip]:
    """The tiles of a chip, row by row; the chip itself where it is not cut."""
    for row in range(0, SIZE, tile):
        for column in range(0, SIZE, tile):
            yield chip._replace(row=row, column=column)


def _item(chip: Chip, tile: int) -> Item:
    name = chip.scene if tile == SIZE else f'{chip.scene}_{chip.row}_{chip.column}'
    return Item(name, tuple(chip))


def _root(path: str) -> Path:
    root = records.folder(path, 'root')
    if not (root / DATA / KINDS['s1']).is_dir():
        hint = f'; {root / "v1.1"} is such a folder' if (root / 'v1.1' / DATA).is_dir() else ''
        raise InputError(
            f'{root}: root: no folder {DATA / KINDS["s1"]} in it; give the folder v1.1 of the archive{hint}'
        )
    return root


def find(root: Path) -> tuple[list[Chip], Problems]:
    """Every chip with a Sentinel-1 image, sorted, with the split that the lists say, where they are there."""
    lists = {file: SPLITS[name] for name, file in LISTS.items() if (root / LIST_FOLDER / file).is_file()}
    known = {chip.scene: chip.split for chip in _rows(root, lists, [])}
    chips: list[Chip] = []
    problems: Problems = []
    for file in sorted((root / DATA / KINDS['s1']).iterdir()):
        if file.suffix != '.tif' or file.name.startswith('.'):
            continue
        try:
            chip = _chip(file.name, 's1', file)
        except RecordError as error:
            problems.append((file.stem, error))
            continue
        chips.append(chip._replace(split=known.get(chip.scene, '')))
    return chips, problems


def _listed(root: Path) -> tuple[list[Chip], Problems]:
    """The chips of the four lists."""
    for file in LISTS.values():
        if not (root / LIST_FOLDER / file).is_file():
            raise InputError(
                f'{root / LIST_FOLDER / file}: no such file; the lists of the authors say which chip is in '
                "which split: download them, or set config.archive.splits='one'"
            )
    problems: Problems = []
    chips: dict[str, Chip] = {}
    for chip in _rows(root, {file: SPLITS[name] for name, file in LISTS.items()}, problems):
        if (first := chips.setdefault(chip.scene, chip)) != chip:
            message = f'{chip.scene} is in {first.split} and in {chip.split}'
            error = RecordError(root / LIST_FOLDER, 'splits', message, 'download the lists again')
            problems.append((chip.scene, error))
    return list(chips.values()), problems


def _rows(root: Path, lists: dict[str, str], problems: Problems) -> Iterator[Chip]:
    """The chips of some lists, which have no header; what is no chip goes to `problems`."""
    for name, split in lists.items():
        file = root / LIST_FOLDER / name
        try:
            with file.open(newline='', encoding='utf-8') as stream:
                rows = list(csv.reader(stream, strict=True))
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise InputError(f'{file}: cannot be read as a CSV ({error}); download it again') from error
        for number, row in enumerate(filter(None, rows), 1):
            try:
                yield _row(row, file, number)._replace(split=split)
            except RecordError as error:
                problems.append((f'{name}, row {number}', error))


def _row(row: Sequence[str], file: Path, number: int) -> Chip:
    if len(row) != 2:
        message = f'{len(row)} columns, expected a Sentinel-1 file and its label'
        raise RecordError(file, f'row {number}', message, 'download the list again')
    first, second = (_chip(name.strip(), kind, file) for name, kind in zip(row, ('s1', 'label')))
    if first != second:
        message = f'{row[0]} with the label {row[1]}'
        raise RecordError(file, f'row {number}', message, 'download the list again')
    return first


def _chip(name: str, kind: str, file: Path) -> Chip:
    """The chip that a file belongs to, by its name."""
    match = _CHIP.fullmatch(name)
    if match is None or match[3] != KINDS[kind]:
        raise RecordError(
            file,
            'name',
            f'{name!r}, expected EVENT_NUMBER_{KINDS[kind]}.tif',
            'keep the names of the archive',
        )
    if match[1] not in EVENTS:
        raise RecordError(file, 'event', repr(match[1]), nearest(match[1], EVENTS))
    return Chip(match[1], match[2])
