"""Random fields on a pixel grid: smooth ones for shapes and texture, parcels for farmed land."""

import functools

import numpy as np


@functools.lru_cache(maxsize=32)
def _splines(size: int, step: float) -> tuple[np.ndarray, np.ndarray]:
    """Cubic B-splines with knots every `step` pixels: the first of four knots, and their weights (4, size).

    The weights of a pixel have unit square sum, so that independent knots give unit variance everywhere.
    """
    first, part = np.divmod(np.arange(size) / step, 1)
    rest = 1 - part
    weights = np.stack([rest**3, 4 - 3 * part**2 * (1 + rest), 4 - 3 * rest**2 * (1 + part), part**3])
    weights /= np.sqrt((weights**2).sum(0))
    return first.astype(np.intp), weights.astype(np.float32)


def smooth(rng: np.random.Generator, count: int, size: int, steps: dict[float, float]) -> np.ndarray:
    """Gaussian fields (count, size, size), float32, of zero mean and unit variance at every pixel.

    `steps`: length in pixels -> standard deviation of the part that varies over about that length.
    """
    result = np.zeros((count, size, size), np.float32)
    total = sum(share**2 for share in steps.values()) ** 0.5
    for step, share in steps.items():
        first, weights = _splines(size, step)
        knots = rng.standard_normal((count, first[-1] + 4, first[-1] + 4), np.float32)
        columns = np.ascontiguousarray(_along_rows(knots, first, weights).swapaxes(1, 2))
        result += _along_rows(columns, first, weights * np.float32(share / total))
    return result


def _along_rows(knots: np.ndarray, first: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(count, knots, n) -> (count, size, n); a matrix product would set off threads that fight for cores."""
    result = knots[:, first] * weights[0][:, None]
    for k in range(1, 4):
        result += knots[:, first + k] * weights[k][:, None]
    return result


def parcels(rng: np.random.Generator, size: int) -> np.ndarray:
    """Unit variance fields (2, size, size), float32, constant within fields of a rotated, uneven grid."""
    angle = rng.uniform(0, np.pi)
    rows, columns = np.meshgrid(np.arange(size), np.arange(size), indexing='ij', sparse=True)
    across = np.cos(angle) * rows + np.sin(angle) * columns
    along = np.cos(angle) * columns - np.sin(angle) * rows
    strip = _strip(rng, across, 8, 20)
    # Every strip is cut at places of its own.
    shift = rng.uniform(0, 40, strip.max() + 1)
    field = _strip(rng, along + shift[strip], 15, 45)
    values = rng.standard_normal((2, 4096), np.float32)
    return values[:, (strip * 131 + field * 17) % 4096]


def _strip(rng: np.random.Generator, at: np.ndarray, shortest: float, longest: float) -> np.ndarray:
    """The number of the interval that each place lies in; intervals have random lengths."""
    low, high = at.min(), at.max()
    borders = low + np.cumsum(rng.uniform(shortest, longest, int((high - low) / shortest) + 1))
    # A table of whole pixels instead of a search at every pixel.
    table = np.searchsorted(borders, np.arange(np.floor(low), np.ceil(high) + 1))
    return table[(at - np.floor(low)).astype(np.intp)]
