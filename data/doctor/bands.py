"""Checks of the band list: absent and additional bands, the same band twice, bands out of order."""

from collections.abc import Iterator, Mapping

import numpy as np

from fusmae_jax.sensors import SENSORS

from .evidence import Evidence, Sensor
from .findings import FEW, Finding, by_amount, share
from .optical import scale_of
from .summary import usable

L2A = tuple(SENSORS['s2'].bands)
L1C = (*L2A[:10], 'B10', *L2A[10:])  # B10, cirrus, lies between B09 and B11
TITLES = {'s1': 'Sentinel-1', 's2': 'Sentinel-2'}
# B10 sees no ground: some tens of digital numbers, a few hundred under cirrus.
CIRRUS = 0.25  # of the median of the other bands
CLEARLY = 0.9  # times the misfit of a mean spectrum: better than the declared order
SAME = 0.99999  # correlation of two images from which on they are one


def check(evidence: Evidence) -> Iterator[Finding]:
    """All findings about which bands there are and where."""
    for sensor in evidence.sensors.values():
        yield from _known(sensor)
        if sensor.images:
            yield from _dtypes(sensor)
            yield from _absent(sensor)
            yield from _twice(sensor)
    optical = evidence.sensors.get('s2')
    if optical is not None and optical.images and optical.summary.usable.any():
        yield from _cirrus(optical)
        yield from _order(optical)


def _known(sensor: Sensor) -> Iterator[Finding]:
    bands, title = sensor.declared.bands, TITLES[sensor.modality]
    valid = ('VV', 'VH', 'HH', 'HV') if sensor.modality == 's1' else L1C
    code = f'{sensor.modality}.bands'
    if odd := [band for band in bands if band not in valid]:
        yield Finding(
            code,
            'warning',
            f'{title}: bands of unknown names',
            f'{", ".join(odd)}; known: {", ".join(valid)}',
            'give the bands their names, in the order in which they are stored',
            needs='metadata',
        )
    if sensor.modality == 's2' and not odd:
        yield from _gaps(bands)
        yield from _cirrus_listed(bands, sensor.declared.product.level)
        if bands[-1:] == ('B8A',):
            yield Finding(
                code,
                'note',
                'Sentinel-2: B8A is the last band',
                f'declared order: {", ".join(bands)}',
                'some data sets are stored so; take bands by name',
                needs='metadata',
            )


def _gaps(bands: tuple[str, ...]) -> Iterator[Finding]:
    absent = [band for band in L2A if band not in bands]
    if absent:
        yield Finding(
            's2.bands',
            # Many choose to work without the 60 m bands, or with a few; a gap in a full list is no choice.
            'warning' if len(bands) >= 8 and set(absent) - {'B01', 'B09'} else 'note',
            'Sentinel-2: bands are missing',
            f'{len(bands)} bands, without {", ".join(absent)}',
            'choose what the model gets in their place (absent bands: error, mean or drop), or take the '
            'full product',
            needs='metadata',
        )


def _cirrus_listed(bands: tuple[str, ...], level: str) -> Iterator[Finding]:
    if 'B10' in bands:
        wrong = level == 'L2A'
        yield Finding(
            's2.bands',
            'error' if wrong else 'note',
            f'Sentinel-2: {len(bands)} bands, B10 (cirrus) among them',
            'L2A has no B10: either the level is L1C, or the band is another one' if wrong else 'as in L1C',
            'take bands by name; drop B10 for a model of 12 bands',
            needs='metadata',
        )
    elif level == 'L1C' and len(bands) == 12:
        yield Finding(
            's2.bands',
            'warning',
            'Sentinel-2: 12 bands, but L1C has 13',
            'B10 is not among them',
            'check that the level is L1C, and that dropping B10 shifted no band names',
            needs='metadata',
        )


def _dtypes(sensor: Sensor) -> Iterator[Finding]:
    expected = sensor.declared.dtype
    stored = dict(zip(sensor.declared.bands, sensor.summary.dtypes))
    other = [band for band, dtype in stored.items() if dtype and dtype != expected.get(band, dtype)]
    if other:
        yield Finding(
            f'{sensor.modality}.dtype',
            'warning',
            f'{TITLES[sensor.modality]}: values are stored in another type than published',
            ', '.join(f'{band} {stored[band]} for {expected[band]}' for band in other[:4]),
            'someone has written these images anew; take the original ones, or check what was done to them',
            needs='metadata',
        )


def _absent(sensor: Sensor) -> Iterator[Finding]:
    present = sensor.summary.present
    gaps = ~present & np.any(present, axis=0) & np.any(present, axis=1, keepdims=True)
    never = ~np.any(present, axis=0)
    if gaps.any() or never.any():
        columns = np.any(gaps, axis=0) | never
        names = [band for band, hit in zip(sensor.declared.bands, columns) if hit]
        lacking = np.any(~present[:, columns], axis=1)
        yield Finding(
            f'{sensor.modality}.absent',
            'error',
            f'{TITLES[sensor.modality]}: declared bands are not there',
            f'{", ".join(names)}: absent from {share(lacking.sum(), len(present))} patches',
            'unpack those patches again, or take the band off the list',
        )


def _twice(sensor: Sensor) -> Iterator[Finding]:
    bands = sensor.declared.bands
    counts: dict[tuple[str, str], int] = {}
    for image in sensor.images:
        for pair in _same(image, bands):
            counts[pair] = counts.get(pair, 0) + 1
    for (left, right), count in counts.items():
        yield Finding(
            f'{sensor.modality}.duplicate',
            'error',
            f'{TITLES[sensor.modality]}: {left} and {right} are the same image',
            f'equal, or equal up to scale and offset, in {share(count, len(sensor.images))} patches',
            f'one of the two is not what its name says; take {left} and {right} from the original data again',
        )


def _same(image: Mapping[str, np.ndarray], bands: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Pairs of bands whose images are the same up to scale and offset.

    Neighbouring bands correlate to 0.99, two measurements never to 0.99999: their noise differs. Rounding and
    float32 keep duplicates above that. Constant images are another finding.
    """
    shapes: dict[tuple[int, ...], list[str]] = {}
    for band in bands:
        if band in image:
            shapes.setdefault(image[band].shape, []).append(band)
    for names in shapes.values():
        # Some of the pixels decide for most pairs; only candidates are compared in full.
        alike = _correlations([image[name].reshape(-1)[::7] for name in names]) > SAME
        for i, j in zip(*np.nonzero(np.triu(alike, 1))):
            if _correlations([image[names[i]].reshape(-1), image[names[j]].reshape(-1)])[0, 1] > SAME:
                yield names[i], names[j]


def _correlations(pixels: list[np.ndarray]) -> np.ndarray:
    """Correlation of each image with each other one, where all are usable; 0 without any variation."""
    valid = np.logical_and.reduce([usable(values) for values in pixels])
    # In float64: SAME differs from 1 by little more than sums in float32 are off.
    table = np.stack([values[valid] for values in pixels]).astype(np.float64)
    if table.shape[1] < 3:
        return np.zeros((len(table), len(table)))
    table = table - table.mean(1, keepdims=True)
    norm = np.sqrt((table**2).sum(1))
    scale = norm[:, None] * norm
    return np.divide(table @ table.T, scale, out=np.zeros_like(scale), where=scale > 0)


def _levels(sensor: Sensor) -> np.ndarray:
    """Mean of each band over the sample, in physical units; NaN without a usable pixel."""
    scale, offset = sensor.declared.linear()
    pooled = [sensor.summary.pooled(i) for i in range(len(sensor.declared.bands))]
    return np.array([values.mean() if values.size else np.nan for values in pooled]) * scale + offset


def _cirrus(sensor: Sensor) -> Iterator[Finding]:
    bands, levels = sensor.declared.bands, _levels(sensor)
    if 'B10' not in bands or len(bands) < 3 or np.isnan(levels).all():
        return
    # An offset of +1000 would hide how dark B10 is; that offset is another finding.
    base = 1000.0 if np.nanmin(levels) > 990 else 0.0
    level = levels[sensor.band('B10')] - base
    others = float(np.nanmedian(np.delete(levels, sensor.band('B10')))) - base
    if level > CIRRUS * others:
        yield Finding(
            's2.order',
            by_amount(sensor.summary.patches, 'error'),
            'Sentinel-2: the band called B10 is another one',
            f'its mean is {level:.4g}, the median of the others {others:.4g}; B10 sees no ground and is '
            'nearly black',
            'check the band order: B01 to B08, B8A, B09, B10, B11, B12 in most products, B8A last in some',
            needs='64 patches',
        )


def _order(sensor: Sensor) -> Iterator[Finding]:
    """Whether the bands lie in another order than declared."""
    bands, patches = sensor.declared.bands, sensor.summary.patches
    if not {'B08', 'B8A', 'B11', 'B12'} <= set(bands) or ('B10' in bands and len(bands) < 13):
        return
    if patches < FEW:
        yield Finding(
            's2.order',
            'cannot tell',
            'Sentinel-2: whether the bands are in the declared order',
            f'{patches:,} patches; it shows in the spectrum of a larger sample',
            'compare with band names in the files, or with the source of the data',
            needs='64 patches',
        )
        return
    levels = _levels(sensor)
    if scale_of(sensor) not in ('DN', '0..1', '8 bit') or not (levels > 0).all():
        return
    for words, order, evidence in _by_spectrum(sensor, np.log(levels)):
        yield Finding(
            's2.order',
            by_amount(patches, 'error'),
            f'Sentinel-2: the bands are in another order than declared ({words})',
            f'{evidence} ({patches:,} patches)',
            f'declare the bands in the order in which they are stored: {", ".join(order)}',
            needs='64 patches',
        )


Guess = tuple[str, tuple[str, ...], str]  # in words; the bands in the order in which they lie; why


def _by_spectrum(sensor: Sensor, levels: np.ndarray) -> Iterator[Guess]:
    """B8A last, or not: the mean spectrum fits that of BigEarthNet-MM better, and like bands vary alike."""
    bands = sensor.declared.bands
    last = (*(b for b in bands if b != 'B8A'), 'B8A')
    natural = tuple(b for b in L1C if b in bands)
    misfit, agreement = _misfit(bands, levels), _agreement(sensor, bands)
    for words, order in (('B8A last', last), ('B8A between B08 and B09', natural)):
        other = _misfit(order, levels)
        # Both must speak for it: the land of one sample may have another spectrum.
        if order != bands and other < CLEARLY * misfit and agreement < _agreement(sensor, order):
            evidence = f'the mean log spectrum is {misfit:.2f} off that of land, in that order {other:.2f}'
            yield words, order, evidence


def _misfit(names: tuple[str, ...], levels: np.ndarray) -> float:
    """Deviation of a mean log spectrum from that of BigEarthNet-MM, whatever its brightness."""
    known = [i for i, name in enumerate(names) if name in SENSORS['s2'].bands]
    difference = levels[known] - np.log([SENSORS['s2'].bands[names[i]].mean for i in known])
    return float((difference - difference.mean()).std())


def _agreement(sensor: Sensor, names: tuple[str, ...]) -> float:
    """How alike the bands that see alike vary from patch to patch: a sum of correlations."""
    pairs = (('B08', 'B8A'), ('B07', 'B8A'), ('B11', 'B12'), ('B04', 'B05'), ('B01', 'B02'))
    return sum(_alike(sensor, names, *pair) for pair in pairs if set(pair) <= set(names))


def _alike(sensor: Sensor, names: tuple[str, ...], left: str, right: str) -> float:
    """Correlation of the medians of two bands over patches, in logarithms; 0 if there is none."""
    scale, offset = sensor.declared.linear()
    medians = sensor.summary.p50 * scale + offset
    pair = np.log(np.maximum(medians[:, [names.index(left), names.index(right)]], 1e-6))
    pair = pair[np.isfinite(pair).all(1)]
    return float(np.corrcoef(pair.T)[0, 1]) if len(pair) > 2 and pair.std(0).all() else 0.0
