"""Entries of a user's folders: which files belong together, by their names or by a table."""

import csv
import datetime
import itertools
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from fusmae_jax.errors import InputError
from fusmae_jax.geo.products import is_product, rasters_of

from .. import records
from ..geotiff import refused
from ..records import Field, RecordError, inside
from . import labels
from .settings import Archive, Offset

EXTENSIONS = ('.tif', '.tiff')
Problem = tuple[str, RecordError]  # what cannot be used, and why


class Entry(NamedTuple):
    """The images of one piece of ground, and what is known about them."""

    id: str
    s1: tuple[str, ...]  # files, relative to s1_root; empty without this sensor
    s2: tuple[str, ...]
    split: str
    labels: tuple[str, ...]
    facts: Mapping[str, Any]  # record field -> value, of the fields that only a table can tell
    source: str  # where the entry stands, for errors
    s2_offset: Offset | Literal[''] = ''  # as the setting of that name, which '' leaves as it is
    map: tuple[str, ...] = ()  # the label raster, relative to map_root; empty without

    def files(self, source: str) -> tuple[str, ...]:
        """The files of one sensor, or of 'map'."""
        return {'s1': self.s1, 's2': self.s2, 'map': self.map}[source]


def roots(archive: Archive) -> dict[str, Path]:
    """The folder of each sensor and of 'map', resolved; raises InputError for one that does not exist."""
    return {m: records.folder(getattr(archive, f'{m}_root'), f'{m}_root') for m in archive.sources}


def products(archive: Archive, modality: str, root: Path, names: Sequence[str]) -> tuple[str, ...]:
    """Files relative to a root, in which a product is replaced by its rasters, one for each pixel size.

    Raises RecordError for a product that cannot be used.
    """
    result: list[str] = []
    for name in names:
        with refused(root / name, modality, ''):
            rasters = rasters_of(root / name, modality)
        if rasters != [root / name] and archive.georeference == 'none':
            advice = 'leave georeference alone: products know their place'
            raise RecordError(root / name, modality, "a product, with georeference='none'", advice)
        result += [raster.relative_to(root).as_posix() for raster in rasters]
    return tuple(result)


def by_name(archive: Archive) -> tuple[list[Entry], list[Problem]]:
    """The entries of folders whose files pair by their names, in the order of these; and what is left over.

    Raises InputError where the settings cannot tell the sensors apart, or for a folder without a GeoTIFF.
    """
    folders = roots(archive)
    _check_apart(archive, folders)
    problems: list[Problem] = []
    stems = {m: _stems(archive, m, folders, problems) for m in folders}
    entries = []
    for stem in sorted(set().union(*stems.values())):
        missing = [m for m in folders if stem not in stems[m]]
        # A label without an image, or an image without its label, is no record whatever may be missing.
        lonely = 'map' in missing or set(archive.modalities) <= set(missing)
        if missing and (lonely or archive.missing == 'error'):
            problems.append((stem, _lonely(archive, stem, missing[0], stems, folders)))
            continue
        try:
            files = {m: products(archive, m, folders[m], stems[m].get(stem, [])) for m in archive.modalities}
        except RecordError as error:
            problems.append((stem, error))
            continue
        label_map = tuple(stems['map'][stem]) if 'map' in folders else ()
        entries.append(Entry(stem, files.get('s1', ()), files.get('s2', ()), '', (), {}, '', map=label_map))
    return entries, problems


def _check_apart(archive: Archive, folders: Mapping[str, Path]) -> None:
    for (one, root), (other, beside) in itertools.combinations(folders.items(), 2):
        names = [(getattr(archive, f'{m}_prefix'), getattr(archive, f'{m}_suffix')) for m in (one, other)]
        if root == beside:
            # Images of the same name too are stacks: every file holds bands of both sensors.
            if names[0] == names[1] and 'map' in (one, other):
                raise InputError(
                    f'{root}: {one}_root and {other}_root are the same folder: tell the files apart by '
                    f'{one}_suffix and {other}_suffix (or the prefixes), or pair them with a table'
                )
        elif root.is_relative_to(beside) or beside.is_relative_to(root):
            raise InputError(
                f'{one}_root={root}, {other}_root={beside}: one lies inside the other; give two separate '
                'folders, one for both with suffixes, or a table'
            )


def _stems(
    archive: Archive, modality: str, folders: Mapping[str, Path], problems: list[Problem]
) -> dict[str, list[str]]:
    """stem -> files of one sensor, one for each part."""
    root, parts = folders[modality], _parts(archive, modality) or ('',)
    shared = len(set(folders.values())) < len(folders)
    by_stem: dict[str, dict[str, str]] = {}
    for name in _list(root, problems):
        try:
            inside(root, name, root, 'name')
        except RecordError as error:
            problems.append((name, error))
            continue
        stem, part = _split(archive, modality, name)
        if not stem:
            if not shared:
                problems.append((name, _foreign(archive, modality, root / name)))
            elif not any(_split(archive, other, name)[0] for other in folders if other != modality):
                problems.append((name, _foreign(archive, 's1', root / name)))
            continue
        if part in by_stem.setdefault(stem, {}):
            advice = 'rename or remove one of the two'
            problems.append(
                (name, RecordError(root / name, 'name', f'{by_stem[stem][part]} has the same stem', advice))
            )
            continue
        by_stem[stem][part] = name
    complete = {}
    for stem, files in by_stem.items():
        absent = [part for part in parts if part not in files]
        if absent:
            there = next(iter(files.values()))
            problem = f'no file {stem} with the ending {absent[0]!r} beside it'
            advice = f'every image needs its {len(parts)} files of {modality}_parts={parts}'
            problems.append((stem, RecordError(root / there, f'{modality} parts', problem, advice)))
        else:
            complete[stem] = [files[part] for part in parts]
    return complete


def _list(root: Path, problems: list[Problem]) -> list[str]:
    names = []
    for folder, folders, files in os.walk(root):
        # A product is one image, whatever lies in it.
        inner = [name for name in folders if is_product(Path(folder, name))]
        names += [Path(folder, name).relative_to(root).as_posix() for name in inner]
        folders[:] = [name for name in folders if name not in inner]
        for name in folders:
            if os.path.islink(link := Path(folder, name)):
                advice = 'give the folder itself as a root, or move it here'
                problems.append(
                    (name, RecordError(link, 'name', 'links to folders are not followed', advice))
                )
        names += [
            Path(folder, name).relative_to(root).as_posix()
            for name in files
            if name.lower().endswith(EXTENSIONS)
        ]
    if not names:
        raise InputError(
            f'{root}: no file here ends in {" or ".join(EXTENSIONS)} and no folder in .SAFE; give the folder '
            'that has'
        )
    return sorted(names)


def _split(archive: Archive, modality: str, name: str) -> tuple[str, str]:
    """Stem (with its folder) and part of a file name; an empty stem if it is no file of this sensor."""
    prefix, suffix = getattr(archive, f'{modality}_prefix'), getattr(archive, f'{modality}_suffix')
    folder, _, file = name.rpartition('/')
    base = file.rpartition('.')[0]
    for part in sorted(_parts(archive, modality), key=len, reverse=True) or ('',):
        ending = suffix + part
        core = base.removeprefix(prefix).removesuffix(ending)
        if core and base == prefix + core + ending:
            return (f'{folder}/{core}' if folder else core), part
    return '', ''


def _parts(archive: Archive, modality: str) -> tuple[str, ...]:
    """Endings of the files of one image; a label raster is one file."""
    return getattr(archive, f'{modality}_parts') if modality in archive.modalities else ()


def _pattern(archive: Archive, modality: str) -> str:
    prefix, suffix = getattr(archive, f'{modality}_prefix'), getattr(archive, f'{modality}_suffix')
    parts = _parts(archive, modality)
    return f'{prefix}*{suffix}{"{" + ",".join(parts) + "}" if parts else ""}.tif'


def _foreign(archive: Archive, modality: str, file: Path) -> RecordError:
    wanted = ' or '.join(_pattern(archive, m) for m in archive.modalities) if modality == 's1' else ''
    wanted = wanted or _pattern(archive, modality)
    return RecordError(
        file, 'name', f'does not fit {wanted}', 'set the prefixes, suffixes and parts, or move the file away'
    )


def _lonely(
    archive: Archive,
    stem: str,
    missing: str,
    stems: Mapping[str, Mapping[str, list[str]]],
    folders: Mapping[str, Path],
) -> RecordError:
    there = next(m for m in folders if m != missing and stem in stems[m])
    example = next((files[0] for files in stems[missing].values()), '')
    other = f' (files there are named like {example})' if example else ''
    return RecordError(
        folders[there] / stems[there][stem][0],
        f'{missing} partner',
        f'no file {_pattern(archive, missing).replace("*", stem)} in {folders[missing]}{other}',
        's1_suffix, s2_suffix and the prefixes say what the names do not share; or pair with a table; or '
        'on_error=skip leaves single files out',
    )


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
COLUMNS = ('s1', 's2', 'map', 'id', 'split', labels.COLUMN, 's2_offset', *FACTS)


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
    for name in columns:
        if name not in COLUMNS and name not in flags:
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
    for name in ('s1', 's2', 'map'):
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
    first = files.get('s2') or files.get('s1')
    if not first:
        raise RecordError(file, where, 'neither sensor has a file', 'name one, or remove the row')
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
    )


def _files(archive: Archive, modality: str, root: Path, text: str, where: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(';') if name.strip())
    parts = len(_parts(archive, modality))
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
    for what, value in (('id', entry.id), ('files', (entry.s1, entry.s2))):
        if value in seen[what]:
            message = f'{value!r} as in {seen[what][value]}'
            raise RecordError(
                entry.source, what, message, 'give every pair one row, and every row its own id'
            )
        seen[what][value] = entry.source
    for modality in ('s1', 's2'):
        for name in entry.files(modality):
            split = seen['split'].setdefault((modality, name), entry.split)
            if split != entry.split:
                raise RecordError(
                    entry.source,
                    'split',
                    f'{entry.split!r}, but {name} is in {split!r} already',
                    'an image must stay in one split, or one split knows the other',
                )
