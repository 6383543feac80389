"""Entries of a table, with what it says of each image: split, labels, places, times."""

import csv
import datetime
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from fusmae_jax.errors import InputError

from ..records import Field, RecordError, inside
from . import labels, targets
from .entries import Entry, Problem, parts_of, products, roots
from .settings import SENSORS, Archive, Offset

TIME = ('s1_time', 's2_time')
FLAGS = ('snow', 'cloud')
FACTS = {
    's1_time': Field('int64', 'Sentinel-1 acquisition, Unix seconds, UTC; -1 where it is not known'),
    's2_time': Field('int64', 'Sentinel-2 acquisition, Unix seconds, UTC; -1 where it is not known'),
    'country': Field('text', 'country, as the table has it'),
    'season': Field('text', 'season, as the table has it'),
    'snow': Field('uint8', '1 if the table says that there is snow'),
    'cloud': Field('uint8', '1 if the table says that there are clouds'),
    'scene': Field('text', 'what this record shares with its neighbours, as the table has it'),
}
OFFSETS: dict[str, Offset | Literal['']] = {
    '': '',
    'auto': 'auto',
    '0': '0',
    '0.0': '0',
    '-1000': '-1000',
    '-1000.0': '-1000',
}
COLUMNS = (*SENSORS, 'map', 'id', 'split', labels.COLUMN, 's2_offset', *FACTS)


class EntryTable(NamedTuple):
    """What a table holds."""

    columns: tuple[str, ...]
    entries: list[Entry]
    problems: list[Problem]


def read_table(archive: Archive) -> EntryTable:
    """The entries of `archive.table`.

    `s1`, `s2` and `map` are files relative to the roots, those of a sensor parted by `;` where an image lies
    in parts; `id` names a row (else the Sentinel-2 file does, or the Sentinel-1 file). `labels` holds the
    classes, or each of `archive.classes` has a column of its own (see `labels.reader`); `s2_offset` replaces
    the setting of that name for the row.

    Raises InputError for a table that cannot be read or has unknown, missing or ambiguous columns.
    """
    file, folders = Path(archive.table), roots(archive)
    rows, columns = _rows(file, archive)
    flags = labels.class_columns(file, columns, COLUMNS, archive)
    if clash := [name for name in archive.targets if name in COLUMNS]:
        raise InputError(f'config.archive.targets: column {clash[0]!r} has another meaning; rename it')
    targets.check_columns(file, columns, archive)
    for name in columns:
        if name not in (*COLUMNS, *flags, *archive.targets):
            raise labels.unknown_column(file, name, rows, COLUMNS)
    classes_of = labels.reader(archive, file, rows, flags)
    entries: list[Entry] = []
    problems: list[Problem] = []
    seen: dict[str, dict[Any, str]] = {'id': {}, 'files': {}, 'split': {}}
    for number, row in enumerate(rows, start=2):
        where = f'row {number}'
        try:
            entry = _entry(archive, folders, file, where, row, classes_of)
            _check_once(entry, seen)
        except RecordError as error:
            problems.append((row.get('id') or where, error))
            continue
        entries.append(entry)
    if entries:
        targets.check_some(archive, [entry.targets for entry in entries])
    return EntryTable((*columns, labels.COLUMN) if flags else columns, entries, problems)


def _rows(file: Path, archive: Archive) -> tuple[list[dict[str, str]], tuple[str, ...]]:
    try:
        with file.open(newline='', encoding='utf-8-sig') as stream:
            reader = csv.DictReader(stream, strict=True)
            columns = tuple(name.strip() for name in reader.fieldnames or ())
            reader.fieldnames = columns
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f'{file}: table: cannot be read as a UTF-8 CSV ({error})') from error
    if len(set(columns)) < len(columns):
        raise InputError(f'{file}: table: two columns have the same name: {", ".join(columns)}')
    for name in (*SENSORS, 'map'):
        wanted = name in archive.sources
        if wanted != (name in columns):
            message = 'is missing' if wanted else f'is there, but {name}_root is not set'
            raise InputError(f'{file}: table: column {name!r} {message}; columns: {", ".join(columns)}')
    if 's2_offset' in columns and 's2' not in archive.modalities:
        raise InputError(f"{file}: table: column 's2_offset' is there, but s2_root is not set")
    if not rows:
        raise InputError(f'{file}: table: no row below the header; nothing to convert')
    return rows, columns


def _entry(
    archive: Archive,
    folders: Mapping[str, Path],
    file: Path,
    where: str,
    row: Mapping[Any, Any],
    classes_of: labels.Reader,
) -> Entry:
    if None in row or None in row.values():
        raise RecordError(file, where, 'another number of columns than the header', 'repair the row')
    values = {name: text.strip() for name, text in row.items()}
    files = {m: _files(archive, m, folders[m], values[m], f'{file}: {where}') for m in folders}
    first = next((files[m] for m in ('s2', 's1', 's1_desc', 'dem') if files.get(m)), None)
    if not first:
        raise RecordError(file, where, 'no sensor has a file', 'name one, or remove the row')
    if files.get('s1') and 's1_desc' in files:
        passes = [[folders[m] / name for name in files[m]] for m in ('s1', 's1_desc')]
        if passes[0] == passes[1]:
            message = f'{values["s1_desc"]!r}: the same file is given for both passes'
            raise RecordError(file, f'{where}, s1_desc', message, 'repair the row')
    if 'split' in values and not re.fullmatch(r'[a-z][a-z0-9_]*', values['split']):
        raise RecordError(
            file, f'{where}, split', f'{values["split"]!r}', "write a name in small letters, such as 'train'"
        )
    if (offset := OFFSETS.get(values.get('s2_offset', ''))) is None:
        raise RecordError(
            file,
            f'{where}, s2_offset',
            f'{values["s2_offset"]!r}',
            'write 0, -1000 or auto; empty is the setting',
        )
    return Entry(
        id=values.get('id') or first[0].rpartition('.')[0],
        s1=files.get('s1', ()),
        s2=files.get('s2', ()),
        split=values.get('split', ''),
        labels=classes_of(values, where),
        facts={name: _fact(file, where, name, values[name]) for name in FACTS if name in values},
        source=f'{file}: {where}',
        s2_offset=offset,
        map=files.get('map', ()),
        dem=files.get('dem', ()),
        s1_desc=files.get('s1_desc', ()),
        targets=targets.numbers(values, archive, file, where),
    )


def _files(archive: Archive, modality: str, root: Path, text: str, where: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(';') if name.strip())
    parts = len(parts_of(archive, modality))
    if not names and archive.missing == 'keep' and modality != 'map':
        return ()
    if not names or (parts and len(names) != parts) or (modality == 'map' and len(names) > 1):
        wanted = f'{parts} files parted by ;' if parts else 'a file'
        raise RecordError(where, modality, f'{text!r}, expected {wanted}', 'repair the row')
    for name in names:
        inside(root, name, where, modality)
    return products(archive, modality, root, [Path(name.replace('\\', '/')).as_posix() for name in names])


def _fact(file: Path, where: str, name: str, text: str) -> Any:
    if name in TIME:
        return parse_time(file, f'{where}, {name}', text)
    if name in FLAGS:
        if text not in ('0', '1'):
            raise RecordError(file, f'{where}, {name}', f'{text!r}', 'write 0 or 1')
        return int(text)
    return text


def parse_time(file: Path, field: str, text: str) -> int:
    """Unix seconds of an ISO 8601 time, UTC unless it says otherwise; -1 for an empty one.

    A day without a time is its midnight. Raises RecordError for other texts, and for times before the first
    Sentinel satellite (April 2014).
    """
    if not text:
        return -1
    try:
        time = datetime.datetime.fromisoformat(text)
    except ValueError as error:
        raise RecordError(file, field, f'{text!r} is no time', 'write 2024-06-30T10:10:31Z') from error
    if time.tzinfo is None:
        time = time.replace(tzinfo=datetime.UTC)
    if time.year < 2014:
        raise RecordError(file, field, f'{text!r} is before the first Sentinel satellite', 'repair the time')
    return int(time.timestamp())


def _check_once(entry: Entry, seen: dict[str, dict[Any, str]]) -> None:
    """A row stands once, and a file in one split: tiles of one image in two splits would be a leak."""
    for what, value in (('id', entry.id), ('files', (entry.s1, entry.s1_desc, entry.s2, entry.dem))):
        if value in seen[what]:
            message = f'{value!r} as in {seen[what][value]}'
            raise RecordError(
                entry.source, what, message, 'give every pair one row, and every row its own id'
            )
        seen[what][value] = entry.source
    for modality in SENSORS:
        for name in entry.files(modality):
            split = seen['split'].setdefault((modality, name), entry.split)
            if split != entry.split:
                raise RecordError(
                    entry.source,
                    'split',
                    f'{entry.split!r}, but {name} is in {split!r} already',
                    'an image must stay in one split, or one split knows the other',
                )
