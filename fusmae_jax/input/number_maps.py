"""Maps of numbers: from stored values to numbers in their unit, on the host, and their moments.

A batch carries a map as float32 with NaN where there is no number. Moments are (..., 3) float64: pixels with
a number, their mean, and the sum of squares about it; 0 throughout without any.
"""

from collections.abc import Sequence

import numpy as np

from fusmae_jax.input.contract import NumberMap

# Written for "no value" far more often than measured.
FILLS = (-99.0, -999.0, -9999.0, -99999.0, -32768.0, -1e20)
HUGE = 1e30  # -3.4e38 and the like lie beyond


def to_numbers(stored: np.ndarray, about: NumberMap) -> np.ndarray:
    """The number of each pixel in the unit of the map, float32 of the same shape; NaN where there is none."""
    numbers = stored.astype(np.float64) * about.scale + about.offset
    return np.where(known(stored, about), numbers, np.nan).astype(np.float32)


def known(stored: np.ndarray, about: NumberMap) -> np.ndarray:
    """Which pixels have a number, bool of the same shape."""
    there = np.isfinite(stored)
    for value in about.nodata:
        # As the stored type: a tag in float64 equals no float32 otherwise. Beyond float32 it is infinity.
        with np.errstate(over='ignore'):
            there &= stored != (stored.dtype.type(value) if stored.dtype.kind == 'f' else value)
    return there


def doubtful(stored: np.ndarray, about: NumberMap, measured: Sequence[float] = ()) -> str | None:
    """In words: the first value that mostly stands for "no value", and where; None without any.

    `measured` are values that are said not to.
    """
    kind, there = stored.dtype, known(stored, about) & ~np.isin(stored, _stored(measured, stored.dtype))
    if kind.kind == 'f':
        wrong = there & (np.isin(stored, _stored(FILLS, kind)) | (np.abs(stored) >= HUGE))
    else:
        # The ends of whole numbers are written for it as well, but for the 0 of unsigned ones.
        ends = {np.iinfo(kind).min, np.iinfo(kind).max} - {0}
        wrong = there & np.isin(stored, _stored((*FILLS, *ends), kind))
    if not wrong.any():
        return None
    row, column = np.argwhere(wrong)[0].tolist()
    return f'{stored[row, column]:g} at row {row}, column {column} ({wrong.sum():,} such pixels)'


def _stored(values: Sequence[float], kind: np.dtype) -> np.ndarray:
    """Those of some numbers that a type can hold, as it holds them."""
    if kind.kind == 'f':
        return np.array(values, kind)
    held = np.iinfo(kind)
    return np.array([x for x in values if held.min <= x <= held.max and float(x).is_integer()]).astype(kind)


def moments(numbers: np.ndarray) -> np.ndarray:
    """Those of the pixels of one map, (3,)."""
    there = numbers[np.isfinite(numbers)].astype(np.float64)
    if not there.size:
        return np.zeros(3)
    mean = there.mean()
    return np.array([there.size, mean, ((there - mean) ** 2).sum()])


def joined(each: np.ndarray) -> np.ndarray:
    """Those of all maps together, (3,), from those of each, (maps, 3)."""
    count = each[:, 0].sum()
    if not count:
        return np.zeros(3)
    mean = (each[:, 0] @ each[:, 1]) / count
    return np.array([count, mean, (each[:, 2] + each[:, 0] * (each[:, 1] - mean) ** 2).sum()])
