"""Which pairs of an archive go into which split, and which are left out on purpose."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from data.bigearthnet_mm import official
from data.bigearthnet_mm.archive import Pair
from data.bigearthnet_mm.lists import SplitLists
from data.bigearthnet_mm.schema import PUBLISHED
from fusmae_jax.errors import InputError

Flag = Literal['snow', 'cloud', 'no_19_class']
FLAGS: tuple[Flag, ...] = ('snow', 'cloud', 'no_19_class')
NO_LIST = 'in no list'


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
    wanted = published(leave_out)
    return Selection(
        {n: found for n in wanted if (found := selection.splits.get(n, [])) or all_of_them},
        selection.left_out,
    )


def published(leave_out: Sequence[Flag]) -> dict[str, int]:
    """Sizes of the official splits of the whole archive without the pairs of these flags.

    The lists of the three flags together are the split `rest`, so only that one shrinks; without any of
    them there is none.
    """
    gone = frozenset[str]().union(*(official.listed(flag) for flag in leave_out))
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
