"""Plausibility of images, from a few pixels of a sample: do they look like what they are said to be?

Limits in `ranges` are of what can be; here it is about what is likely. Two faults leave no doubt (swapped
polarisations or bands out of order, dB cast to whole numbers, borders of zeros in dB), the others may be a
cloud or a desert for once and are said, not refused.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fusmae_jax.input import ranges, units
from fusmae_jax.input.ranges import Sample

# What may be named in `accept`, beside the differences of two contracts.
NAMES = ('range', 'order', 'integer', 'fill', 'floor', 'brightness', 'offset', 'level')

WATER = -18.0  # dB; an image whose stronger polarisation lies below is mostly water, or shadow
SWAPPED = -1.0  # dB, median of VV - VH over land, where 2 to 15 is usual
BRIGHTEST = {'VV': 0.0, 'VH': -6.5}  # dB, of the median of an image; cities end some dB below
FLOOR = -60.0  # dB; the noise of the instrument lies near -25, its least speckle near -50
OFFSET_LIMIT = 900.0  # smallest dark percentile over the bands: below about 400 without the offset of 1000
SUBTRACTED = -300.0  # darker on average than any correction of the atmosphere leaves dark pixels
# Light that the air adds, x 10,000: B01 - B11 of dark pixels is 700 to 1200 in L1C, below 250 in L2A.
HAZE, HAZE_FEW, BLUE = 450.0, 600.0, 1.5  # of a sample; of fewer than FEW images; divided where B02 stands in
FEW = 64  # images
LAND = 800.0  # B08 of ground with plants or soil, x 10,000
SWIR = 1.3  # B12 / B11: below 1 over plants, soil and snow, 1.2 over burnt ground
CIRRUS = 0.1  # B10 / B11 of ground; B12 / B8A, in whose places they might lie, is more


class Doubt(NamedTuple):
    """Something about the images of a sensor that is wrong, or looks so."""

    certain: bool
    name: str  # one of NAMES
    message: str


def doubts(
    images: Mapping[str, np.ndarray], samples: Sequence[Sample], level: str = '', noun: str = 'image'
) -> list[Doubt]:
    """Everything about the images of one sensor that cannot be as declared, or hardly.

    Args:
        images: field -> stored (images, rows, columns, bands), which share no band.
        samples: of the same, in the same order.
        level: of the optical products that the model learned from, if it is known.
        noun: what messages call one of the images.
    """
    if problem := ranges.check(images, samples):
        where = f'{noun} {problem.image}' + (f', {problem.band}' if problem.band else '')
        # What lies in another unit looks wrong in every other way too.
        return [Doubt(True, 'range', f'{where}: {problem.found}; {problem.advice}')]
    few = {
        name: int(ranges.outside(x, sample.group).sum()) for (name, x), sample in zip(images.items(), samples)
    }
    noticed = [
        Doubt(
            False, 'range', f'{count:,} pixels that cannot be {sample.group.unit} were passed; put NaN there'
        )
        for count, sample in zip(few.values(), samples)
        if count
    ]
    unit = samples[0].group.unit
    if unit in ('dB', 'linear', 'amplitude'):
        return [*noticed, *_radar(samples)]
    return [*noticed, *_optical(samples, level)] if unit in ('DN', 'reflectance') else noticed


def _by_band(samples: Sequence[Sample], share: float) -> dict[str, np.ndarray]:
    """band -> quantile of each image."""
    return {
        band: column
        for sample in samples
        for band, column in zip(sample.group.bands, sample.quantile(share).astype(np.float64).T)
    }


def _radar(samples: Sequence[Sample]) -> Iterator[Doubt]:
    given = samples[0].group.unit
    median = {band: units.convert(x, given, 'dB') for band, x in _by_band(samples, 0.5).items()}
    if {'VV', 'VH'} <= median.keys():
        with np.errstate(invalid='ignore'):
            land = np.fmax(median['VV'], median['VH']) > WATER
        difference = _middle((median['VV'] - median['VH'])[land])
        if difference < SWAPPED:
            yield Doubt(
                True,
                'order',
                f'VV lies {-difference:.1f} dB below VH over land, where it is 2 to 15 dB brighter: are the '
                'two swapped? Files sorted by name come as VH, VV',
            )
    for band, values in median.items():
        if (middle := _middle(values)) > BRIGHTEST.get(band, np.inf):
            yield Doubt(
                False,
                'brightness',
                f'the median of {band} is {middle:.1f} dB, brighter than any ground ({BRIGHTEST[band]:g}): '
                'are these decibels of calibrated power (10 log10)? Or are they normalised already?',
            )
    if given == 'dB':
        yield from _decibels(samples)


def _decibels(samples: Sequence[Sample]) -> Iterator[Doubt]:
    for sample in samples:
        if _whole(sample).any():
            yield Doubt(
                True,
                'integer',
                'dB were cast to whole numbers: speckle and texture need steps below 0.1 dB; read the '
                'original decimals again',
            )
        if (sample.zero > ranges.SHARE).any():
            yield Doubt(
                True,
                'fill',
                f'{sample.zero.max():.1%} of the pixels of image {sample.zero.argmax()} are exactly 0 dB in '
                'every band, which no ground is: a border without measurements? Declare 0 as nodata, or put '
                'NaN there',
            )
        low = np.fmin.reduce(sample.quantile(ranges.SHARE), axis=None, initial=np.inf)
        if low < FLOOR:
            yield Doubt(
                False,
                'floor',
                f'{ranges.SHARE:.0%} of the pixels of an image lie below {low:.1f} dB, far under the noise '
                'of the instrument: the logarithm of zero-filled power? Put NaN there',
            )


def _whole(sample: Sample) -> np.ndarray:
    """Which images and bands hold whole numbers, of more than a handful of values that repeat."""
    whole = ((sample.ordered == np.rint(sample.ordered)) | np.isnan(sample.ordered)).all(axis=2)
    steps = (np.diff(sample.ordered, axis=2) > 0).sum(axis=2)
    return whole & (steps >= 4) & (steps < sample.counts / 4)


def _optical(samples: Sequence[Sample], level: str) -> Iterator[Doubt]:
    factor = 1e4 if samples[0].group.unit == 'reflectance' else 1.0
    median = {band: values * factor for band, values in _by_band(samples, 0.5).items()}
    if message := _order(median):
        yield Doubt(True, 'order', message)
    dark = {band: value * factor for sample in samples for band, value in _dark(sample).items()}
    images = len(samples[0].counts)
    yield from _offset(dark, images)
    if message := _level(dark, images, level):
        yield Doubt(False, 'level', message)
    for sample in samples:
        # Shadow and water may be 0 in the infrared, never in blue light too.
        if 'B02' in sample.group.bands and len(sample.group.bands) > 1 and (sample.zero > ranges.SHARE).any():
            yield Doubt(
                False,
                'fill',
                f'{sample.zero.max():.1%} of the pixels of image {sample.zero.argmax()} are stored as 0 in '
                'every band: nothing measured? Declare 0 as nodata, or put NaN there',
            )


def _order(median: Mapping[str, np.ndarray]) -> str:
    """Says so if B11 and B12 hold other bands, as if bands from B8A on are out of order."""
    if not {'B08', 'B11', 'B12'} <= median.keys():
        return ''
    land = median['B08'] > LAND
    short, shorter = _middle(median['B11'][land]), _middle(median['B12'][land])
    if not shorter > SWIR * short:
        return ''
    why = f'over land B12 is {shorter:.0f} and B11 {short:.0f}, where B12 is the darker one'
    if short < CIRRUS * shorter:
        return f'{why}: is B10 in the place of B11? L1C has 13 bands; leave B10 out'
    return f'{why}: is B8A the last band? Give the bands in the order of the model, B8A after B08'


def _dark(sample: Sample) -> dict[str, float]:
    """band -> first percentile over the pixels of all images; without B10, which sees no ground."""
    result = {}
    for i, band in enumerate(sample.group.bands):
        values = sample.ordered[:, i]
        values = values[np.isfinite(values)]
        if values.size >= ranges.ENOUGH and band != 'B10':
            at = (values.size - 1) // 100
            result[band] = float(np.partition(values, at)[at])
    return result


def _offset(dark: Mapping[str, float], images: int) -> Iterator[Doubt]:
    if not dark:
        return
    band = min(dark, key=dark.__getitem__)
    if dark[band] >= OFFSET_LIMIT:
        yield Doubt(
            False,
            'offset',
            f'even the darkest percent of {band}, the darkest band, is {dark[band]:.0f} x 1e-4 ({images:,} '
            'images): is the offset of 1000 (processing baseline 04.00, January 2022 and later) still in? '
            'Subtract it; cloud, snow and desert may look so too',
        )
    elif dark[band] < SUBTRACTED:
        yield Doubt(
            False,
            'offset',
            f'the darkest percent of {band} is {dark[band]:.0f} x 1e-4 ({images:,} images): was an offset '
            'subtracted that was not there?',
        )


def _level(dark: Mapping[str, float], images: int, level: str) -> str:
    far = next((band for band in ('B11', 'B12', 'B04') if band in dark), '')
    blue = next((band for band in ('B01', 'B02') if band in dark), '')
    if not far or not blue or level not in ('L1C', 'L2A'):
        return ''
    haze = (dark[blue] - dark[far]) * (1.0 if blue == 'B01' else BLUE)
    visible = [dark[band] for band in ('B01', 'B02', 'B03', 'B04') if band in dark]
    # Air scatters ever less from blue to red; bright ground does not fall off like that.
    falling = all(left > right for left, right in itertools.pairwise(visible))
    looks = f'dark pixels: {blue} {dark[blue]:.0f}, {far} {dark[far]:.0f}; {images:,} images'
    if level == 'L2A' and falling and haze >= (HAZE if images >= FEW else HAZE_FEW):
        return f'looks like L1C (top of the atmosphere), the model knows L2A ({looks})'
    if level == 'L1C' and images >= FEW and not (falling and haze >= HAZE):
        return f'looks like L2A (surface reflectance), the model knows L1C ({looks})'
    return ''


def _middle(values: np.ndarray) -> float:
    """The median of what is there; NaN of nothing, which is neither above nor below anything."""
    values = values[np.isfinite(values)]
    return float(np.median(values)) if values.size else np.nan
