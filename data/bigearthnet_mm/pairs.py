"""Listing the archive: which pairs there are, and the split that each belongs to."""

import dataclasses
import functools
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from data import records
from data.bigearthnet_mm import official
from data.bigearthnet_mm.archive import Pair, read_item, read_metadata
from data.bigearthnet_mm.names import parse_name
from data.bigearthnet_mm.schema import PUBLISHED, SCHEMA
from data.records import Item, RecordError, Source
from fusmae_jax.errors import InputError

OnError = Literal['fail', 'skip']
Splits = Literal['official', 'one']


@dataclasses.dataclass(frozen=True)
class Archive:
    """Where the archive is and how it is split."""

    s1_root: str = ''  # folder of the unpacked Sentinel-1 archive, one folder a patch
    s2_root: str = ''  # the same for Sentinel-2
    splits: Splits = 'official'  # one: every record goes to train


def examples(folder: Path) -> Archive:
    """The six real pairs that ship with bigearthnet-common, unpacked into a folder, all for one split."""
    s1_root, s2_root = official.unpack_examples(folder)
    return Archive(str(s1_root), str(s2_root), splits='one')


class Listing(NamedTuple):
    """The pairs of an archive by split, and the patches that have no partner."""

    splits: Mapping[str, list[Pair]]
    skips: list[dict[str, str]]


def source(archive: Archive, on_error: OnError = 'fail') -> Source:
    """The archive as the converter takes it."""
    s1, s2 = (records.folder(getattr(archive, name), name) for name in ('s1_root', 's2_root'))
    splits = archive.splits
    listing = find(s1, s2, splits, on_error)
    return Source(
        schema=SCHEMA,
        splits={
            name: [Item(pair.s2_name, tuple(pair)) for pair in pairs]
            for name, pairs in listing.splits.items()
        },
        read=functools.partial(read_item, s1_root=str(s1), s2_root=str(s2)),
        inputs={'s1_root': str(s1), 's2_root': str(s2), 'splits': splits},
        skips=listing.skips,
        published=PUBLISHED if splits == 'official' else {},
    )


def find(s1_root: Path, s2_root: Path, splits: Splits = 'official', on_error: OnError = 'fail') -> Listing:
    """Lists the pairs in two folders of patches.

    `official` gives train, val, test and rest; `one` puts every pair into train. A patch without its
    partner is an error, or an entry of `skips`; so is an official split without a pair.
    """
    s1_names, s2_names = _patches(s1_root, 'S1'), _patches(s2_root, 'S2')
    pairs, problems = _pair_up(s1_root, s2_root, s1_names, s2_names)
    if problems and on_error == 'fail':
        raise problems[0][1]
    skips = [error.skip(name) for name, error in problems]
    if splits == 'one':
        return Listing({'train': pairs}, skips)
    by_split: dict[str, list[Pair]] = {name: [] for name in PUBLISHED}
    for pair in pairs:
        by_split[pair.official_split].append(pair)
    return Listing({name: found for name, found in by_split.items() if found or on_error == 'fail'}, skips)


def _patches(root: Path, sensor: str) -> set[str]:
    with os.scandir(root) as entries:
        names = {entry.name for entry in entries if entry.name.startswith(sensor)}
    if not names:
        raise InputError(
            f'{root}: {sensor.lower()}_root: no folder here has a name starting with {sensor}; give the '
            'folder that holds the patches themselves'
        )
    return names


def _pair_up(
    s1_root: Path, s2_root: Path, s1_names: set[str], s2_names: set[str]
) -> tuple[list[Pair], list[tuple[str, RecordError]]]:
    rows = {row.s1_name: row for row in official.rows(s1_names, s2_names)}
    pairs: list[Pair] = []
    problems: list[tuple[str, RecordError]] = []
    taken: dict[str, str] = {}
    for s1_name in sorted(s1_names | rows.keys()):
        try:
            row = rows.get(s1_name) or _unlisted(s1_root, s1_name)
            _check_pair(s1_root, s2_root, row, s1_names, s2_names, taken)
        except RecordError as error:
            problems.append((s1_name, error))
            continue
        taken[row.s2_name] = s1_name
        pairs.append(_pair(row))
    known = taken.keys() | {row.s2_name for row in rows.values()}
    for s2_name in sorted(s2_names - known):
        missing = f'no patch in {s1_root} names it'
        problems.append((s2_name, RecordError(s2_root / s2_name, 'Sentinel-1 partner', missing, _PARTNER)))
    return pairs, problems


_PARTNER = 'unpack both archives in full, or leave such patches out with on_error=skip'


def _unlisted(s1_root: Path, s1_name: str) -> official.Row:
    """A pair outside the published table: its Sentinel-1 metadata names the partner."""
    partner = read_metadata(s1_root / s1_name).get('corresponding_s2_patch')
    file = s1_root / s1_name / f'{s1_name}_labels_metadata.json'
    if not isinstance(partner, str):
        raise RecordError(file, 'corresponding_s2_patch', f'{partner!r}, expected a name', _PARTNER)
    for name in (s1_name, partner):
        try:
            parse_name(name)
        except ValueError as error:
            raise RecordError(
                s1_root / s1_name, 'name', str(error), 'keep the names of the archive'
            ) from error
    return official.Row(s1_name, partner, '', '')


def _check_pair(
    s1_root: Path,
    s2_root: Path,
    row: official.Row,
    s1_names: Iterable[str],
    s2_names: Iterable[str],
    taken: Mapping[str, Any],
) -> None:
    if row.s1_name not in s1_names:
        raise RecordError(s1_root / row.s1_name, 'folder', f'missing, the partner of {row.s2_name}', _PARTNER)
    if row.s2_name not in s2_names:
        raise RecordError(s2_root / row.s2_name, 'folder', f'missing, the partner of {row.s1_name}', _PARTNER)
    if row.s2_name in taken:
        raise RecordError(
            s1_root / row.s1_name,
            'corresponding_s2_patch',
            f'{row.s2_name} is the partner of {taken[row.s2_name]} already',
            'remove one of the two',
        )


def _pair(row: official.Row) -> Pair:
    name = row.s2_name
    return Pair(
        *row, name in official.listed('snow'), name in official.listed('cloud'), official.split_of(name)
    )
