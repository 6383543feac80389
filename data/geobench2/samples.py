"""Listing a tortilla of benv2: which samples there are, and the split that each belongs to."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fusmae_jax.config.setting import setting
from fusmae_jax.errors import InputError, nearest
from fusmae_jax.paths import check_text

from ..bigearthnet_mm.labels import CLASSES_19
from ..bigearthnet_v2.names import parse_patch_id
from ..records import Item, RecordError, RecordSource
from .images import Sample, lighter, read_images, read_item
from .schema import PUBLISHED, SCHEMA, SPLITS
from .tortilla import AGAIN, FORMAT, ID, LENGTH, OFFSET, Row, read_table, whole

SPLIT = 'tortilla:data_split'
COLUMNS = {
    SPLIT: str,
    'patch_id': str,
    'country': str,
    'contains_seasonal_snow': bool,
    'contains_cloud_or_shadow': bool,
    'add_test_split': bool,
    'labels': list,
}
LOOKED_AT = 32  # samples by whose pixels the order of the channels is checked
_INDEX = {name: index for index, name in enumerate(CLASSES_19)}
_OTHER = 'give geobench_benv2.tortilla, the other sets of GEO-Bench-2 are not read'


@dataclasses.dataclass(frozen=True)
class Archive:
    """Where the container is, and how its Sentinel-1 images are to be taken."""

    path: str = setting('', path=True)  # geobench_benv2.tortilla
    splits: Literal['official', 'one'] = 'official'  # those of the container; one: all into train
    # Channels of Sentinel-1 in the file. The program behind it wrote VH first, though its loader says VV; an
    # order that the pixels contradict is refused.
    s1_order: Literal['VH,VV', 'VV,VH'] = 'VH,VV'


def source(archive: Archive, on_error: Literal['fail', 'skip'] = 'fail') -> RecordSource:
    """The archive as the converter takes it.

    Raises InputError for a file that is no such container or another order of channels, and with
    `on_error='fail'` for a row that cannot be used.
    """
    if not archive.path:
        raise InputError("config.archive.path='': give geobench_benv2.tortilla")
    check_text(archive.path)
    file = Path(archive.path).resolve()
    samples, skips = list_samples(file, on_error)
    _check_order(file, samples, archive.s1_order)
    official = archive.splits == 'official'
    splits: dict[str, list[Item]] = {name: [] for name in (SPLITS.values() if official else ('train',))}
    for sample in samples:
        splits[sample.split if official else 'train'].append(Item(sample.patch_id, tuple(sample)))
    return RecordSource(
        schema=SCHEMA,
        splits={name: items for name, items in splits.items() if items or on_error == 'fail'},
        read=functools.partial(read_item, file=str(file), order=archive.s1_order),
        inputs={'path': str(file), 'splits': archive.splits, 's1_order': archive.s1_order},
        skips=skips,
        published=PUBLISHED if official else {},
        notes=(
            f'Sentinel-1 lies in the file as {archive.s1_order}; the records have VV, VH',
            'Sentinel-2 is taken at 10 m, whatever its geotransform says',
        ),
    )


def list_samples(
    file: Path, on_error: Literal['fail', 'skip'] = 'fail'
) -> tuple[list[Sample], list[dict[str, str]]]:
    """The samples of a container, and the skips for rows that cannot be used.

    Raises RecordError for a file that is no such container, and with 'fail' for the first such row.
    """
    samples: list[Sample] = []
    skips: list[dict[str, str]] = []
    taken: set[str] = set()
    for number, row in enumerate(read_table(whole(file), COLUMNS)):
        try:
            sample = _sample(file, number, row)
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


def _sample(file: Path, number: int, row: Row) -> Sample:
    if row[FORMAT] != 'TORTILLA':
        raise RecordError(file, FORMAT, f'row {number}: {row[FORMAT]!r}, expected TORTILLA', _OTHER)
    if row[SPLIT] not in SPLITS:
        raise RecordError(file, SPLIT, f'row {number}: {row[SPLIT]!r} is none of {", ".join(SPLITS)}', AGAIN)
    try:
        parse_patch_id(row['patch_id'])
    except ValueError as error:
        raise RecordError(file, 'patch_id', f'row {number}: {error}', _OTHER) from error
    return Sample(
        row[ID],
        row[OFFSET],
        row[LENGTH],
        row['patch_id'],
        row['country'],
        SPLITS[row[SPLIT]],
        row['contains_seasonal_snow'],
        row['contains_cloud_or_shadow'],
        row['add_test_split'],
        _labels(file, number, row['labels']),
    )


def _labels(file: Path, number: int, names: Sequence[Any]) -> tuple[int, ...]:
    if not names:
        raise RecordError(file, 'labels', f'row {number}: no class, expected at least one', AGAIN)
    unknown = [name for name in names if name not in _INDEX]
    if unknown:
        message = f'row {number}: {unknown[0]!r} is not one of the 19 classes'
        raise RecordError(file, 'labels', message, nearest(str(unknown[0]), CLASSES_19))
    return tuple(sorted(_INDEX[name] for name in names))


def _check_order(file: Path, samples: Sequence[Sample], order: str) -> None:
    """Raises InputError where the pixels contradict the order: over land and sea VV is the brighter one."""
    chosen = {int(i) for i in np.linspace(0, len(samples) - 1, LOOKED_AT)} if samples else set()
    levels = []
    for index in sorted(chosen):
        try:
            levels.append(lighter(read_images(file, samples[index]).s1))
        except RecordError:
            continue  # told when the record is read
    against = sum(level > 0 for level in levels) if order == 'VH,VV' else sum(level < 0 for level in levels)
    if 2 * against > len(levels):
        other = 'VV,VH' if order == 'VH,VV' else 'VH,VV'
        raise InputError(
            f'{file}: s1_order={order}, but in {against} of {len(levels)} samples the channel that would be '
            f'VH is brighter, by {np.median(np.abs(levels)):.1f} dB; give --config.archive.s1_order={other}'
        )
