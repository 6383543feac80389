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
HEAP = (950.0, 1600.0)  # where the darkest pixels of patches lie with the offset
GAP = 600.0  # from here to HEAP next to nothing lies if it is in some patches only
APART = (
    'take the 1000 off the newer ones in signed integers; or convert the two apart and declare offset=-1000 '
    'for the newer'
)
REPROCESSED = 9000  # numbers such as N9999 are those of a processing by users


def check(evidence: Evidence) -> Iterator[Finding]:
    """Offsets that are there, that are there twice, and that only some patches have."""
    sensor = evidence.sensors.get('s2')
    if sensor is None:
        return
    factor = FACTORS.get(scale_of(sensor)) if sensor.summary.usable.any() else None
    mixed = list(_mixed(sensor, factor)) if factor else []
    if not mixed:
        yield from _baselines(sensor, factor)
    yield from mixed or (_values(sensor, factor) if factor else ())


def _newer(sensor: Sensor) -> list[int]:
    return [b for b in sensor.declared.baselines if FIRST_WITH_OFFSET <= b < REPROCESSED]


def _baselines(sensor: Sensor, factor: float | None) -> Iterator[Finding]:
    newer = _newer(sensor)
    older = [b for b in sensor.declared.baselines if b < FIRST_WITH_OFFSET]
    if not newer or not older:
        return
    evidence = (
        f'{older[0] / 100:05.2f} to {newer[-1] / 100:05.2f} by names and tags; the newer have an offset'
    )
    dark = darkest(sensor, factor) if factor else np.empty(0)
    # Harmonised products keep their names, and lose the offset.
    off = np.isfinite(dark).sum() >= FEW and not (dark >= HEAP[0]).any()
    yield Finding(
        's2.offset_mixed',
        'note' if off else 'error',
        'Sentinel-2: products from before and after processing baseline 04.00 are mixed'
        + (', but the offset is off' if off else ''),
        evidence + ('; no patch is as bright as an offset would make it' if off else ''),
        '' if off else APART,
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
    darkest pixels of its patches crowd right above 1000. Where an offset is declared and taken off all, those
    without it lie 1000 too low.
    """
    low = darkest(sensor, factor)
    low = low[np.isfinite(low)]
    for taken in (0.0, OFFSET):
        heap, gap, rest, beyond = _heaps(low + taken)
        declared = f', after the declared {-taken:g}' if taken else ''
        if heap >= 3 and heap > 3 * (gap + beyond) and rest and (not taken or low.min() < SUBTRACTED):
            yield Finding(
                's2.offset_mixed',
                'error' if len(low) >= FEW else 'warning',
                'Sentinel-2: patches with and without the offset of +1000 are mixed',
                f'the darkest pixels of {share(heap, len(low))} patches lie right above {1000 - taken:g}, of '
                f'{rest} below {GAP - taken:g}, of {gap} between{declared}',
                APART,
                needs='64 patches',
            )
            return


def _heaps(low: np.ndarray) -> tuple[int, int, int, int]:
    """How many patches lie in HEAP, in the gap below it, below that, and beyond."""
    heap = (low >= HEAP[0]) & (low < HEAP[1])
    gap = (low >= GAP) & (low < HEAP[0])
    return int(heap.sum()), int(gap.sum()), int((low < GAP).sum()), int((low >= HEAP[1]).sum())


def darkest(sensor: Sensor, factor: float) -> np.ndarray:
    """Smallest first percentile over the bands of each patch, physical; NaN without pixels."""
    scale, offset = sensor.declared.linear()
    values = np.where(sensor.summary.usable > 0, sensor.summary.p01, np.nan) * scale + offset
    return np.fmin.reduce(values * factor, axis=1, initial=np.nan)
