"""Entries of folders whose files pair by their names."""

import itertools
import os
from collections.abc import Mapping
from pathlib import Path

from fusmae_jax.errors import InputError
from fusmae_jax.geo.bands import RADAR
from fusmae_jax.geo.products import is_product

from ..records import RecordError, inside
from .entries import EXTENSIONS, Entry, Problem, parts_of, products, roots
from .settings import SENSORS, Archive, prefix_of


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
        s1, s1_desc, s2, dem = (files.get(m, ()) for m in SENSORS)
        entries.append(Entry(stem, s1, s2, '', (), {}, '', map=label_map, dem=dem, s1_desc=s1_desc))
    return entries, problems


def _check_apart(archive: Archive, folders: Mapping[str, Path]) -> None:
    for (one, root), (other, beside) in itertools.combinations(folders.items(), 2):
        names = [(archive.of(m, 'prefix'), archive.of(m, 'suffix')) for m in (one, other)]
        if root == beside:
            # Images of the same name too are stacks: every file holds bands of both sensors.
            if names[0] == names[1] and ('map' in (one, other) or {one, other} == {*RADAR}):
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
    root, parts = folders[modality], parts_of(archive, modality) or ('',)
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
            advice = f'every image needs its {len(parts)} files of {prefix_of(modality)}_parts={parts}'
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
    prefix, suffix = archive.of(modality, 'prefix'), archive.of(modality, 'suffix')
    folder, _, file = name.rpartition('/')
    base = file.rpartition('.')[0]
    for part in sorted(parts_of(archive, modality), key=len, reverse=True) or ('',):
        ending = suffix + part
        core = base.removeprefix(prefix).removesuffix(ending)
        if core and base == prefix + core + ending:
            return (f'{folder}/{core}' if folder else core), part
    return '', ''


def _pattern(archive: Archive, modality: str) -> str:
    prefix, suffix = archive.of(modality, 'prefix'), archive.of(modality, 'suffix')
    parts = parts_of(archive, modality)
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
