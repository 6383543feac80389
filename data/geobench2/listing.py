"""What the sets of GEO-Bench-2 share: rows to samples, splits, and the order of the radar channels."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import numpy as np

from fusmae_jax.errors import InputError

from ..records import Item, RecordError
from .tortilla import AGAIN, FORMAT, Row, read_table, whole

SPLIT = 'tortilla:data_split'
SPLITS = {'train': 'train', 'validation': 'val', 'test': 'test'}  # as a container calls them -> as we do
ORDERS = {'VH,VV': (1, 0), 'VV,VH': (0, 1)}  # order in the file -> channels of VV and VH
LOOKED_AT = 32  # samples by whose pixels the order of the channels is checked
OTHER = 'give geobench_benv2.tortilla, or geobench_so2sat.tortilla with --config.archive.name=so2sat'


class Listed(Protocol):
    """A sample of a container, as a tuple of plain values."""

    @property
    def patch_id(self) -> str:
        """Unique in the container."""

    @property
    def split(self) -> str:
        """train, val or test."""


S = TypeVar('S', bound=Listed)


class Level(NamedTuple):
    """How radar channels are told apart."""

    measure: Callable[[Any], float]  # of a sample: how far its first channel is above the second, in dB
    words: str  # what a channel is that lies above


def list_rows(
    file: Path,
    columns: dict[str, type],
    sample_of: Callable[[Path, int, Row], S],
    on_error: Literal['fail', 'skip'] = 'fail',
) -> tuple[list[S], list[dict[str, str]]]:
    """The samples of a container, and the skips for rows that cannot be used.

    Raises RecordError for a file that is no such container, and with 'fail' for the first such row.
    """
    samples: list[S] = []
    skips: list[dict[str, str]] = []
    taken: set[str] = set()
    for number, row in enumerate(read_table(whole(file), {SPLIT: str, 'patch_id': str, **columns})):
        try:
            _check_row(file, number, row)
            sample = sample_of(file, number, row)
            if sample.patch_id in taken:
                message = f'row {number}: {sample.patch_id} is listed before'
                raise RecordError(file, 'patch_id', message, 'download the file again')
        except RecordError as error:
            if on_error == 'fail':
                raise
            skips.append(error.skip(str(row['patch_id'])))
            continue
        taken.add(sample.patch_id)
        samples.append(sample)
    return samples, skips


def _check_row(file: Path, number: int, row: Row) -> None:
    if row[FORMAT] != 'TORTILLA':
        raise RecordError(file, FORMAT, f'row {number}: {row[FORMAT]!r}, expected TORTILLA', OTHER)
    if row[SPLIT] not in SPLITS:
        raise RecordError(file, SPLIT, f'row {number}: {row[SPLIT]!r} is none of {", ".join(SPLITS)}', AGAIN)


def items_of(samples: Sequence[Any], official: bool, keep_empty: bool) -> dict[str, list[Item]]:
    """Split -> its samples: those of the container, or all in train."""
    splits: dict[str, list[Item]] = {name: [] for name in (SPLITS.values() if official else ('train',))}
    for sample in samples:
        splits[sample.split if official else 'train'].append(Item(sample.patch_id, tuple(sample)))
    return {name: items for name, items in splits.items() if items or keep_empty}


def check_order(file: Path, samples: Sequence[Any], order: str, level: Level) -> None:
    """Raises InputError where the pixels contradict the order: over land and sea VV is the brighter one."""
    chosen = {int(i) for i in np.linspace(0, len(samples) - 1, LOOKED_AT)} if samples else set()
    levels = []
    for index in sorted(chosen):
        try:
            levels.append(level.measure(samples[index]))
        except RecordError:
            continue  # told when the record is read
    against = sum(x > 0 for x in levels) if order == 'VH,VV' else sum(x < 0 for x in levels)
    if 2 * against > len(levels):
        other = 'VV,VH' if order == 'VH,VV' else 'VH,VV'
        raise InputError(
            f'{file}: s1_order={order}, but in {against} of {len(levels)} samples the channel that would be '
            f'VH {level.words}, by {np.median(np.abs(levels)):.1f} dB; give --config.archive.s1_order={other}'
        )
