"""The metadata tables of the archive: which patches there are, with their splits and classes."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from fusmae_jax.errors import InputError, nearest

from ..bigearthnet_mm.labels import CLASSES_19
from ..records import RecordError
from .names import check_names

COLUMNS = {
    'patch_id': str,
    'labels': list,
    'split': str,
    'country': str,
    's1_name': str,
    's2v1_name': str,
    'contains_seasonal_snow': bool,
    'contains_cloud_or_shadow': bool,
}
SPLITS = {'train': 'train', 'validation': 'val', 'test': 'test'}  # as the table calls them -> as we do

_INDEX = {name: index for index, name in enumerate(CLASSES_19)}
_ADVICE = 'download the metadata table again'


class PatchRow(NamedTuple):
    """A pair as listed, before any of its images is opened."""

    patch_id: str
    s1_name: str
    s2v1_name: str
    country: str
    split: str  # train, val or test
    snow: bool
    cloud: bool
    labels: tuple[int, ...]  # indices of CLASSES_19


class PatchTable(NamedTuple):
    """The rows of one table, and what is wrong with those that are not among them."""

    rows: list[PatchRow]
    problems: list[tuple[str, RecordError]]


def read_table(file: Path) -> PatchTable:
    """Reads and checks a metadata table; raises InputError if it is not one."""
    rows: list[PatchRow] = []
    problems: list[tuple[str, RecordError]] = []
    for number, values in enumerate(_values(file)):
        try:
            rows.append(_row(file, number, values))
        except RecordError as error:
            problems.append((str(values['patch_id']), error))
    return PatchTable(rows, problems)


def _values(file: Path) -> Iterator[dict[str, Any]]:
    """The rows of a table as dicts, batch by batch, so that only one batch at a time is held twice."""
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(file)
        columns = table.schema_arrow.names
        missing = [name for name in COLUMNS if name not in columns]
        if missing:
            raise InputError(
                f'{file}: no column {", ".join(missing)} (found: {", ".join(columns)}); give the '
                'metadata.parquet of BigEarthNet v2'
            )
        for batch in table.iter_batches(columns=list(COLUMNS)):
            yield from batch.to_pylist()
    except FileNotFoundError as error:
        raise InputError(f'{file}: the metadata table is missing; it is a download of its own') from error
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f'{file}: cannot be read as a Parquet table ({error}); {_ADVICE}') from error


def _row(file: Path, number: int, values: dict[str, Any]) -> PatchRow:
    for column, kind in COLUMNS.items():
        if type(values[column]) is not kind:
            message = f'row {number}: {values[column]!r}, expected {kind.__name__}'
            raise RecordError(file, column, message, _ADVICE)
    if values['split'] not in SPLITS:
        message = f'row {number}: {values["split"]!r} is none of {", ".join(SPLITS)}'
        raise RecordError(file, 'split', message, _ADVICE)
    if not values['labels']:
        raise RecordError(file, 'labels', f'row {number}: no class, expected at least one', _ADVICE)
    unknown = [name for name in values['labels'] if name not in _INDEX]
    if unknown:
        message = f'row {number}: {unknown[0]!r} is not one of the 19 classes'
        raise RecordError(file, 'labels', message, nearest(str(unknown[0]), CLASSES_19))
    names = values['patch_id'], values['s1_name'], values['s2v1_name']
    try:
        check_names(*names)
    except ValueError as error:
        raise RecordError(file, 'patch_id, s1_name, s2v1_name', f'row {number}: {error}', _ADVICE) from error
    return PatchRow(
        *names,
        sys.intern(values['country']),
        SPLITS[values['split']],
        values['contains_seasonal_snow'],
        values['contains_cloud_or_shadow'],
        tuple(sorted(_INDEX[name] for name in values['labels'])),
    )
