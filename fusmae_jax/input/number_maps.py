"""Maps of numbers: from stored values to numbers in their unit, on the host, and their moments.

A batch carries a map as float32 with NaN where there is no number. Moments are (..., 3) float64: pixels with
a number, their mean, and the sum of squares about it; 0 throughout without any.
"""

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


def doubtful(stored: np.ndarray, about: NumberMap) -> str | None:
    """In words: the first value that mostly stands for "no value", and where; None without any."""
    wide = stored.astype(np.float64)
    wrong = known(stored, about) & (np.isin(wide, FILLS) | (np.abs(wide) >= HUGE))
    if not wrong.any():
        return None
    row, column = np.argwhere(wrong)[0].tolist()
    return f'{stored[row, column]:g} at row {row}, column {column} ({wrong.sum():,} such pixels)'


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
