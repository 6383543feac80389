"""Listing the archive: which pairs there are, and the split that each belongs to."""

import dataclasses
import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from fusmae_jax.config.setting import setting
from fusmae_jax.errors import InputError

from .. import records
from ..records import Item, RecordError, RecordSource
from . import published
from .archive import read_item
from .schema import SCHEMA as SCHEMA
from .schema import schema
from .table import PatchRow, read_table

SNOW_CLOUD = 'metadata_for_patches_with_snow_cloud_or_shadow.parquet'
MAPS = 'Reference_Maps'


@dataclasses.dataclass(frozen=True)
class Archive:
    """Where the archive is, how it is split, and which of its parts are wanted."""

    # Folder BigEarthNet-S1: in it a folder an acquisition, in that one a patch
    s1_root: str = setting('', path=True)
    s2_root: str = setting('', path=True)  # folder BigEarthNet-S2, likewise
    metadata: str = setting('', path=True)  # metadata.parquet
    splits: Literal['official', 'one'] = 'official'  # train, val and test of the table; one: all into train
    with_snow_cloud: bool = False  # also the patches with snow or cloud, in the splits of their own table
    # That table; '': the one beside `metadata` with its published name
    snow_cloud_metadata: str = setting('', path=True)
    reference_maps: bool = False  # also the map of land cover of each patch
    maps_root: str = setting('', path=True)  # the folder of the maps; '': Reference_Maps beside `s2_root`


def source(archive: Archive, on_error: Literal['fail', 'skip'] = 'fail') -> RecordSource:
    """The archive as the converter takes it.

    Raises InputError for wrong folders or tables, and with `on_error='fail'` for a row that cannot be used.
    """
    s1, s2 = _root(archive.s1_root, 's1_root', 'S1'), _root(archive.s2_root, 's2_root', 'S2')
    maps = ''
    if archive.reference_maps:
        maps = str(_root(archive.maps_root or str(s2.parent / MAPS), 'maps_root', 'S2'))
    tables = _tables(archive)
    rows, skips = _rows(tables, on_error)
    chosen = [row for row in rows if archive.with_snow_cloud or not (row.snow or row.cloud)]
    left_out = f'{len(rows) - len(chosen):,} with snow or cloud' if len(chosen) < len(rows) else ''
    inputs = {
        's1_root': str(s1),
        's2_root': str(s2),
        'maps_root': maps,
        'metadata': ', '.join(map(str, tables)),
        'splits': archive.splits,
        'left_out': left_out,
    }
    official = archive.splits == 'official'
    return RecordSource(
        schema=schema(archive.reference_maps),
        splits=_by_split(chosen, official, on_error == 'fail'),
        read=functools.partial(read_item, s1_root=str(s1), s2_root=str(s2), maps_root=maps),
        inputs={key: value for key, value in inputs.items() if value},
        skips=skips,
        published=published.sizes(archive.with_snow_cloud) if official else {},
        published_labels=published.labels(archive.with_snow_cloud) if official else {},
    )


def _root(path: str, setting: str, prefix: str) -> Path:
    """A folder of acquisitions or tiles, checked by the name of one of them."""
    root = records.folder(path, setting)
    with os.scandir(root) as entries:
        if not any(entry.name.startswith(prefix) for entry in entries):
            raise InputError(
                f'{root}: {setting}: no folder here has a name starting with {prefix}; give the folder that '
                'holds those of the acquisitions'
            )
    return root


def _tables(archive: Archive) -> list[Path]:
    if not archive.metadata:
        raise InputError("config.archive.metadata='': give the metadata.parquet of the archive")
    first = Path(archive.metadata).resolve()
    second = archive.snow_cloud_metadata
    if archive.with_snow_cloud:
        return [first, Path(second).resolve() if second else first.with_name(SNOW_CLOUD)]
    if second:
        raise InputError(
            f'config.archive.snow_cloud_metadata={second!r} is only read together with with_snow_cloud=True'
        )
    return [first]


def _rows(tables: Sequence[Path], on_error: str) -> tuple[list[PatchRow], list[dict[str, str]]]:
    """The rows of all tables and the skips for unusable ones; the first of these is raised with 'fail'."""
    rows: list[PatchRow] = []
    problems: list[tuple[str, RecordError]] = []
    taken: set[str] = set()
    for file in tables:
        table = read_table(file)
        problems += table.problems
        for row in table.rows:
            twice = next((name for name in (row.patch_id, row.s1_name) if name in taken), None)
            if twice:
                message = f'{twice} is listed before'
                error = RecordError(file, 'patch_id, s1_name', message, 'remove one of the two rows')
                problems.append((row.patch_id, error))
                continue
            taken |= {row.patch_id, row.s1_name}
            rows.append(row)
    if problems and on_error == 'fail':
        raise problems[0][1]
    return rows, [error.skip(name) for name, error in problems]


def _by_split(rows: Sequence[PatchRow], official: bool, all_of_them: bool) -> dict[str, list[Item]]:
    splits: dict[str, list[Item]] = {name: [] for name in (published.SPLITS if official else ('train',))}
    for row in rows:
        splits[row.split if official else 'train'].append(Item(row.patch_id, tuple(row)))
    return {name: items for name, items in splits.items() if items or all_of_them}
