"""Checks of Sentinel-1: the unit, integers, the order of VV and VH, levels that no land has.

The unit that Sentinel-1 is in, told from its values, and its way to dB.

It is told from medians, because C-band backscatter of land varies little: about -20..-4 dB in VV and
-28..-10 dB in VH, patch by patch (BigEarthNet-MM: -12.6 and -19.3 over all). In power that is 0.01..0.4
and 0.002..0.1, in digital numbers of GRD products tens to hundreds.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from fusmae_jax.input.plausible import BRIGHTEST, FLOOR, WATER

from ..geobench2 import so2sat
from . import own_range
from .evidence import Evidence, Sensor
from .findings import FEW, Finding, Severity, share
from .own_range import scaled
from .summary import WRAPPED

# Medians of a sample of land outside these are not sigma0 or gamma0 in dB, whatever the season.
USUAL = {'VV': (-22.0, -3.0), 'VH': (-30.0, -8.5)}
RATIO = (2.0, 15.0)  # dB, VV - VH over land: 4..9 in practice


def check(evidence: Evidence) -> Iterator[Finding]:
    """All findings about the values of Sentinel-1."""
    sensor = evidence.sensors.get('s1')
    if sensor is None:
        return
    yield from _calibration(sensor)
    # A signed amplitude has no level that could be looked at.
    if not sensor.summary.usable.any() or sensor.declared.unit == so2sat.AMPLITUDE:
        return
    units = units_of(sensor)
    yield from _unit(sensor, units)
    yield from _integers(sensor, units)
    yield from _order(sensor, units)
    yield from _levels(sensor, units)


def _unit(sensor: Sensor, units: np.ndarray) -> Iterator[Finding]:
    expected = sensor.declared.unit or 'dB'
    accepted = {'amplitude': ('amplitude', 'digital numbers')}.get(expected, (expected,))
    severity: Severity = 'error' if sensor.declared.unit else 'warning'
    patches = int((units != '').sum())
    if expected in ('linear', 'amplitude') and patches < FEW:
        accepted = (*accepted, 'linear', 'amplitude')  # a few patches do not tell the two apart
    for unit in sorted(set(units) - {'', *accepted}):
        at = np.flatnonzero(units == unit)
        off = UNITS[unit] if unit != 'dB' else Unit(f'dB, not {expected}', "declare unit='dB'")
        some = '' if len(at) == patches else 'some patches are '
        yield Finding(
            's1.unit',
            # What no declaration can undo, or one unit for some patches and another for others.
            'error' if some or unit == 'min-max' else severity,
            f'Sentinel-1: {some}{off.words}',
            f'{share(len(at), patches)} patches; {_describe(sensor, int(at[0]))}'
            + (f'; {own_range.evidence(sensor)}' if unit == 'min-max' else ''),
            off.remedy,
        )


def _describe(sensor: Sensor, patch: int) -> str:
    summary = sensor.summary
    return 'first of them: ' + ', '.join(
        f'{band} {summary.minimum[patch, i]:.4g} to {summary.maximum[patch, i]:.4g}, median '
        f'{summary.p50[patch, i]:.4g} ({summary.dtypes[i]})'
        for i, band in enumerate(sensor.declared.bands)
        if summary.usable[patch, i]
    )


def _integers(sensor: Sensor, units: np.ndarray) -> Iterator[Finding]:
    """Float32 dB of a patch holds thousands of different values; after a cast to integers, some dozens."""
    summary = sensor.summary
    scale, _ = sensor.declared.linear()
    step = np.where(units[:, None] == 'dB', summary.step * np.abs(scale), 0)
    cast = (step >= 0.9).any(axis=1)
    coarse = (step >= 0.15).any(axis=1) & ~cast
    patches = int((units != '').sum())
    if cast.any():
        yield Finding(
            's1.integer',
            'error',
            'Sentinel-1: dB were cast to integers',
            f'{share(cast.sum(), patches)} patches hold whole numbers only; the smallest step between two '
            f'values is {step[cast].max():g} dB, speckle and texture need less than 0.1 dB',
            'read the original float32 images again, without a cast on the way (some loaders read into '
            'int32)',
        )
    if coarse.any():
        yield Finding(
            's1.integer',
            'warning',
            'Sentinel-1: dB were rounded coarsely',
            f'{share(coarse.sum(), patches)} patches; the smallest step between two values is '
            f'{step[coarse].max():g} dB',
            'store float32, or int16 with 100 steps a dB',
        )


def _order(sensor: Sensor, units: np.ndarray) -> Iterator[Finding]:
    bands = sensor.declared.bands
    if 'VV' not in bands or 'VH' not in bands:
        return
    values = medians(sensor, units)
    vv, vh = values[:, sensor.band('VV')], values[:, sensor.band('VH')]
    with np.errstate(invalid='ignore'):
        land = np.fmax(vv, vh) > WATER
        land |= units == 'digital numbers'  # uncalibrated: the level says nothing, the difference does
        land &= np.isfinite(vv - vh) & ~np.isin(units, ('normalised', 'min-max', '8 bit', 'unknown', ''))
    difference = (vv - vh)[land]
    if not len(difference):
        yield Finding(
            's1.order',
            'cannot tell',
            'Sentinel-1: whether VV and VH are in their places',
            'no patch with land and a known unit in the sample',
        )
        return
    mean, swapped = float(difference.mean()), int((difference < 0).sum())
    evidence = (
        f'median VV - VH over land is {mean:.1f} dB, negative in {share(swapped, len(difference))} patches; '
        f'{RATIO[0]:g} to {RATIO[1]:g} dB is usual'
    )
    if swapped:
        most = 2 * swapped > len(difference)
        yield Finding(
            's1.order',
            'error' if most else 'warning',
            'Sentinel-1: VV and VH are swapped' + ('' if most else ' in some patches'),
            evidence,
            'name the bands in the order in which they are stored; files sorted by name come as VH, VV',
        )
    elif not RATIO[0] <= mean <= RATIO[1] and (vv != vh)[land].any():
        yield Finding(
            's1.ratio',
            'warning',
            'Sentinel-1: VV and VH do not stand in the relation that land has',
            evidence,
            'check the conversion to dB (10 log10 of power, not the natural logarithm) and the band names',
        )


def _levels(sensor: Sensor, units: np.ndarray) -> Iterator[Finding]:
    values = np.where(units[:, None] == 'dB', medians(sensor, units), np.nan)
    for index, band in enumerate(sensor.declared.bands):
        column = values[np.isfinite(values[:, index]), index]
        low, high = USUAL.get(band, (-35.0, 0.0))
        if len(column) and not low <= np.median(column) <= high:
            yield Finding(
                's1.level',
                'warning' if len(column) >= FEW else 'note',
                f'Sentinel-1: the level of {band} is unusual',
                f'median over {len(column):,} patches {np.median(column):.1f} dB; land: {low:g} to {high:g}',
                'check calibration and conversion to dB; a sample of open water alone may look so too',
                needs='64 patches',
            )
        elif (bright := column > BRIGHTEST.get(band, 5.0)).any():
            yield Finding(
                's1.level',
                'warning',
                f'Sentinel-1: {band} is brighter in some patches than any ground',
                f'{share(bright.sum(), len(column))} patches have medians up to {column.max():.1f} dB',
                'check the conversion to dB (10 log10 of power, not the natural logarithm)',
            )
    scale, offset = sensor.declared.linear()
    lowest = np.where(units[:, None] == 'dB', sensor.summary.minimum * scale + offset, 0)
    deep = np.any(lowest < FLOOR, axis=1)
    if deep.any():
        yield Finding(
            's1.floor',
            'warning',
            'Sentinel-1: values far below the noise of the instrument',
            f'{share(deep.sum(), len(deep))} patches go down to {lowest.min():.1f} dB',
            'the logarithm of zero-filled power, most likely; declare that value as nodata, or mask such '
            'pixels',
        )


def _calibration(sensor: Sensor) -> Iterator[Finding]:
    calibration = sensor.declared.product.calibration
    yield Finding(
        's1.calibration',
        'cannot tell',
        'Sentinel-1: sigma0, gamma0 or beta0; terrain flattening; speckle filter',
        f'declared: {calibration}; pixels cannot confirm it'
        if calibration
        else 'not declared, and they differ by less than land cover does',
        '' if calibration else 'look it up where the images come from and state it in the contract',
        needs='metadata',
    )


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
        # No backscatter is below -100 dB: what is wrapped further down counts in hundredths.
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
