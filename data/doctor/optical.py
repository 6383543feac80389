"""Checks of Sentinel-2: scale, wrapped numbers, L1C for L2A, snow and cloud, and the offset.

The +1000 of processing baseline 04.00 (25 January 2022), in the values or not.

The darkest percent of each band over the whole sample decides. Water, shadow and dense forest make some band
dark everywhere on Earth: in reflectance x 10,000 the smallest of these percentiles is below about 400 for
any sample of land, and 900 or more only with the offset. One band alone says little: blue is brighter than
that in L1C, infrared over a sample without water. But for B10, if it is there: it sees no ground and is
nearly black everywhere, so it decides patch by patch.
"""

import itertools
from collections.abc import Iterator

import numpy as np

from fusmae_jax.input.plausible import HAZE, OFFSET_LIMIT, SUBTRACTED

from . import own_range
from .evidence import Evidence, Sensor
from .findings import FEW, Finding, Severity, by_amount, share
from .summary import WRAPPED

FACTORS = {'DN': 1.0, '0..1': 10_000.0}  # scale -> factor to reflectance x 10,000
# Light that the air scatters back, x 10,000: 1000 in B01, 700 in B02, 150 in B04, 10 in B11 at sea level.
SNOW_NDSI, SNOW_NIR = 0.42, 1100.0
CLOUD_BLUE, CLOUD_SWIR = 2500.0, 1500.0  # thick cloud is bright in both, snow is dark in the second


def check(evidence: Evidence) -> Iterator[Finding]:
    """All findings about the values of Sentinel-2."""
    sensor = evidence.sensors.get('s2')
    if sensor is None or not sensor.summary.usable.any():
        return
    scale = scale_of(sensor)
    yield from _scale(sensor, scale)
    yield from _wrapped(sensor)
    if scale in FACTORS:
        yield from _level(sensor, FACTORS[scale])
        yield from _weather(sensor, FACTORS[scale])


SCALES = {
    '0..1': (
        'reflectance in 0..1, not x 10,000',
        "declare unit='reflectance' in the contract, or multiply by 10,000",
    ),
    'min-max': (
        'each band is scaled to 0..1 (or 0..255) by its own extremes: no reflectance, and no unit at all',
        'take the original data: what is left depends on the extremes of each image, and neither bands nor '
        'images compare any longer',
    ),
    '8 bit': (
        'scaled to 8 bits',
        'take the original 16-bit data; if the range is known, declare scale and offset',
    ),
    'normalised': (
        'already normalised (mean near 0, deviation near 1)',
        'undo it; the pipeline normalises with the statistics of the contract and would do so twice',
    ),
    'unknown': (
        'in no unit that Sentinel-2 comes in',
        'find out how the values were made; then declare the unit',
    ),
}


def scale_of(sensor: Sensor) -> str:
    """'DN' (reflectance x 10,000) or a key of SCALES, from the physical values of the whole sample."""
    summary = sensor.summary
    scale, offset = sensor.declared.linear()
    ok = summary.usable > 0
    middle, high = ((column * scale + offset)[ok] for column in (summary.p50, summary.maximum))
    bright = (summary.p99 * scale + offset)[ok].max()
    whole = summary.whole[ok].min() > 0.99
    # Before the units: what is scaled to its own range looks like reflectance, or like 8 bits.
    if 2 * own_range.scaled(sensor).sum() > ok.any(axis=1).sum():
        return 'min-max'
    if all(dtype in ('uint8', '') for dtype in summary.dtypes):
        return '8 bit'
    if (summary.minimum * scale + offset)[ok].min() < 0 and np.abs(middle).max() < 10 and bright < 15:
        return 'normalised'
    if bright <= 2.5 and not whole:
        return '0..1'
    # Dark water alone may stay below 256, so this wants a sample.
    if high.max() <= 255 and (summary.patches >= FEW or not whole or (high == 255).any()):
        return '8 bit'
    return 'DN' if bright < 40_000 or summary.wrapped.any() else 'unknown'


def _scale(sensor: Sensor, scale: str) -> Iterator[Finding]:
    expected = {'reflectance': '0..1'}.get(sensor.declared.unit, sensor.declared.unit)
    summary = sensor.summary
    if scale != (expected or 'DN'):
        words, remedy = SCALES.get(
            scale, ('digital numbers, not reflectance', "declare unit='DN' in the contract")
        )
        ok = summary.usable > 0
        sign = f'; {own_range.evidence(sensor)}' if scale == 'min-max' else ''
        yield Finding(
            's2.scale',
            'error' if expected or scale == 'min-max' else 'warning',
            f'Sentinel-2: {words}',
            f'values from {summary.minimum[ok].min():.4g} to {summary.maximum[ok].max():.4g}, medians '
            f'{summary.p50[ok].min():.4g} to {summary.p50[ok].max():.4g} '
            f'({", ".join(sorted(set(summary.dtypes) - {""}))}){sign}',
            remedy,
        )
        return
    high = np.where(summary.usable > 0, summary.p99, -np.inf).max(1)
    small = (high > 0) & (high <= 2.5) & (scale == 'DN')
    if own_range.scaled(sensor).any():
        yield Finding(
            's2.scale',
            'error',
            f'Sentinel-2: in some patches {SCALES["min-max"][0]}',
            own_range.evidence(sensor),
            SCALES['min-max'][1],
        )
    elif small.any():
        yield Finding(
            's2.scale',
            'error',
            'Sentinel-2: some patches have another scale',
            f'{share(small.sum(), len(small))} patches end at {high[small].max():.3g}, the others reach '
            f'{high.max():.4g}',
            'bring all patches to one scale',
        )


def _wrapped(sensor: Sensor) -> Iterator[Finding]:
    counts = sensor.summary.wrapped * np.array(
        [d in ('uint16', 'int32', 'uint32') for d in sensor.summary.dtypes]
    )
    if counts.any():
        bands = [band for band, some in zip(sensor.declared.bands, counts.any(0)) if some]
        yield Finding(
            's2.wrapped',
            'error',
            'Sentinel-2: negative numbers wrapped into unsigned integers',
            f'{share(counts.sum(), sensor.summary.pixels.sum())} pixels in '
            f'{share(counts.any(1).sum(), len(counts))} patches between {WRAPPED:,} and 65,534, bands '
            f'{", ".join(bands)}; no surface is six times as bright as a white one',
            'subtract the offset in signed integers or floats and clip at 0; take the original data again',
        )


def pooled_dark(sensor: Sensor, factor: float) -> dict[str, float]:
    """band -> first percentile over all patches, in physical units."""
    scale, offset = sensor.declared.linear()
    result = {}
    for index, band in enumerate(sensor.declared.bands):
        values = sensor.summary.pooled(index)
        if values.size:
            result[band] = float(np.percentile(values, 1) * scale[index] + offset[index]) * factor
    return result


def _level(sensor: Sensor, factor: float) -> Iterator[Finding]:
    dark, patches = pooled_dark(sensor, factor), sensor.summary.patches
    declared = sensor.declared.product.level
    far = next((band for band in ('B11', 'B12', 'B04') if band in dark), '')
    if not far or not {'B01', 'B02'} & dark.keys():
        return
    blue = 'B01' if 'B01' in dark else 'B02'
    # B02 gets about two thirds of the scattered light of B01, and so of the limit.
    haze, limit = dark[blue] - dark[far], HAZE if blue == 'B01' else HAZE / 1.5
    fall = [dark[band] for band in ('B01', 'B02', 'B03', 'B04') if band in dark]
    # Air scatters ever less from blue to red; bright ground does not fall off like that.
    falling = all(left > right for left, right in itertools.pairwise(fall))
    level = 'L1C' if haze >= limit and falling else 'L2A'
    evidence = (
        f'dark pixels: {blue} {dark[blue]:.0f}, {far} {dark[far]:.0f}; air adds {limit:.0f} or more '
        f'({patches:,} patches)'
    )
    if patches < FEW:
        yield Finding(
            's2.level',
            'cannot tell',
            'Sentinel-2: L1C or L2A',
            f'{patches:,} patches; it shows in the darkest pixels of a larger sample. {evidence}',
            f'declared: {declared}' if declared else 'look at the product names (MSIL1C, MSIL2A)',
            needs='64 patches',
        )
    elif declared and level != declared:
        yield Finding(
            's2.level',
            by_amount(patches, 'error'),
            f'Sentinel-2: declared as {declared}, but it looks like {level} ' + _LOOKS[level],
            evidence,
            f'declare level={level!r}, or take the {declared} products',
            needs='64 patches',
        )
    elif not declared:
        yield Finding(
            's2.level',
            'note',
            f'Sentinel-2: looks like {level} {_LOOKS[level]}',
            evidence,
            'state the level in the contract',
            needs='64 patches',
        )


_LOOKS = {'L1C': '(top of the atmosphere)', 'L2A': '(surface reflectance)'}


def _weather(sensor: Sensor, factor: float) -> Iterator[Finding]:
    scale, offset = sensor.declared.linear()
    needed = {'B02', 'B03', 'B08', 'B11'}
    if not needed <= set(sensor.declared.bands):
        return
    medians = sensor.summary.p50 * scale + offset
    blue, green, infrared, short = (medians[:, sensor.band(b)] * factor for b in ('B02', 'B03', 'B08', 'B11'))
    with np.errstate(invalid='ignore', divide='ignore'):
        snow = ((green - short) / (green + short) > SNOW_NDSI) & (infrared > SNOW_NIR)
        cloud = (blue > CLOUD_BLUE) & (short > CLOUD_SWIR) & ~snow
    patches = len(medians)
    most = max(snow.sum(), cloud.sum()) > 0.5 * patches and patches >= FEW
    yield Finding(
        's2.weather',
        'warning' if most else 'note',
        'Sentinel-2: most patches lie under snow or cloud' if most else 'Sentinel-2: snow and cloud',
        f'mostly snow: {share(snow.sum(), patches)} patches; mostly thick cloud: '
        f'{share(cloud.sum(), patches)}',
        'leave them out with the lists of the archive, if it has any' if snow.any() or cloud.any() else '',
    )


OFFSET = 1000.0
FIRST_WITH_OFFSET = 400  # processing baseline 04.00
HEAP = (950.0, 1600.0)  # where the darkest pixels of patches lie with the offset
OFFSET_GAP = 600.0  # from here to HEAP next to nothing lies if it is in some patches only
APART = (
    'take the 1000 off the newer ones in signed integers; or convert the two apart and declare offset=-1000 '
    'for the newer'
)
REPROCESSED = 9000  # numbers such as N9999 are those of a processing by users


def check_offset(evidence: Evidence) -> Iterator[Finding]:
    """Offsets that are there, that are there twice, and that only some patches have."""
    sensor = evidence.sensors.get('s2')
    if sensor is None:
        return
    factor = FACTORS.get(scale_of(sensor)) if sensor.summary.usable.any() else None
    # The mixture first: the lowest value of all does not show it, and names may be older than the values.
    mixed = list(_mixed_offsets(sensor, factor)) if factor else []
    if not mixed:
        yield from _baselines(sensor, factor)
    yield from mixed or (_offset_values(sensor, factor) if factor else ())


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


def _offset_values(sensor: Sensor, factor: float) -> Iterator[Finding]:
    dark = pooled_dark(sensor, factor)
    black = dark.pop('B10', 0.0) >= OFFSET_LIMIT
    if not dark:
        return
    band = min(dark, key=dark.__getitem__)
    lowest, patches = dark[band], sensor.summary.patches
    evidence = (
        f'the smallest first percentile over the bands is {lowest:.0f} (in {band}, {patches:,} patches); '
        f'without offset it stays below {OFFSET_LIMIT:.0f}'
    )
    if newer := _newer(sensor):
        evidence += f'; names say baseline {newer[0] / 100:05.2f}'
    if lowest >= OFFSET_LIMIT and patches < FEW and not black:
        yield _undecided(evidence, bool(newer))
    elif lowest >= OFFSET_LIMIT + OFFSET or lowest < SUBTRACTED:
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
    elif lowest >= OFFSET_LIMIT:
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


def _mixed_offsets(sensor: Sensor, factor: float) -> Iterator[Finding]:
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
                f'{rest} below {OFFSET_GAP - taken:g}, of {gap} between{declared}',
                APART,
                needs='64 patches',
            )
            return


def _heaps(low: np.ndarray) -> tuple[int, int, int, int]:
    """How many patches lie in HEAP, in the gap below it, below that, and beyond."""
    heap = (low >= HEAP[0]) & (low < HEAP[1])
    gap = (low >= OFFSET_GAP) & (low < HEAP[0])
    return int(heap.sum()), int(gap.sum()), int((low < OFFSET_GAP).sum()), int((low >= HEAP[1]).sum())


def darkest(sensor: Sensor, factor: float) -> np.ndarray:
    """Smallest first percentile over the bands of each patch, physical; NaN without pixels."""
    scale, offset = sensor.declared.linear()
    values = np.where(sensor.summary.usable > 0, sensor.summary.p01, np.nan) * scale + offset
    # fmin passes over NaN: a band without pixels leaves the decision to the others.
    return np.fmin.reduce(values * factor, axis=1, initial=np.nan)
