"""Listing the archive: which locations there are, each with four time stamps that become a record each."""

import dataclasses
import functools
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from fusmae_jax.config.setting import setting
from fusmae_jax.errors import InputError

from .. import records
from ..records import Item, RecordError, RecordSource, Schema, inside
from . import cubes, patches, schema
from .schema import PUBLISHED, Optical, Version
from .zarr_files import S1

OnError = Literal['fail', 'skip']


@dataclasses.dataclass(frozen=True)
class Archive:
    """Where the archive is and what of it to take."""

    # v1.1: the folder with train/ and val/; v1.0: that with s1/ and s2a/ or s2c/
    root: str = setting('', path=True)
    version: Version = '1.1'
    optical: Optical = 'S2L2A'  # S2L1C: top of the atmosphere, with B10
    splits: tuple[Literal['train', 'val'], ...] = ()  # empty: all; v1.0 has train alone


def archive_schema(archive: Archive) -> Schema:
    """The schema of the records of an archive with these settings."""
    return schema.schema(archive.version, archive.optical)


def source(archive: Archive, on_error: OnError = 'fail') -> RecordSource:
    """The archive as the converter takes it.

    Raises InputError for wrong settings, and with `on_error='fail'` for a file or location that cannot be
    used; else such are left out and listed.
    """
    root = records.folder(archive.root, 'root')
    published = PUBLISHED[archive.version]
    if wrong := [name for name in archive.splits if name not in published]:
        raise InputError(f'config.archive.splits: v{archive.version} has no split {wrong[0]!r}')
    skips: list[Mapping[str, str]] = []
    splits: dict[str, list[Item]] = {}
    for split in archive.splits or published:
        splits[split] = []
        for entry in _find(root, split, archive):
            if isinstance(entry, Item):
                splits[split].append(entry)
            elif on_error == 'fail':
                raise entry[1]
            else:
                skips.append(entry[1].skip(entry[0]))
    _check_unique(splits)
    read: Any = cubes.read_item if archive.version == '1.1' else patches.read_item
    return RecordSource(
        schema=archive_schema(archive),
        splits={name: items for name, items in splits.items() if items or on_error == 'fail'},
        read=functools.partial(read, root=str(root), optical=archive.optical),
        inputs={'root': str(root), 'version': archive.version, 'optical': archive.optical},
        skips=skips,
        published={split: published[split] for split in splits},
        together=cubes.together if archive.version == '1.1' else None,
    )


def _find(root: Path, split: str, archive: Archive) -> Iterable[Item | tuple[str, RecordError]]:
    if archive.version == '1.0':
        folders = [root / patches.FOLDERS[kind] for kind in ('S1', archive.optical)]
        return patches.find({str(folder): _names(folder, patches.LOCATION) for folder in folders})
    kinds = (S1, archive.optical)
    names = {kind: _names(root / split / kind, cubes.FILE) for kind in kinds}
    return cubes.find(root, split, archive.optical, names)


def _names(folder: Path, pattern: str) -> set[str]:
    """The names in a folder that fit; a link among them must not lead out of it."""
    if not folder.is_dir():
        raise InputError(f'{folder}: no such folder; look at root, version, optical and splits')
    names, fits = set(), re.compile(pattern)
    with os.scandir(folder) as entries:
        for entry in entries:
            if not fits.fullmatch(entry.name):
                continue
            if entry.is_symlink():
                inside(folder, entry.name, folder, 'link')
            names.add(entry.name)
    if not names:
        raise InputError(f'{folder}: no name here is like {pattern}; give the folder of the archive')
    return names


def _check_unique(splits: Mapping[str, Sequence[Item]]) -> None:
    taken: dict[str, Any] = {}
    for split, items in splits.items():
        for item in items:
            if item.key in taken:
                raise InputError(
                    f'location {item.key} is listed twice: {taken[item.key]} and {split} {item.values}; '
                    'remove one of the files'
                )
            taken[item.key] = item.values
