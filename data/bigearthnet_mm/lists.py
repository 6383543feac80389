"""Lists of BigEarthNet-MM patches, their names, and the splits that follow.

Which pairs go into which split, and which are left out on purpose, is said by the published lists or by the
user's own, such as the 354,196 names of Neumann et al. The published ones (official splits, snow, cloud,
pairs with country and season) ship as compressed tables inside the package bigearthnet-common and are read
as package resources; its modules `base` and `sets` cannot be imported beside fastcore 1.8 or newer.

    S1A_IW_GRDH_1SDV_20170613T165043_33UUP_87_48      Sentinel-1: time, MGRS tile, cell H_V
    S2A_MSIL2A_20170613T101031_87_48                  Sentinel-2: time, cell H_V, no tile
    S2B_MSIL2A_20170924T93020_69_24                   the hour lost its leading zero (69,866 names)
    S2B_MSIL2A_20180204T94161_57_38                   ... and 13,599 of those have 60 seconds or more

The times in the JSON files are the reliable ones; a name is read for its tile and cell.
"""

import bz2
import datetime
import functools
import gzip
import importlib.resources
import io
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, Literal, NamedTuple

from fusmae_jax.errors import InputError
from fusmae_jax.installed import install, need
from fusmae_jax.paths import user_path

from .schema import PUBLISHED

Flag = Literal['snow', 'cloud', 'no_19_class']
FLAGS: tuple[Flag, ...] = ('snow', 'cloud', 'no_19_class')
NO_LIST = 'in no list'
SplitLists = dict[str, dict[str, str]]  # split -> Sentinel-2 name -> Sentinel-1 name, '' if not given


class Pair(NamedTuple):
    """A pair as listed, before any of its images is opened."""

    s1_name: str
    s2_name: str
    country: str
    season: str
    snow: bool
    cloud: bool
    no_19_class: bool
    official_split: str


class Selection(NamedTuple):
    """The pairs that are converted, by split, and how many are not, by reason."""

    splits: Mapping[str, list[Pair]]
    left_out: Mapping[str, int]


def select(pairs: Sequence[Pair], to_split: Mapping[str, str], leave_out: Sequence[Flag]) -> Selection:
    """Sorts pairs into splits.

    Args:
      pairs: all that were found.
      to_split: Sentinel-2 name -> split; pairs that it lacks are left out.
      leave_out: pairs with one of these flags are left out of every split.
    """
    splits: dict[str, list[Pair]] = {name: [] for name in dict.fromkeys(to_split.values())}
    left_out: Counter[str] = Counter()
    for pair in pairs:
        reason = next((flag for flag in leave_out if getattr(pair, flag)), '')
        if pair.s2_name not in to_split:
            reason = NO_LIST
        if reason:
            left_out[reason] += 1
        else:
            splits[to_split[pair.s2_name]].append(pair)
    return Selection(splits, dict(sorted(left_out.items())))


def official_splits(pairs: Sequence[Pair], leave_out: Sequence[Flag], all_of_them: bool) -> Selection:
    """train, val, test and rest of the official lists.

    Args:
      pairs: all that were found.
      leave_out: pairs with one of these flags are left out.
      all_of_them: keep a split that no pair belongs to, which is an error further on.
    """
    selection = select(pairs, {pair.s2_name: pair.official_split for pair in pairs}, leave_out)
    wanted = official_sizes(leave_out)
    return Selection(
        {n: members for n in wanted if (members := selection.splits.get(n, [])) or all_of_them},
        selection.left_out,
    )


def official_sizes(leave_out: Sequence[Flag]) -> dict[str, int]:
    """Sizes of the official splits of the whole archive without the pairs of these flags.

    The lists of the three flags together are the split `rest`, so only that one shrinks; without any of
    them there is none.
    """
    gone = frozenset[str]().union(*(listed(flag) for flag in leave_out))
    sizes = {**PUBLISHED, 'rest': PUBLISHED['rest'] - len(gone)}
    return {name: size for name, size in sizes.items() if size}


def check_lists(lists: SplitLists, pairs: Sequence[Pair], unusable: frozenset[str]) -> None:
    """Raises InputError for names that the archive does not hold and for other pairs than it holds.

    `unusable`: Sentinel-2 patches that were found to lack a partner; they are reported on their own.
    """
    partner = {pair.s2_name: pair.s1_name for pair in pairs}
    for split, names in lists.items():
        missing = [name for name in names if name not in partner and name not in unusable]
        if missing:
            raise InputError(
                f'config.archive.split_lists: {len(missing):,} of {len(names):,} patches of {split!r} are '
                f'not in the archive, the first is {missing[0]}; unpack it in full or shorten the list'
            )
        for s2_name, s1_name in names.items():
            if s1_name and s1_name != partner.get(s2_name, s1_name):
                raise InputError(
                    f'config.archive.split_lists: {split!r} pairs {s2_name} with {s1_name}, the archive with '
                    f'{partner[s2_name]}; correct the list'
                )


_SPLIT_NAME = re.compile(r'[a-z][a-z0-9_]*')
_SEPARATORS = re.compile(r'[,;\s]+')
_OPEN = {'.bz2': bz2.open, '.gz': gzip.open}


def read_lists(entries: Sequence[str]) -> SplitLists:
    """The lists behind entries such as 'train=FILE', by split.

    A file holds one patch a line: the name of the Sentinel-2 patch, alone or among other columns (parted by
    commas, semicolons or blanks), with or without that of the Sentinel-1 patch; a first line without a
    name is a header. Files that end in .bz2 or .gz are decompressed.

    Raises:
      InputError: an entry that is no 'split=FILE', a file that cannot be read, a line without a name or with
        several, a name that is listed twice, in one file or in two.
    """
    lists: SplitLists = {}
    seen: dict[str, str] = {}
    for entry in entries:
        split, _, file = entry.partition('=')
        if not _SPLIT_NAME.fullmatch(split) or not file:
            raise InputError(
                f"config.archive.split_lists: {entry!r} is not a 'split=FILE' with a split of small letters, "
                'digits and _, such as train=lists/train.csv'
            )
        if split in lists:
            raise InputError(f'config.archive.split_lists: split {split!r} twice; join the two files')
        lists[split] = {}
        for number, s2_name, s1_name in _list_entries(Path(user_path(file))):
            where = f'{file}: line {number}'
            if s2_name in seen:
                raise InputError(
                    f'{where}: {s2_name} is listed in {seen[s2_name]} already; a patch belongs to one split'
                )
            seen[s2_name] = where
            lists[split][s2_name] = s1_name
        if not lists[split]:
            raise InputError(f'{file}: no name of a Sentinel-2 patch in this list; give one a line')
    return lists


def _list_entries(file: Path) -> Iterator[tuple[int, str, str]]:
    """Line number, Sentinel-2 name and Sentinel-1 name of each entry of a list."""
    for number, line in enumerate(_text_lines(file), 1):
        tokens = [token.strip('"\'') for token in _SEPARATORS.split(line.strip())]
        names = [token for token in tokens if is_s2_name(token)]
        if len(names) == 1:
            yield number, names[0], next((token for token in tokens if token.startswith('S1')), '')
        elif names:
            raise InputError(f'{file}: line {number}: {len(names)} Sentinel-2 patches, expected one a line')
        elif any(tokens) and (number > 1 or any(token.startswith(('S1', 'S2')) for token in tokens)):
            raise InputError(
                f'{file}: line {number}: {line.strip()[:80]!r} holds no name of a Sentinel-2 patch of '
                'BigEarthNet v1, such as S2A_MSIL2A_20170613T101031_87_48; correct the list'
            )


def _text_lines(file: Path) -> list[str]:
    try:
        with _OPEN.get(file.suffix, open)(file, 'rt', encoding='utf-8-sig') as stream:
            return stream.readlines()
    except FileNotFoundError as error:
        raise InputError(f'{file}: config.archive.split_lists: no such file') from error
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise InputError(
            f'{file}: config.archive.split_lists: cannot be read as text ({error}); give a text file, plain, '
            '.bz2 or .gz'
        ) from error


PACKAGE = 'bigearthnet_common'
OFFICIAL = ('train', 'val', 'test')
LISTS = {
    'train': 'train.csv.bz2',
    'val': 'val.csv.bz2',
    'test': 'test.csv.bz2',
    'snow': 'patches_with_seasonal_snow.csv.bz2',
    'cloud': 'patches_with_cloud_and_shadow.csv.bz2',
    'no_19_class': 'patches_with_no_19_class_targets.csv.bz2',
}
PAIRS = 's1_s2_name_country_season.csv.bz2'
EXAMPLES = {'s1': 'BigEarthNet-S1-Example', 's2': 'BigEarthNet-S2-Example'}
# Python before 3.11.4 (Debian 12 has 3.11.2) knows no filter.
SAFELY: dict[str, Any] = {'filter': 'data'} if hasattr(tarfile, 'data_filter') else {}


class PublishedPair(NamedTuple):
    """One line of the published table of pairs."""

    s1_name: str
    s2_name: str
    country: str
    season: str


def _resource(name: str) -> bytes:
    need('convert', f'the published list {name}', PACKAGE)
    try:
        return (importlib.resources.files(PACKAGE) / name).read_bytes()
    except FileNotFoundError as error:
        raise InputError(f'{PACKAGE}/{name}: not found; {install("convert")}') from error


@functools.cache
def listed(name: str) -> frozenset[str]:
    """Names of the Sentinel-2 patches on one of the `LISTS`."""
    return frozenset(bz2.decompress(_resource(LISTS[name])).decode().split())


@functools.cache
def _table() -> str:
    return bz2.decompress(_resource(PAIRS)).decode()


def published_pairs(s1_names: Set[str], s2_names: Set[str]) -> list[PublishedPair]:
    """The published pairs with either member among the given names.

    The table has 590,326 rows; only the wanted ones become objects, so that six pairs cost little.
    """
    pairs = []
    for line in _table_lines(s1_names | s2_names):
        row = PublishedPair(*line.split(','))
        if row.s1_name in s1_names or row.s2_name in s2_names:
            pairs.append(row)
    return pairs


def _table_lines(names: Set[str]) -> Iterable[str]:
    """Lines of the table that may hold one of the names: all, or a search for each name if they are few."""
    table = _table()
    if len(names) > 50:
        return table.splitlines()[1:]
    places = [at for name in names if (at := table.find(f'{name},')) >= 0]
    return sorted({table[table.rfind('\n', 0, at) + 1 : table.find('\n', at)] for at in places})


def split_of(s2_name: str) -> str:
    """'train', 'val' or 'test' of the official lists, else 'rest'."""
    return next((split for split in OFFICIAL if s2_name in listed(split)), 'rest')


def unpack_examples(folder: Path) -> tuple[Path, Path]:
    """Unpacks the six real pairs that ship with the package; returns the S1 and the S2 folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in EXAMPLES.values():
        if not (folder / name).is_dir():
            with tarfile.open(fileobj=io.BytesIO(_resource(f'{name}.tar.bz2'))) as archive:
                archive.extractall(folder, **SAFELY)
    return folder / EXAMPLES['s1'], folder / EXAMPLES['s2']


_S1 = re.compile(r'S1[AB]_IW_GRDH_1SDV_(\d{8}T\d{5,6})_(\d{1,2}[A-Z]{3})_(\d+)_(\d+)')
_S2 = re.compile(r'S2[AB]_MSIL2A_(\d{8}T\d{5,6})_(\d+)_(\d+)')
_STAMP = re.compile(r'(\d{4})(\d{2})(\d{2})T(\d{1,2})(\d{2})(\d{2})')
_TEXT = re.compile(r'(\d{4})-(\d{2})-(\d{2})[T ](\d{1,2}):(\d{1,2}):(\d{1,2})(?:\.\d+)?Z?')


class PatchName(NamedTuple):
    """What the name of a patch says."""

    time: int  # Unix seconds, UTC
    tile: str  # MGRS tile; '' in Sentinel-2 names
    cell: tuple[int, int]  # H (column) and V (row) within the Sentinel-2 tile


def parse_name(name: str) -> PatchName:
    """Parses the name of a Sentinel-1 or Sentinel-2 patch; raises ValueError for any other name."""
    if match := _S1.fullmatch(name):
        stamp, tile, h, v = match.groups()
        return PatchName(parse_time(stamp), tile, (int(h), int(v)))
    if match := _S2.fullmatch(name):
        stamp, h, v = match.groups()
        return PatchName(parse_time(stamp), '', (int(h), int(v)))
    raise ValueError(f'{name!r} is not the name of a BigEarthNet-MM patch')


def is_s2_name(text: str) -> bool:
    """Whether a text has the form of the name of a Sentinel-2 patch; quicker than parsing it."""
    return _S2.fullmatch(text) is not None


def parse_time(text: str) -> int:
    """Unix seconds of a UTC time as names (20170613T93020) and JSON files (2017-06-13 10:10:31) write it.

    The date and the time may be parted by a blank or a T. Seconds from 60 on run into the next minute.
    Raises ValueError for anything else.
    """
    match = _STAMP.fullmatch(text) or _TEXT.fullmatch(text)
    if not match:
        raise ValueError(f'{text!r} is not a time such as 2017-06-13 10:10:31')
    year, month, day, hour, minute, second = map(int, match.groups())
    start = datetime.datetime(year, month, day, hour, minute, tzinfo=datetime.UTC)
    return int(start.timestamp()) + second
