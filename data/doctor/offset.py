"""The +1000 of processing baseline 04.00 (25 January 2022), in the values or not.

The darkest percent of each band over the whole sample decides. Water, shadow and dense forest make some band
dark everywhere on Earth: in reflectance x 10,000 the smallest of these percentiles is below about 400 for
any sample of land, and 900 or more only with the offset. One band alone says little: blue is brighter than
that in L1C, infrared over a sample without water. But for B10, if it is there: it sees no ground and is
nearly black everywhere, so it decides patch by patch.
"""

from collections.abc import Iterator

import numpy as np

from data.doctor.evidence import Evidence, Sensor
from data.doctor.findings import FEW, Finding, Severity, by_amount, share
from data.doctor.optical import FACTORS, pooled_dark, scale_of

OFFSET = 1000.0
LIMIT = 900.0  # of the smallest first percentile over the bands; see above
SUBTRACTED = -300.0  # darker on average than any correction of the atmosphere leaves dark pixels
FIRST_WITH_OFFSET = 400  # processing baseline 04.00
REPROCESSED = 9000  # numbers such as N9999 are those of a processing by users


def check(evidence: Evidence) -> Iterator[Finding]:
    """Offsets that are there, that are there twice, and that only some patches have."""
    sensor = evidence.sensors.get('s2')
    if sensor is None:
        return
    yield from _baselines(sensor)
    if sensor.summary.usable.any() and (factor := FACTORS.get(scale_of(sensor))):
        yield from _values(sensor, factor)


def _newer(sensor: Sensor) -> list[int]:
    return [b for b in sensor.declared.baselines if FIRST_WITH_OFFSET <= b < REPROCESSED]


def _baselines(sensor: Sensor) -> Iterator[Finding]:
    newer = _newer(sensor)
    older = [b for b in sensor.declared.baselines if b < FIRST_WITH_OFFSET]
    if newer and older:
        yield Finding(
            's2.offset_mixed',
            'warning',
            'Sentinel-2: products from before and after processing baseline 04.00 are mixed',
            f'{older[0] / 100:05.2f} to {newer[-1] / 100:05.2f} by their names; the newer have an offset',
            'subtract 1000 from the newer ones in signed integers, or convert the two apart',
            needs='metadata',
        )


def _values(sensor: Sensor, factor: float) -> Iterator[Finding]:
    dark = pooled_dark(sensor, factor)
    black = dark.pop('B10', 0.0) >= LIMIT
    if not dark:
        return
    band = min(dark, key=dark.__getitem__)
    lowest, patches = dark[band], sensor.summary.patches
    evidence = (
        f'the smallest first percentile over the bands is {lowest:.0f} (in {band}, {patches:,} patches); '
        f'without offset it stays below {LIMIT:.0f}'
    )
    if newer := _newer(sensor):
        evidence += f'; names say baseline {newer[0] / 100:05.2f}'
    if lowest >= LIMIT and patches < FEW and not black:
        yield _undecided(evidence, bool(newer))
    elif lowest >= LIMIT + OFFSET or lowest < SUBTRACTED:
        added = lowest > 0
        yield Finding(
            's2.offset_twice',
            'error' if black else by_amount(patches, 'error'),
            'Sentinel-2: the offset of +1000 was added twice'
            if added
            else 'Sentinel-2: an offset was subtracted that the values do not have',
            evidence,
            'take the original data again, or declare offset=-2000' if added else 'declare offset=0',
            needs='64 patches',
        )
    elif lowest >= LIMIT:
        full: Severity = 'error' if sensor.declared.unit else 'warning'
        yield Finding(
            's2.offset',
            full if black else by_amount(patches, full),
            'Sentinel-2: the offset of +1000 (processing baseline 04.00 and later) is in the values',
            evidence,
            'declare offset=-1000 in the contract, or subtract 1000 in signed integers and clip at 0',
            needs='64 patches',
        )
    else:
        yield from _mixed(sensor, factor)


def _undecided(evidence: str, newer: bool) -> Finding:
    return Finding(
        's2.offset',
        'warning' if newer else 'cannot tell',
        'Sentinel-2: whether the offset of +1000 (processing baseline 04.00 and later) is in the values',
        f'{evidence}; but so few patches may be bright for once (cloud, snow, desert)',
        'look for the processing baseline (N0400 and later) in product names or metadata; if it is in '
        'there, declare offset=-1000',
        needs='64 patches',
    )


def _mixed(sensor: Sensor, factor: float) -> Iterator[Finding]:
    """Two heaps of patches, 1000 apart, with next to nothing between them.

    Bright scenes (snow, desert, cloud) fill the gap and the range above it evenly, an offset does not: the
    darkest pixels of its patches crowd right above 1000.
    """
    low = darkest(sensor, factor)
    low = low[np.isfinite(low)]
    heap = ((low >= 0.95 * OFFSET) & (low < 1.6 * OFFSET)).sum()
    gap = ((low >= 0.6 * OFFSET) & (low < 0.95 * OFFSET)).sum()
    beyond = (low >= 1.6 * OFFSET).sum()
    rest = (low < 0.6 * OFFSET).sum()
    if heap >= 3 and heap > 3 * (gap + beyond) and rest:
        yield Finding(
            's2.offset_mixed',
            by_amount(len(low), 'error'),
            'Sentinel-2: patches with and without the offset of +1000 are mixed',
            f'the darkest pixels of {share(heap, len(low))} patches lie right above 1000, of {rest} below '
            f'600, of {gap} between',
            'split the set at the processing baseline (25 January 2022) and subtract the offset from the '
            'newer part',
            needs='64 patches',
        )


def darkest(sensor: Sensor, factor: float) -> np.ndarray:
    """Smallest first percentile over the bands of each patch, physical; NaN without pixels."""
    scale, offset = sensor.declared.linear()
    values = np.where(sensor.summary.usable > 0, sensor.summary.p01, np.nan) * scale + offset
    return np.fmin.reduce(values * factor, axis=1, initial=np.nan)
