"""Which files belong together: by their names."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from data import records
from data.paired_folder.settings import Archive, Offset
from data.paths import inside
from data.records import RecordError
from fusmae_jax.errors import InputError

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

    def files(self, modality: str) -> tuple[str, ...]:
        """The files of one sensor."""
        return self.s1 if modality == 's1' else self.s2


def roots(archive: Archive) -> dict[str, Path]:
    """The folder of each sensor, resolved; raises InputError for one that does not exist."""
    return {m: records.folder(getattr(archive, f'{m}_root'), f'{m}_root') for m in archive.modalities}


def by_name(archive: Archive) -> tuple[list[Entry], list[Problem]]:
    """The entries of folders whose files pair by their names, in the order of these; and what is left over.

    Raises InputError where the settings cannot tell the sensors apart, or for a folder without a GeoTIFF.
    """
    folders = roots(archive)
    _check_apart(archive, folders)
    problems: list[Problem] = []
    found = {m: _stems(archive, m, folders, problems) for m in folders}
    entries = []
    for stem in sorted(set().union(*found.values())):
        missing = [m for m in folders if stem not in found[m]]
        if missing:
            problems.append((stem, _lonely(archive, stem, missing[0], found, folders)))
            continue
        files = {m: tuple(found[m][stem]) for m in folders}
        entries.append(Entry(stem, files.get('s1', ()), files.get('s2', ()), '', (), {}, ''))
    return entries, problems


def _check_apart(archive: Archive, folders: Mapping[str, Path]) -> None:
    if len(folders) < 2:
        return
    one, two = folders.values()
    if one == two:
        if (archive.s1_prefix, archive.s1_suffix) == (archive.s2_prefix, archive.s2_suffix):
            raise InputError(
                f'{one}: s1_root and s2_root are the same folder: tell the files apart by s1_suffix and '
                's2_suffix (or the prefixes), or pair them with a table'
            )
    elif one.is_relative_to(two) or two.is_relative_to(one):
        raise InputError(
            f's1_root={one}, s2_root={two}: one lies inside the other; give two separate folders, one for '
            'both with suffixes, or a table'
        )


def _stems(
    archive: Archive, modality: str, folders: Mapping[str, Path], problems: list[Problem]
) -> dict[str, list[str]]:
    """stem -> files of one sensor, one for each part."""
    root, parts = folders[modality], getattr(archive, f'{modality}_parts') or ('',)
    shared = len(set(folders.values())) < len(folders)
    found: dict[str, dict[str, str]] = {}
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
        if part in found.setdefault(stem, {}):
            advice = 'rename or remove one of the two'
            problems.append(
                (name, RecordError(root / name, 'name', f'{found[stem][part]} has the same stem', advice))
            )
            continue
        found[stem][part] = name
    complete = {}
    for stem, files in found.items():
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
        raise InputError(f'{root}: no file here ends in {" or ".join(EXTENSIONS)}; give the folder that has')
    return sorted(names)


def _split(archive: Archive, modality: str, name: str) -> tuple[str, str]:
    """Stem (with its folder) and part of a file name; an empty stem if it is no file of this sensor."""
    prefix, suffix = getattr(archive, f'{modality}_prefix'), getattr(archive, f'{modality}_suffix')
    folder, _, file = name.rpartition('/')
    base = file.rpartition('.')[0]
    for part in sorted(getattr(archive, f'{modality}_parts'), key=len, reverse=True) or ('',):
        ending = suffix + part
        core = base.removeprefix(prefix).removesuffix(ending)
        if core and base == prefix + core + ending:
            return (f'{folder}/{core}' if folder else core), part
    return '', ''


def _pattern(archive: Archive, modality: str) -> str:
    prefix, suffix = getattr(archive, f'{modality}_prefix'), getattr(archive, f'{modality}_suffix')
    parts = getattr(archive, f'{modality}_parts')
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
    found: Mapping[str, Mapping[str, list[str]]],
    folders: Mapping[str, Path],
) -> RecordError:
    there = next(m for m in folders if m != missing)
    example = next((files[0] for files in found[missing].values()), '')
    other = f' (files there are named like {example})' if example else ''
    return RecordError(
        folders[there] / found[there][stem][0],
        f'{missing} partner',
        f'no file {_pattern(archive, missing).replace("*", stem)} in {folders[missing]}{other}',
        's1_suffix, s2_suffix and the prefixes say what the names do not share; or pair with a table; or '
        'on_error=skip leaves single files out',
    )
