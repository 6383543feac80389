"""Min-max scaling, band by band to 0..1 or 0..255 by the extremes of an image: no unit undoes that.

Two signs. Every band of an image, or of the whole set, runs from exactly 0 to exactly 1 with hardly a pixel
at the end, where a limit that someone set piles up. And in a crop, which shows neither extreme: whole
numbers over their range are multiples of 1/N, with another N for each band; reflectance has 1/10,000 for all.
"""

from typing import NamedTuple

import numpy as np

from .evidence import Sensor
from .findings import FEW, share

ENDS = (1.0, 255.0)
AT_END = 1e-3  # share of pixels: more of them at the end are a limit
ONE_PIXEL = 36  # at 60 m, resampled to 10 m
FINEST = 16_000  # the largest N that is looked for; digital numbers of a band hardly span more
FACTORS = (255, 10_000, 65_535)  # of all bands alike: not their own range
VALUES = 8  # different values of a band below which nothing is concluded


class Signs(NamedTuple):
    """What tells that images are scaled to their own range, (patches,)."""

    ends: np.ndarray  # every band runs from exactly 0 to exactly one of ENDS
    multiples: np.ndarray  # the bands are multiples of different fractions


def scaled(sensor: Sensor) -> np.ndarray:
    """Which patches are scaled to their own range, (patches,)."""
    signs = _signs(sensor)
    return signs.ends | signs.multiples


def evidence(sensor: Sensor) -> str:
    """What tells that patches are scaled to their own range, in words."""
    signs = _signs(sensor)
    reasons = (
        (signs.ends, 'every band runs from exactly 0 to exactly 1 (or 255)'),
        (signs.multiples & ~signs.ends, 'the bands are whole numbers over a range, another one for each'),
    )
    return '; '.join(f'{words} in {share(at.sum(), len(at))} patches' for at, words in reasons if at.any())


def _signs(sensor: Sensor) -> Signs:
    summary = sensor.summary
    known = summary.present & (summary.std > 0)
    none = np.zeros(len(known), bool)
    if not known.any():
        return Signs(none, none)
    images = Extremes(known, summary.zero, summary.minimum, summary.maximum, summary.top, summary.pixels)
    ends = _runs_to_the_ends(images)
    if len(ends) >= FEW and not ends.any() and _runs_to_the_ends(images.of_the_set())[0]:
        ends = ~none
    floats = any(dtype.startswith('float') for dtype in summary.dtypes)
    if not floats or np.nanmax(summary.maximum) > 1 or np.nanmin(summary.minimum) < 0:
        return Signs(ends, none)
    crops = [_multiples_of_its_own(patch, some) for patch, some in zip(summary.samples, known)]
    return Signs(ends, np.array(crops, bool))


class Extremes(NamedTuple):
    """Of images, (patches, bands): which are there and no constant, and the numbers of `Summary`."""

    known: np.ndarray
    zero: np.ndarray
    minimum: np.ndarray
    maximum: np.ndarray
    top: np.ndarray
    pixels: np.ndarray

    def of_the_set(self) -> 'Extremes':
        """The same over all patches, as those of one."""
        highest = np.nanmax(self.maximum, axis=0)
        at_end = np.where(self.maximum == highest, self.top, 0).sum(axis=0)
        pixels, lowest = self.pixels.sum(axis=0), np.nanmin(self.minimum, axis=0)
        columns = (self.known.any(axis=0), self.zero.sum(axis=0), lowest, highest, at_end, pixels)
        return Extremes(*(np.asarray(column)[None] for column in columns))


def _runs_to_the_ends(images: Extremes) -> np.ndarray:
    """Patches all of whose bands run from exactly 0 to exactly one of ENDS."""
    known, zero, minimum, maximum, top, pixels = images
    few = top <= np.maximum(ONE_PIXEL, AT_END * pixels)
    bands = known.sum(axis=1)
    result = np.zeros(len(known), bool)
    for end in ENDS:
        # Zeros are counted apart: they are not usable, and the minimum is that of usable pixels.
        full = (zero > 0) & (minimum > 0) & (maximum == end)
        # Bands of few different values pile up by nature; half of the bands tell.
        thin = 2 * (few & known).sum(axis=1) >= bands
        np.logical_or(result, (full | ~known).all(axis=1) & (bands > 0) & thin, out=result)
    return result


def _multiples_of_its_own(samples: tuple[np.ndarray, ...], known: np.ndarray) -> bool:
    """Whether the bands of a patch are multiples of 1/N, with another N for nearly each."""
    steps = [n for values, some in zip(samples, known) if some and (n := _steps(values))]
    most = 2 * len(steps) >= known.sum() and len(steps) >= 2
    return bool(most and not set(steps) & set(FACTORS) and 3 * len(set(steps)) >= 2 * len(steps))


def _steps(values: np.ndarray) -> int:
    """N if the values (sorted, float32, 0..1) are multiples of 1/N; 0 if they are of none up to FINEST."""
    values = np.unique(values).astype(np.float64)
    if len(values) < VALUES:
        return 0
    smallest = np.diff(values).min()
    if smallest * FINEST < 0.9:
        return 0
    # The difference of two float32 is known to 1e-7 alone; the values themselves decide.
    guess, error = 1 / smallest, 2e-7 / smallest**2
    for n in range(max(1, round(guess - error)), round(guess + error) + 1):
        if np.abs(values * n - np.rint(values * n)).max() < 0.01:
            return n
    return 0
