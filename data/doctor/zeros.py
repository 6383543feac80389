"""Pixels of exactly 0: holes, or the brightest scatterers of Sentinel-1 where dB were clipped at 0."""

from collections.abc import Iterator

import numpy as np
from scipy import ndimage

from data.doctor.backscatter import units_of
from data.doctor.evidence import Sensor
from data.doctor.findings import Finding, Severity, share
from data.doctor.own_range import scaled
from data.doctor.summary import usable

TITLES = {'s1': 'Sentinel-1', 's2': 'Sentinel-2'}
# What surrounds a clipped scatterer lies this much above the middle of the image, within these limits (dB);
# what surrounds a hole is as bright as any other ground.
BRIGHTER, BRIGHT = 5.0, (-8.0, -5.0)
SCATTERERS = 0.01  # of the image: a larger area of zeros is none


def check(sensor: Sensor) -> Iterator[Finding]:
    """0 is "nothing here" in Sentinel-2; in float dB it is a strong scatterer, hit where it was clipped."""
    summary = sensor.summary
    counts = summary.zero.copy()
    if sensor.modality == 's1':
        # Rounded values hit 0 by themselves; a fill covers an area.
        rounded = (summary.whole > 0.99) | (summary.step > 0)
        counts[rounded & (counts < 0.2 * summary.pixels)] = 0
    counts[scaled(sensor)] = 0  # the darkest pixel, by definition
    clipped = _clipped(sensor, counts)
    declared = 0.0 in sensor.declared.nodata
    if clipped.any():
        yield _scatterers(sensor, clipped, declared)
    counts -= clipped
    total, pixels = int(counts.sum()), summary.pixels.sum()
    if not total:
        return
    if declared:
        severity: Severity = 'warning' if total > 0.01 * pixels else 'note'
    elif sensor.modality == 's1':
        severity = 'error' if (counts > 0.001 * summary.pixels).any() else 'note'
    else:
        severity = 'warning' if (counts > 0.001 * summary.pixels).any() else 'note'
    yield Finding(
        f'{sensor.modality}.zero',
        severity,
        f'{TITLES[sensor.modality]}: zero-filled pixels',
        where(sensor, counts) + ('; declared as nodata' if declared else '; 0 is not declared as nodata'),
        'mask them or leave such patches out'
        if declared
        else 'declare nodata=(0,) in the contract, so that they stay out of tokens, loss and statistics',
    )


def where(sensor: Sensor, counts: np.ndarray) -> str:
    """How much of the sample `counts` (patches, bands) is, in words."""
    pixels = sensor.summary.pixels.sum()
    bands = [band for band, some in zip(sensor.declared.bands, np.any(counts, axis=0)) if some]
    patches = share(counts.any(axis=1).sum(), sensor.summary.patches)
    return f'{share(counts.sum(), pixels)} pixels, in {patches} patches, bands {", ".join(bands)}'


def _clipped(sensor: Sensor, zeros: np.ndarray) -> np.ndarray:
    """How many of the zeros of each patch and band are clipped scatterers."""
    counts = np.zeros_like(zeros)
    if sensor.modality != 's1' or not zeros.any():
        return counts
    units = units_of(sensor)
    scale, offset = sensor.declared.linear()
    for patch, index in zip(*np.nonzero(zeros)):
        band = sensor.declared.bands[index]
        # Nothing lies beyond a limit. With an offset, a stored 0 is no 0 dB.
        if (
            units[patch] == 'dB'
            and not offset[index]
            and sensor.summary.maximum[patch, index] * scale[index] < 0
        ):
            counts[patch, index] = _scatterer_pixels(sensor.images[patch][band] * scale[index])
    return counts


def _scatterer_pixels(image: np.ndarray) -> int:
    """Zeros (image: dB) in small areas whose rim is bright."""
    zero, other = image == 0, usable(image)
    middle = np.median(image[other])
    areas, count = ndimage.label(zero, np.ones((3, 3)))
    rims = np.where(other, ndimage.grey_dilation(areas, size=3), 0)
    number = np.arange(1, count + 1)
    # NaN, without a rim, is not bright.
    bright = ndimage.median(image, rims, number) > np.clip(middle + BRIGHTER, *BRIGHT)
    sizes = np.bincount(areas.ravel(), minlength=count + 1)[1:]
    return int(sizes[bright & (sizes <= SCATTERERS * image.size)].sum())


def _scatterers(sensor: Sensor, clipped: np.ndarray, declared: bool) -> Finding:
    evidence = f'{where(sensor, clipped)}; all around them is bright, and nothing lies above 0 dB'
    if declared:
        return Finding(
            's1.clipped',
            'warning',
            'Sentinel-1: the brightest scatterers, clipped at 0 dB, are declared as nodata',
            f'{evidence}; 0 is declared as nodata',
            'take 0 off the nodata values: these pixels are measurements',
        )
    return Finding(
        's1.clipped',
        'note',
        'Sentinel-1: the brightest scatterers were clipped at 0 dB',
        evidence,
        'no hole: do not declare 0 as nodata',
    )
