"""The unit that Sentinel-1 is in, told from its values, and its way to dB.

It is told from medians, because C-band backscatter of land varies little: about -20..-4 dB in VV and
-28..-10 dB in VH, patch by patch (BigEarthNet-MM: -12.6 and -19.3 over all). In power that is 0.01..0.4
and 0.002..0.1, in digital numbers of GRD products tens to hundreds.
"""

from typing import NamedTuple

import numpy as np

from data.doctor.evidence import Sensor
from data.doctor.own_range import scaled
from data.doctor.summary import WRAPPED

TYPICAL = {'VV': -12.6, 'VH': -19.3}  # dB, BigEarthNet-MM over all pixels


class Unit(NamedTuple):
    """A unit that Sentinel-1 may be found in, what to say about it, and what to do."""

    words: str
    remedy: str


UNITS = {
    'dB': Unit('backscatter in dB', ''),
    'linear': Unit(
        'linear power, not dB', "declare unit='linear' in the contract, or convert with 10 log10(power)"
    ),
    'amplitude': Unit(
        'amplitude (the square root of power), or scaled to 0..1, not dB',
        "declare unit='amplitude' in the contract, or convert with 20 log10(amplitude)",
    ),
    'digital numbers': Unit(
        'uncalibrated digital numbers, not dB',
        'calibrate the GRD product to sigma0 or gamma0 (SNAP: Calibration) and convert to dB',
    ),
    'dB x 10': Unit('dB times 10', 'declare scale=0.1 in the contract, or divide by 10'),
    'dB x 100': Unit('dB times 100', 'declare scale=0.01 in the contract, or divide by 100'),
    'wrapped dB': Unit(
        'negative dB wrapped into unsigned 16-bit integers',
        'reinterpret the values as int16; the fractions are lost, so take the original data if you can',
    ),
    'wrapped dB x 100': Unit(
        'negative dB times 100 wrapped into unsigned 16-bit integers',
        'reinterpret the values as int16 and declare scale=0.01',
    ),
    '8 bit': Unit(
        'scaled to 8 bits, not dB',
        'take the original data; if the range that 0..255 stands for is known, declare scale and offset',
    ),
    'min-max': Unit(
        'scaled to 0..1 (or 0..255) by their own extremes, band by band: no unit at all',
        'take the original data: what is left depends on the brightest pixel of each image, and images no '
        'longer compare',
    ),
    'normalised': Unit(
        'already normalised (mean near 0, deviation near 1), not dB',
        'undo it; the pipeline normalises with the statistics of the contract and would do so twice',
    ),
    'unknown': Unit(
        'in no unit that Sentinel-1 comes in', 'find out how the values were made; then declare the unit'
    ),
}


def units_of(sensor: Sensor) -> np.ndarray:
    """The unit of each patch, a key of UNITS, after the declared scale and offset; '' without a pixel."""
    summary = sensor.summary
    scale, offset = sensor.declared.linear()
    middle = summary.p50 * scale + offset
    rows = [_unit_of(row[ok]) if ok.any() else '' for row, ok in zip(middle, summary.usable > 0)]
    units = np.array(rows, dtype='<U16')
    # A city in power looks like a wood in amplitude, and a dark patch of digital numbers may stay below 256;
    # a whole sample of the one does not look like the other.
    if (small := units == 'small').any():
        units[small] = _small(sensor.declared.bands, middle[small])
    counted = units == 'digital numbers'
    units[scaled(sensor) & (units != '')] = 'min-max'
    counted &= units == 'digital numbers'
    if counted.any() and np.nanmax(summary.maximum[counted]) <= 255:
        units[counted] = '8 bit'
    return units


def _unit_of(middle: np.ndarray) -> str:
    """The unit of a patch by the medians of its bands; 'small' for positive numbers around 0.1."""
    low, high = middle.min(), middle.max()
    if low >= WRAPPED:
        return 'wrapped dB' if low >= 2**16 - 100 else 'wrapped dB x 100'
    if low > 0:
        return 'small' if high <= 2.0 else 'digital numbers' if high < WRAPPED else 'unknown'
    if np.abs(middle).max() <= 2.0:
        return 'normalised'
    if low >= -50.0:
        return 'dB' if high < 5 else 'unknown'
    return 'dB x 10' if low >= -400 else 'dB x 100' if low >= -5000 else 'unknown'


def _small(bands: tuple[str, ...], middle: np.ndarray) -> str:
    """Whichever of power and amplitude comes nearer to usual backscatter, over all patches."""
    usual = np.array([TYPICAL.get(band, -16.0) for band in bands])
    decibel = np.nanmedian(10 * np.log10(middle), axis=0)
    power, amplitude = (float(np.nanmean(np.abs(f * decibel - usual))) for f in (1, 2))
    return 'linear' if power <= amplitude else 'amplitude'


def decibel(values: np.ndarray, unit: str) -> np.ndarray:
    """Values of a unit of UNITS in dB; NaN where that has no meaning."""
    factor = {'linear': 10.0, 'amplitude': 20.0, 'digital numbers': 20.0}.get(unit)
    if factor:
        return factor * np.log10(np.where(values > 0, values, np.nan))
    if unit.startswith('wrapped'):
        values = np.where(values >= 2**15, values - 2.0**16, values)
    divisor = {'dB x 10': 10.0, 'dB x 100': 100.0, 'wrapped dB x 100': 100.0}.get(unit, 1.0)
    return values / divisor if unit in UNITS else np.full_like(values, np.nan)


def medians(sensor: Sensor, units: np.ndarray) -> np.ndarray:
    """Median of each patch and band in dB, (patches, bands)."""
    scale, offset = sensor.declared.linear()
    physical = sensor.summary.p50 * scale + offset
    return np.array([decibel(row, unit) for row, unit in zip(physical, units)]).reshape(physical.shape)
