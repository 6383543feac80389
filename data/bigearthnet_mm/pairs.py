"""Listing the archive: which pairs there are, and the split that each belongs to."""

import dataclasses
import functools
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from fusmae_jax.config.setting import setting
from fusmae_jax.errors import InputError

from .. import records
from ..records import Item, RecordError, RecordSource, check_name
from . import lists
from .archive import read_item, read_metadata
from .labels import without_19_class
from .lists import Flag, Pair, Selection, SplitLists, parse_name, read_lists
from .schema import SCHEMA

OnError = Literal['fail', 'skip']


@dataclasses.dataclass(frozen=True)
class Archive:
    """Where the archive is and how it is split."""

    s1_root: str = setting('', path=True)  # folder of the unpacked Sentinel-1 archive, one folder a patch
    s2_root: str = setting('', path=True)  # the same for Sentinel-2
    # official: train, val, test and rest; one: every pair into train; lists: as split_lists says
    splits: Literal['official', 'one', 'lists'] = 'official'
    split_lists: tuple[str, ...] = ()  # with lists: ('train=FILE', 'val=FILE', ...), see lists.read_lists
    leave_out: tuple[Flag, ...] = ()  # of snow, cloud, no_19_class: such pairs go to no split


def examples(folder: Path) -> Archive:
    """The six real pairs that ship with bigearthnet-common, unpacked into a folder, all for one split."""
    s1_root, s2_root = lists.unpack_examples(folder)
    return Archive(str(s1_root), str(s2_root), splits='one')


class Listing(NamedTuple):
    """The pairs of an archive, and the patches that have no partner."""

    pairs: list[Pair]
    skips: list[dict[str, str]]
    unusable: frozenset[str]  # the Sentinel-2 patches without a pair


def source(archive: Archive, on_error: OnError = 'fail') -> RecordSource:
    """The archive as the converter takes it.

    Raises InputError for wrong settings or lists, and with `on_error='fail'` for a patch without its partner.
    """
    s1, s2 = (records.folder(getattr(archive, name), name) for name in ('s1_root', 's2_root'))
    if (archive.splits == 'lists') != bool(archive.split_lists):
        raise InputError(
            f'config.archive.splits={archive.splits!r} with split_lists={archive.split_lists!r}: lists and '
            "splits='lists' go together"
        )
    split_lists = read_lists(archive.split_lists)
    listing = find(s1, s2, on_error)
    chosen = _choose(archive, listing, split_lists, on_error)
    return RecordSource(
        schema=SCHEMA,
        splits={
            name: [Item(pair.s2_name, tuple(pair)) for pair in pairs] for name, pairs in chosen.splits.items()
        },
        read=functools.partial(read_item, s1_root=str(s1), s2_root=str(s2)),
        inputs={'s1_root': str(s1), 's2_root': str(s2), **_choices(archive, chosen)},
        skips=listing.skips,
        published=lists.official_sizes(archive.leave_out) if archive.splits == 'official' else {},
    )


def _choose(archive: Archive, listing: Listing, split_lists: SplitLists, on_error: OnError) -> Selection:
    if archive.splits == 'official':
        return lists.official_splits(listing.pairs, archive.leave_out, all_of_them=on_error == 'fail')
    if archive.splits == 'one':
        to_split = {pair.s2_name: 'train' for pair in listing.pairs}
    else:
        lists.check_lists(split_lists, listing.pairs, listing.unusable)
        to_split = {name: split for split, names in split_lists.items() for name in names}
    return lists.select(listing.pairs, to_split, archive.leave_out)


def _choices(archive: Archive, chosen: Selection) -> dict[str, str]:
    """How the records were chosen, in words; only what was chosen."""
    left_out = [f'{count:,} {reason}' for reason, count in chosen.left_out.items()]
    texts = {
        'splits': archive.splits,
        'split_lists': ', '.join(archive.split_lists),
        'leave_out': ', '.join(archive.leave_out),
        'left_out': ', '.join(left_out),
    }
    return {key: text for key, text in texts.items() if text}


def find(s1_root: Path, s2_root: Path, on_error: OnError = 'fail') -> Listing:
    """Lists the pairs in two folders of patches.

    A patch without its partner is an error, or an entry of `skips`.
    """
    s1_names, s2_names = _patches(s1_root, 'S1'), _patches(s2_root, 'S2')
    pairs, problems, unusable = _pair_up(s1_root, s2_root, s1_names, s2_names)
    if problems and on_error == 'fail':
        raise problems[0][1]
    return Listing(pairs, [error.skip(name) for name, error in problems], unusable)


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
) -> tuple[list[Pair], list[tuple[str, RecordError]], frozenset[str]]:
    rows = {row.s1_name: row for row in lists.published_pairs(s1_names, s2_names)}
    pairs: list[Pair] = []
    problems: list[tuple[str, RecordError]] = []
    taken: dict[str, str] = {}
    for s1_name in sorted(s1_names | rows.keys()):
        try:
            check_name(s1_name, s1_root)
            pair = _pair(rows[s1_name]) if s1_name in rows else _unlisted(s1_root, s1_name)
            _check_pair(s1_root, s2_root, pair, s1_names, s2_names, taken)
        except RecordError as error:
            problems.append((s1_name, error))
            continue
        taken[pair.s2_name] = s1_name
        pairs.append(pair)
    listed = {row.s2_name for row in rows.values()}
    for s2_name in sorted(s2_names - listed - taken.keys()):
        missing = f'no patch in {s1_root} names it'
        problems.append((s2_name, RecordError(s2_root / s2_name, 'Sentinel-1 partner', missing, _PARTNER)))
    return pairs, problems, frozenset((s2_names | listed) - taken.keys())


_PARTNER = 'unpack both archives in full, or leave such patches out with on_error=skip'


def _unlisted(s1_root: Path, s1_name: str) -> Pair:
    """A pair outside the published table: its Sentinel-1 metadata names the partner and the classes."""
    values = read_metadata(s1_root / s1_name)
    partner, labels = values.get('corresponding_s2_patch'), values.get('labels')
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
    pair = _pair(lists.PublishedPair(s1_name, partner, '', ''))
    bare = isinstance(labels, list) and without_19_class([str(label) for label in labels])
    return pair._replace(no_19_class=bare)


def _check_pair(
    s1_root: Path,
    s2_root: Path,
    pair: Pair,
    s1_names: Iterable[str],
    s2_names: Iterable[str],
    taken: Mapping[str, Any],
) -> None:
    s1_name, s2_name = pair.s1_name, pair.s2_name
    if s1_name not in s1_names:
        raise RecordError(s1_root / s1_name, 'folder', f'missing, the partner of {s2_name}', _PARTNER)
    if s2_name not in s2_names:
        raise RecordError(s2_root / s2_name, 'folder', f'missing, the partner of {s1_name}', _PARTNER)
    if s2_name in taken:
        raise RecordError(
            s1_root / s1_name,
            'corresponding_s2_patch',
            f'{s2_name} is the partner of {taken[s2_name]} already',
            'remove one of the two',
        )


def _pair(row: lists.PublishedPair) -> Pair:
    name = row.s2_name
    snow, cloud, no_19_class = (name in lists.listed(flag) for flag in lists.FLAGS)
    return Pair(*row, snow, cloud, no_19_class, lists.split_of(name))
