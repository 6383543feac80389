"""Checks of Sentinel-1: the unit, integers, the order of VV and VH, levels that no land has."""

from collections.abc import Iterator

import numpy as np

from data.doctor import own_range
from data.doctor.backscatter import UNITS, Unit, medians, units_of
from data.doctor.evidence import Evidence, Sensor
from data.doctor.findings import FEW, Finding, Severity, share

# Medians of a sample of land outside these are not sigma0 or gamma0 in dB, whatever the season.
USUAL = {'VV': (-22.0, -3.0), 'VH': (-30.0, -8.5)}
BRIGHTEST = {'VV': 0.0, 'VH': -6.5}  # of the median of one patch; cities end some dB below
WATER = -18.0  # dB; a patch whose stronger polarisation lies below is mostly water, or shadow
RATIO = (2.0, 15.0)  # dB, VV - VH over land: 4..9 in practice
FLOOR = -60.0  # dB; the noise of the instrument lies near -25, its least speckle near -50


def check(evidence: Evidence) -> Iterator[Finding]:
    """All findings about the values of Sentinel-1."""
    sensor = evidence.sensors.get('s1')
    if sensor is None:
        return
    yield from _calibration(sensor)
    if not sensor.summary.usable.any():
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
    said = sensor.declared.product.calibration
    yield Finding(
        's1.calibration',
        'cannot tell',
        'Sentinel-1: sigma0, gamma0 or beta0; terrain flattening; speckle filter',
        f'declared: {said}; pixels cannot confirm it'
        if said
        else 'not declared, and they differ by less than land cover does',
        '' if said else 'look it up where the images come from and state it in the contract',
        needs='metadata',
    )
