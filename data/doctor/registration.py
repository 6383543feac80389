"""Misregistration of Sentinel-1 against Sentinel-2, as a statistic over many pairs.

The two sensors see different things, so a single pair says little. Edges (shores, roads, field and forest
borders) mostly stand in both: the correlation of edge strength, at every small shift and averaged over
pairs, peaks at the shift of the one sensor against the other.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from .evidence import Evidence
from .findings import ENOUGH, Finding
from .radar import decibel, units_of
from .summary import usable

REACH = 16  # pixels, the largest shift that is looked for
SURE = 8.0  # height of the peak in standard deviations of the correlation at far shifts
SHARP = ('B02', 'B03', 'B04', 'B08')  # bands of 10 m
TOLERATED = 2.0  # pixels; below that, real pairs scatter: edges lie where each sensor sees them


class Shift(NamedTuple):
    """Where the average correlation of edges peaks."""

    down: float  # pixels of Sentinel-2 against Sentinel-1
    right: float
    height: float  # of the peak above the rest, in standard deviations
    pairs: int


def check(evidence: Evidence) -> Iterator[Finding]:
    """Whether Sentinel-1 and Sentinel-2 lie on top of each other."""
    if not {'s1', 's2'} <= evidence.sensors.keys() or not evidence.names:
        return
    shift = measure(evidence)
    if shift.pairs < ENOUGH:
        yield Finding(
            'pair.shift',
            'cannot tell',
            'Whether Sentinel-1 and Sentinel-2 are shifted against each other',
            f'{shift.pairs:,} pairs; it takes {ENOUGH}',
            'lay a few pairs over each other by eye',
            needs='64 patches',
        )
        return
    yield _judged(shift, _step(evidence))


def _judged(shift: Shift, step: float) -> Finding:
    """What a measured shift means; `step`: metres a pixel, 0 if that is not known."""
    apart = float(np.hypot(shift.down, shift.right))
    metres = f' ({apart * step:.0f} m)' if step else ''
    evidence = (
        f'edges of the two agree best at {shift.down:+.1f} px down, {shift.right:+.1f} px right{metres}; the '
        f'peak stands {shift.height:.0f} standard deviations high ({shift.pairs:,} pairs)'
    )
    if shift.height < SURE:
        return Finding(
            'pair.unrelated',
            'warning',
            'Sentinel-1 and Sentinel-2 show no common edges',
            evidence,
            f'check that the pairs are pairs (same place), and that shifts are smaller than {REACH} px; a '
            'sample without any edges, such as open sea, looks so too',
            needs='64 patches',
        )
    if apart > TOLERATED:
        return Finding(
            'pair.shift',
            'error' if apart > 2 * TOLERATED else 'warning',
            'Sentinel-1 and Sentinel-2 are shifted against each other',
            evidence,
            'check geolocation, terrain correction and the corner (pixel centre or edge) of the two grids',
            needs='64 patches',
        )
    what = 'Sentinel-1 and Sentinel-2 lie on top of each other'
    return Finding('pair.shift', 'note', what, evidence, needs='64 patches')


def measure(evidence: Evidence) -> Shift:
    """The shift that the pairs of the sample have in common."""
    s1, s2 = evidence.sensors['s1'], evidence.sensors['s2']
    units = units_of(s1)
    total, pairs = np.zeros((2 * REACH + 1, 2 * REACH + 1)), 0
    for radar, optical, unit in zip(s1.images, s2.images, units):
        finest = max((image.shape for image in optical.values()), default=(0, 0))
        sharp = [optical[band] for band in SHARP if band in optical] or list(optical.values())[:4]
        left = [_radar_edges(x, unit) for x in radar.values() if x.shape == finest]
        right = [_optical_edges(x) for x in sharp if x.shape == finest]
        if left and right and min(finest) >= 2 * REACH:
            correlation = _correlation(np.mean(left, axis=0), np.mean(right, axis=0))
            if correlation is not None:
                total, pairs = total + correlation, pairs + 1
    return _peak(total / max(pairs, 1), pairs)


def _radar_edges(image: np.ndarray, unit: str) -> np.ndarray:
    values = image.astype(np.float64)
    return edges(values if unit in ('', 'unknown') else decibel(values, unit), usable(image))


def _optical_edges(image: np.ndarray) -> np.ndarray:
    # In logarithms, as dB are: an edge is then a ratio in both sensors.
    return edges(np.log(np.maximum(image.astype(np.float64), 1e-4)), usable(image))


def edges(image: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Strength of edges of an image (rows, columns), smoothed against speckle; 0 near invalid pixels."""
    valid = valid & np.isfinite(image)
    filled = np.where(valid, image, image[valid].mean() if valid.any() else 0.0)
    strength = ndimage.gaussian_gradient_magnitude(filled, 1.5, mode='nearest')
    strength = np.minimum(strength, np.quantile(strength, 0.98))  # no single target decides
    strength = strength - ndimage.uniform_filter(strength, 31, mode='nearest')
    if not valid.all():
        # The edge of what is missing is the same in both sensors, and would stand for agreement.
        strength = np.where(ndimage.minimum_filter(valid, 13), strength, 0.0)
    deviation = strength.std()
    return strength / deviation if deviation else strength


def _correlation(left: np.ndarray, right: np.ndarray) -> np.ndarray | None:
    """Correlation at shifts of -REACH..REACH pixels, [REACH, REACH] being none; None without any edges."""
    if not left.std() or not right.std():
        return None
    shape = [2 * side for side in left.shape]  # room, so that shifts do not wrap around
    spectrum = np.fft.rfft2(right, shape) * np.conj(np.fft.rfft2(left, shape))
    values = np.roll(np.fft.irfft2(spectrum, shape), (REACH, REACH), (0, 1))
    return values[: 2 * REACH + 1, : 2 * REACH + 1] / left.size


def _peak(values: np.ndarray, pairs: int) -> Shift:
    if not pairs:
        return Shift(0.0, 0.0, 0.0, 0)
    row, column = np.unravel_index(values.argmax(), values.shape)
    rows, columns = np.ogrid[: values.shape[0], : values.shape[1]]
    # Edges are smoothed, so the surroundings of a peak are a part of it.
    far = np.hypot(rows - row, columns - column) > 6
    height = (values[row, column] - values[far].mean()) / max(values[far].std(), 1e-12)
    # Its centre of gravity, as shifts are seldom whole pixels; what is negative would weigh backwards.
    near = values[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2].clip(0)
    near_rows, near_columns = np.mgrid[
        max(row - 1, 0) : max(row - 1, 0) + near.shape[0],
        max(column - 1, 0) : max(column - 1, 0) + near.shape[1],
    ]
    weight = max(near.sum(), 1e-12)
    return Shift(
        float((near * near_rows).sum() / weight - REACH),
        float((near * near_columns).sum() / weight - REACH),
        float(height),
        pairs,
    )


def _step(evidence: Evidence) -> float:
    steps = [grid.step_x for grids in evidence.sensors['s2'].grids for grid in grids.values()]
    return min(steps, default=0.0)
