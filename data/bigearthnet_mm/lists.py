"""Splits from the user's own lists of patches, such as the 354,196 names of Neumann et al."""

import bz2
import gzip
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from data.bigearthnet_mm.names import is_s2_name
from fusmae_jax.errors import InputError
from fusmae_jax.paths import user_path

SplitLists = dict[str, dict[str, str]]  # split -> Sentinel-2 name -> Sentinel-1 name, '' if not given

_SPLIT = re.compile(r'[a-z][a-z0-9_]*')
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
        if not _SPLIT.fullmatch(split) or not file:
            raise InputError(
                f"config.archive.split_lists: {entry!r} is not a 'split=FILE' with a split of small letters, "
                'digits and _, such as train=lists/train.csv'
            )
        if split in lists:
            raise InputError(f'config.archive.split_lists: split {split!r} twice; join the two files')
        lists[split] = {}
        for number, s2_name, s1_name in _rows(Path(user_path(file))):
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


def _rows(file: Path) -> Iterator[tuple[int, str, str]]:
    """Line number, Sentinel-2 name and Sentinel-1 name of each entry of a list."""
    for number, line in enumerate(_lines(file), 1):
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


def _lines(file: Path) -> list[str]:
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
