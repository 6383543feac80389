"""Columns of numbers that a head shall predict: biomass, height. Every tile has those of its image.

A cell without a number is a missing value, and stays one (NaN) up to the loss and the metrics, which leave it
out. What programs write for "no value" is not taken for a measurement.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from fusmae_jax.errors import InputError, nearest
from fusmae_jax.input.contract import Targets
from fusmae_jax.input.number_maps import FILLS, HUGE

from ..records import RecordError
from .labels import NOTHING
from .settings import Archive

FIELD = 'targets'
MISSING = ('', *NOTHING, 'na', 'n/a')
COARSE = 1e-3  # of what the numbers of a target span, by which rounding may change one


def check_columns(file: Path, columns: Sequence[str], archive: Archive) -> None:
    """Raises InputError for a target without a column."""
    for name in archive.targets:
        if name not in columns:
            raise InputError(
                f'{file}: table: no column {name!r} (config.archive.targets); {nearest(name, columns)}'
            )


def numbers(row: Mapping[str, str], archive: Archive, file: Path, where: str) -> tuple[float | None, ...]:
    """The targets of a row, in the order of the settings; None for a missing value.

    Raises RecordError for a cell that is no finite number, or that looks like one for "no value".
    """
    return tuple(_number(row[name].strip(), archive, file, f'{where}, {name}') for name in archive.targets)


def _number(text: str, archive: Archive, file: Path, where: str) -> float | None:
    if text.lower() in MISSING:
        return None
    try:
        # Python reads 1_5 as 15.
        value = float(text.replace('_', 'no number'))
    except ValueError as error:
        hint = ' with a decimal point' if ',' in text else ''
        raise RecordError(file, where, f'{text!r} is no number', f'write one{hint}, or nothing') from error
    if value in archive.target_nodata:
        return None
    if value in archive.target_measured and math.isfinite(value):
        return value
    if not math.isfinite(value) or value in FILLS or abs(value) >= HUGE:
        raise RecordError(
            file,
            where,
            f'{text}, which mostly stands for no value',
            f'set config.archive.target_nodata=({value!r},) if it does, target_measured=({value!r},) if it '
            'was measured'
            if math.isfinite(value)
            else 'leave the cell empty',
        )
    return value


def targets_of(archive: Archive) -> Targets | None:
    """What the targets are, or None without any."""
    if not archive.targets:
        return None
    return Targets(archive.targets, archive.target_units or ('',) * len(archive.targets))


def check_some(archive: Archive, each: Sequence[tuple[float | None, ...]]) -> None:
    """Raises InputError for a target without a value, or with values that float32 cannot tell apart."""
    for name, values in zip(archive.targets, zip(*each)):
        there = np.array([value for value in values if value is not None])
        span = np.ptp(there) if there.size else 0.0
        if span and (lost := np.abs(there - there.astype(np.float32)).max()) > COARSE * span:
            raise InputError(
                f'{archive.table}: table: column {name!r}: its numbers lie between {there.min():.10g} and '
                f'{there.max():.10g}, and records, which hold 32 bits, would change them by up to {lost:.3g};'
                ' subtract a constant from all of them'
            )
        if not there.size:
            raise InputError(
                f'{archive.table}: table: column {name!r}: no row has a number; leave it out of '
                'config.archive.targets, or out of target_nodata what is one'
            )


def words(about: Targets) -> str:
    """The targets with their units, in words."""
    return ', '.join(f'{name} ({unit})' if unit else name for name, unit in zip(about.names, about.units))
