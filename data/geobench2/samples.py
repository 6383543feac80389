"""Listing a tortilla of benv2: which samples there are, and the split that each belongs to.

That of so2sat is `so2sat.py`.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from fusmae_jax.config.setting import setting
from fusmae_jax.errors import InputError, nearest
from fusmae_jax.paths import check_text

from ..bigearthnet_mm.labels import CLASSES_19
from ..bigearthnet_v2.names import parse_patch_id
from ..records import RecordError, RecordSource
from . import so2sat
from .images import Sample, lighter, read_images, read_item
from .listing import OTHER, SPLIT, SPLITS, Level, check_order, items_of, list_rows
from .schema import PUBLISHED, SCHEMA
from .tortilla import AGAIN, ID, LENGTH, OFFSET, Row

COLUMNS = {
    'country': str,
    'contains_seasonal_snow': bool,
    'contains_cloud_or_shadow': bool,
    'add_test_split': bool,
    'labels': list,
}
_INDEX = {name: index for index, name in enumerate(CLASSES_19)}


@dataclasses.dataclass(frozen=True)
class Archive:
    """Where the container is, and how its Sentinel-1 images are to be taken."""

    path: str = setting('', path=True)  # geobench_benv2.tortilla or geobench_so2sat.tortilla
    name: Literal['benv2', 'so2sat'] = 'benv2'  # which set of the benchmark it is
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
        raise InputError("config.archive.path='': give geobench_benv2.tortilla or geobench_so2sat.tortilla")
    check_text(archive.path)
    file = Path(archive.path).resolve()
    if archive.name == so2sat.NAME:
        return so2sat.source(file, archive.splits == 'official', archive.s1_order, on_error)
    samples, skips = list_samples(file, on_error)
    level = Level(lambda sample: lighter(read_images(file, sample).s1), 'is brighter')
    check_order(file, samples, archive.s1_order, level)
    official = archive.splits == 'official'
    return RecordSource(
        schema=SCHEMA,
        splits=items_of(samples, official, keep_empty=on_error == 'fail'),
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
    """The samples of a container, and the skips for rows that cannot be used, as `list_rows` does."""
    return list_rows(file, COLUMNS, _sample, on_error)


def _sample(file: Path, number: int, row: Row) -> Sample:
    try:
        parse_patch_id(row['patch_id'])
    except ValueError as error:
        raise RecordError(file, 'patch_id', f'row {number}: {error}', OTHER) from error
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
