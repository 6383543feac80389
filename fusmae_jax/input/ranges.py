"""Ranges of the values of a unit: one table for conversion, for `encode` and for the Python API.

The limits are generous, because refusing a measurement is worse than passing an oddity: a whole number of a
GRD product is -54 dB at least, calm water lies near -25, bright targets reach 30; optical numbers saturate at
65,535, somewhat higher once resampled, and sun glint and snow exceed a reflectance of 1. One pixel beyond
them is a glitch and is counted; a share of an image is a fill value or another unit and is refused. That a
tail may hide behind a sound median is why both are looked at.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fusmae_jax.input.contract import Group
from fusmae_jax.input.units import validity

SHARE = 0.01  # of the valid pixels of a band of one image: more of them beyond the limits are no glitch
FEWEST = 4  # pixels that make a share
ENOUGH = 16  # valid pixels of a band below which nothing is concluded from its median
LOOK = 24  # pixels along a side that medians are taken of, fewer where there are many images
PIXELS = 64 * LOOK**2  # of all images together, as far as 8 a side allow
SMALLEST_DN = 10.0  # no band but B10 stays below this everywhere
WRAPPED = (60_000.0, 65_534.0)  # negative numbers as uint16; a saturated pixel is 65,535


class Range(NamedTuple):
    """The values of a unit."""

    low: float  # of a pixel
    high: float
    lowest: float  # of the median of a band over an image
    highest: float
    below: str  # what values are whose median lies below; and above
    above: str


def _power(decibels: float, factor: float) -> float:
    return 10 ** (decibels / factor)


# Of backscatter in dB. Ground never has a median of 10; the numbers of a GRD product, tens to hundreds, are
# 15 to 25 taken for power and 30 to 50 taken for amplitude. The logarithm of 1e-10 in place of 0 is -100.
_BRIGHT, _MIDDLE = 40.0, 10.0
_FILL = 'a fill value for what was not measured? Declare it as nodata, or put NaN there'
_RAW = 'are they numbers of a GRD product that is not calibrated? Calibrate it first'
RANGES = {
    'dB': Range(
        -90.0,
        _BRIGHT,
        -60.0,
        _MIDDLE,
        'is it dB times a factor, such as dB x 100? Divide by it',
        'is it linear power, or numbers of a GRD product that is not calibrated?',
    ),
    # Noise that was taken off may leave powers a little below 0.
    'linear': Range(
        -0.1, _power(_BRIGHT, 10), 0.0, _power(_MIDDLE, 10), 'power cannot be negative: is it dB?', _RAW
    ),
    'amplitude': Range(
        -0.1, _power(_BRIGHT, 20), 0.0, _power(_MIDDLE, 20), 'amplitude cannot be negative: is it dB?', _RAW
    ),
    'DN': Range(
        -2000.0,
        80_000.0,
        -500.0,
        40_000.0,
        'was an offset taken off that was not there, or off already?',
        'were they wrapped below zero, or scaled? Take the original product',
    ),
    'reflectance': Range(
        -0.2,
        8.0,
        -0.05,
        4.0,
        'was an offset taken off that was not there, or off already?',
        'are they digital numbers? Declare DN',
    ),
    # Elevation: from the shore of the Dead Sea, some mines and soundings below, to the highest summit.
    'm': Range(-600.0, 9000.0, -500.0, 8900.0, _FILL, 'are they feet or centimetres? Divide by the factor'),
}


class Problem(NamedTuple):
    """Values that cannot be in their unit."""

    # 'below', 'above': a median; 'sign', 'small', 'wrapped': see `check`; 'tail': a share of pixels
    kind: str
    image: int  # the first that has it
    band: str  # '' for all of them
    found: str
    advice: str


class Sample(NamedTuple):
    """Some pixels of some images, in the unit of their group."""

    group: Group
    ordered: np.ndarray  # (images, bands, pixels) float32, ascending, NaN last
    counts: np.ndarray  # (images, bands), pixels that are valid
    zero: np.ndarray  # (images,) share of the pixels that are stored as 0 in every band

    def quantile(self, share: float) -> np.ndarray:
        """The lower quantile of each image and band, (images, bands); NaN with fewer than ENOUGH pixels."""
        at = (share * np.maximum(self.counts - 1, 0)).astype(int)
        values = np.take_along_axis(self.ordered, at[..., None], axis=2)[..., 0]
        return np.where(self.counts >= ENOUGH, values, np.nan)


def sample(images: np.ndarray, group: Group) -> Sample:
    """Evenly spread pixels of stored images (images, rows, columns, bands)."""
    side = min(LOOK, max(8, math.isqrt(PIXELS // len(images))))
    down, across = (max(1, length // side) for length in images.shape[1:3])
    some = images[:, ::down, ::across]
    some = some.reshape(len(some), -1, some.shape[-1])
    valid = validity(some, group)
    zero = (valid & (some == 0)).all(axis=2).mean(axis=1)
    physical = some.astype(np.float32) * np.float32(group.scale) + np.float32(group.offset)
    # Bands first and contiguous: sorted along the last axis.
    ordered = np.ascontiguousarray(np.where(valid, physical, np.nan).transpose(0, 2, 1))
    ordered.sort(axis=2)
    return Sample(group, ordered, valid.sum(axis=1), zero)


def outside(images: np.ndarray, group: Group) -> np.ndarray:
    """Valid pixels beyond the limits of the unit, (images, bands), of stored (images, rows, columns, bands).

    All pixels are looked at, and counted only where the extremes say that there is something to count.
    """
    count = np.zeros((len(images), images.shape[-1]), np.int64)
    if group.unit not in RANGES or not images.size or _within(images, group):
        return count
    for i, image in enumerate(images):
        if not _within(image, group):
            count[i] = _beyond(image, group).sum(axis=(0, 1))
    return count


def _within(values: np.ndarray, group: Group) -> bool:
    # fmin and fmax pass over NaN and make no copy.
    ends = (float(end.reduce(values, axis=None)) * group.scale + group.offset for end in (np.fmin, np.fmax))
    limits = RANGES[group.unit]
    return all(limits.low <= end <= limits.high for end in ends)


def _beyond(image: np.ndarray, group: Group) -> np.ndarray:
    limits, physical = RANGES[group.unit], image * group.scale + group.offset
    return validity(image, group) & ((physical < limits.low) | (physical > limits.high))


def check(images: Mapping[str, np.ndarray], samples: Sequence[Sample]) -> Problem | None:
    """The first thing that cannot be among the images of one sensor, in the units that their groups say.

    Args:
        images: field -> stored (images, rows, columns, bands).
        samples: of the same, in the same order.
    """
    for pixels in samples:
        if pixels.group.unit in RANGES and (problem := _median(pixels)):
            return problem
    if problem := _together(samples):
        return problem
    for values, pixels in zip(images.values(), samples):
        if problem := _wrapped(pixels) or _tail(values, pixels.group):
            return problem
    return None


def check_image(images: Mapping[str, np.ndarray], groups: Mapping[str, Group]) -> Problem | None:
    """The same for one image: field -> stored (rows, columns, bands)."""
    batch = {field: values[None] for field, values in images.items()}
    return check(batch, [sample(values, groups[field]) for field, values in batch.items()])


def _first(where: np.ndarray) -> tuple[int, int] | None:
    """The first image, and there the first band, that something is true of; (images, bands)."""
    if not where.any():
        return None
    image, band = np.argwhere(where)[0]
    return int(image), int(band)


def _median(pixels: Sample) -> Problem | None:
    limits, unit, bands = RANGES[pixels.group.unit], pixels.group.unit, pixels.group.bands
    median = pixels.quantile(0.5)
    # B10 sees no ground and is nearly black.
    wrong = ((median < limits.lowest) | (median > limits.highest)) & (np.array(bands) != 'B10')
    if (at := _first(wrong)) is None:
        return None
    kind = 'below' if median[at] < limits.lowest else 'above'
    where = _stored(pixels.group)
    message = f'median {median[at]:.4g} {unit}{where}, possible are {limits.lowest:g} to {limits.highest:.5g}'
    values = pixels.ordered[at][: pixels.counts[at]]
    # A fill value repeats at one end of what was measured; another unit spreads to both sides of its median.
    if values[0] < values[-1] and median[at] in (values[0], values[-1]):
        return Problem('tail', at[0], bands[at[1]], message, _FILL)
    return Problem(kind, at[0], bands[at[1]], message, getattr(limits, kind))


def _together(samples: Sequence[Sample]) -> Problem | None:
    """Whole images of dB without a negative value (`sign`), of DN without a large one (`small`)."""
    unit = samples[0].group.unit
    if unit not in ('dB', 'DN'):
        return None
    images = len(samples[0].counts)
    lowest, highest, some = np.full(images, np.inf), np.full(images, -np.inf), np.zeros(images, bool)
    for pixels in samples:
        use = (pixels.counts >= ENOUGH) & (np.array(pixels.group.bands) != 'B10')
        last = np.take_along_axis(pixels.ordered, np.maximum(pixels.counts - 1, 0)[..., None], axis=2)[..., 0]
        lowest = np.minimum(lowest, np.where(use, pixels.ordered[..., 0], np.inf).min(axis=1))
        highest = np.maximum(highest, np.where(use, last, -np.inf).max(axis=1))
        some |= use.any(axis=1)
    wrong = some & ((lowest >= 0) if unit == 'dB' else (highest < SMALLEST_DN))
    if not wrong.any():
        return None
    i = int(np.argmax(wrong))
    if unit == 'dB':
        message = f'no negative value (from {lowest[i]:.4g} to {highest[i]:.4g}): not dB'
        return Problem('sign', i, '', message, 'is it linear power, or does 0 fill what was not measured?')
    message = f'no value above {highest[i]:.4g}: not DN'
    return Problem('small', i, '', message, 'is it reflectance, or does 0 fill what was not measured?')


def _wrapped(pixels: Sample) -> Problem | None:
    if pixels.group.unit not in ('DN', 'reflectance'):
        return None
    low, high = (x * (1.0 if pixels.group.unit == 'DN' else 1e-4) for x in WRAPPED)
    low += pixels.group.offset
    top = np.fmax.reduce(pixels.ordered, axis=None, initial=-np.inf)
    if top < low:
        return None
    # Saturated pixels share one value, the largest; negative numbers do not.
    count = ((pixels.ordered >= low) & (pixels.ordered <= high) & (pixels.ordered < top)).sum(axis=2)
    if (at := _first((count >= FEWEST) & (count > SHARE * pixels.counts))) is None:
        return None
    message = f'{count[at] / pixels.counts[at]:.1%} of the pixels lie between {low:g} and {high:g}'
    advice = 'negative numbers wrapped into an unsigned type; subtract offsets in signed numbers'
    return Problem('wrapped', at[0], pixels.group.bands[at[1]], message, advice)


def _tail(images: np.ndarray, group: Group) -> Problem | None:
    count = outside(images, group)
    if not count.any():
        return None
    valid = np.array([validity(image, group).sum(axis=(0, 1)) for image in images])
    if (at := _first((count >= FEWEST) & (count > SHARE * valid))) is None:
        return None
    image = images[at[0]][..., at[1] : at[1] + 1]
    limits = RANGES[group.unit]
    values = image[_beyond(image, group)].astype(np.float64)
    worst = values[np.argmax(np.abs(values))]
    message = (
        f'{count[at] / valid[at]:.1%} of the pixels lie outside {limits.low:g} to {limits.high:g} '
        f'{group.unit}, such as {worst * group.scale + group.offset:.6g}'
    )
    return Problem('tail', at[0], group.bands[at[1]], f'{message}{_stored(group)}', _FILL)


def _stored(group: Group) -> str:
    return (
        '' if (group.scale, group.offset) == (1, 0) else f' (scale {group.scale:g}, offset {group.offset:g})'
    )
