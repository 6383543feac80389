"""Checks of both sensors, pixel by pixel: nothing where a measurement should be, and constant images.

Pixels of exactly 0: holes, or the brightest scatterers of Sentinel-1 where dB were clipped at 0.
"""

from collections.abc import Iterator

import numpy as np
from scipy import ndimage

from fusmae_jax.sensors import SENSORS

from .evidence import Evidence, Sensor
from .findings import Finding, Severity, share
from .own_range import scaled
from .radar import decibel, units_of
from .summary import usable

MOST = 0.25  # from this share of lost pixels on, a declared nodata is worth a warning
# Calm water lies near -25 dB in VV; the noise that is left along the edge of a scene lies far lower.
DARK, BORDER_SHARE = -32.0, 0.01


def check(evidence: Evidence) -> Iterator[Finding]:
    """NaN, inf, fills, zeros, noisy borders, saturation and constant images of every sensor."""
    for sensor in evidence.sensors.values():
        if sensor.images:
            yield from _not_finite(sensor)
            yield from _fills(sensor)
            yield from check_zeros(sensor)
            yield from _constant(sensor)
            yield from _clipped(sensor)
            if sensor.modality == 's1':
                yield from _noisy_border(sensor)


def _not_finite(sensor: Sensor) -> Iterator[Finding]:
    summary, title = sensor.summary, TITLES[sensor.modality]
    declared = any(np.isnan(value) for value in sensor.declared.nodata)
    for name, counts in (('nan', summary.nan), ('inf', summary.inf)):
        if not counts.any():
            continue
        # NaN may be meant as a mark for nothing; inf is what a calculation has come to.
        known = name == 'nan' and declared and counts.sum() < MOST * summary.pixels.sum()
        yield Finding(
            f'{sensor.modality}.{name}',
            'note' if known else 'warning',
            f'{title}: {"NaN" if name == "nan" else "infinite values"}',
            where(sensor, counts),
            'such pixels count as invalid and stay out of tokens, loss and statistics; other code gives NaN'
            + ('; they come from the logarithm of zero' if name == 'inf' else ''),
        )


def _fills(sensor: Sensor) -> Iterator[Finding]:
    counts = sensor.summary.fill
    if not counts.any():
        return
    image, band = next(
        (image, band)
        for image, row in zip(sensor.images, counts)
        for band, some in zip(sensor.declared.bands, row)
        if some
    )
    values = image[band][np.isfinite(image[band])].astype(np.float64)
    extreme = values[np.argmax(np.abs(values))]
    known = any(value == extreme for value in sensor.declared.nodata)
    many = counts.sum() >= MOST * sensor.summary.pixels.sum()
    yield Finding(
        f'{sensor.modality}.fill',
        'error' if not known else 'warning' if many else 'note',
        f'{TITLES[sensor.modality]}: a fill value stands for missing pixels',
        f'{extreme:g}: {where(sensor, counts)}' + ('; declared as nodata' if known else ''),
        '' if known else f'declare nodata=({extreme:g},) in the contract',
    )


def _constant(sensor: Sensor) -> Iterator[Finding]:
    summary = sensor.summary
    # Atmospheric correction ends at 1: the infrared bands of clear water may be 1 all over.
    dark = (sensor.modality == 's2') & (summary.maximum <= 1)
    constant = summary.present & (summary.usable > 1) & (summary.std == 0) & ~dark
    empty = summary.present & (summary.usable == 0)
    for counts, words in ((constant, 'one value all over'), (empty, 'without a usable pixel')):
        if counts.any():
            bands = [band for band, some in zip(sensor.declared.bands, counts.any(axis=0)) if some]
            patches = share(counts.any(axis=1).sum(), summary.patches)
            yield Finding(
                f'{sensor.modality}.constant',
                'warning',
                f'{TITLES[sensor.modality]}: images {words}',
                f'{counts.sum():,} images in {patches} patches, bands {", ".join(bands)}',
                'leave such patches out; nothing can be learnt from them, and normalising an image by '
                'itself divides by zero',
            )


def _clipped(sensor: Sensor) -> Iterator[Finding]:
    """Measured values thin out towards their extremes; a pile-up there is a limit that someone set.

    Bands with few different values (B10, rounded dB) pile up by nature and are left out. The lower end of
    Sentinel-2 is left out too: atmospheric correction ends at 1.
    """
    summary, blocks = sensor.summary, _blocks(sensor)
    whole_range = scaled(sensor)  # ends by definition
    few = [len(np.unique(summary.pooled(i))) < 250 for i in range(len(sensor.declared.bands))]
    for end, extreme, counts in (('upper', 'maximum', 'top'), ('lower', 'minimum', 'bottom')):
        if end == 'lower' and sensor.modality == 's2':
            continue
        values, at = getattr(summary, extreme), getattr(summary, counts)
        for index, band in enumerate(sensor.declared.bands):
            ok = (summary.usable[:, index] > 0) & ~whole_range
            if not ok.any() or few[index]:
                continue
            column = values[ok, index]
            limit = column.max() if end == 'upper' else column.min()
            # In native pixels: a resampled band repeats each of them, and would pile up by itself.
            hit = (column == limit) & (at[ok, index] >= 4 * blocks[index])
            pixels, total = at[ok, index][hit].sum(), summary.usable[:, index].sum()
            if pixels > max(20 * blocks[index], 2e-4 * total):
                yield Finding(
                    f'{sensor.modality}.saturated',
                    'warning',
                    f'{TITLES[sensor.modality]}: {band} ends at a limit',
                    f'{share(pixels, total)} pixels are exactly {limit:g}, the {end} end, in '
                    f'{share(hit.sum(), ok.sum())} patches',
                    'values beyond were lost: by saturation of the sensor, or clipped by software; take '
                    'unclipped data where you can',
                )


def _blocks(sensor: Sensor) -> list[float]:
    """Pixels of each band that show one native pixel: 36 where a 60 m band was resampled to 10 m."""
    shapes = {band: x.shape[0] for image in sensor.images for band, x in image.items()}
    finest = max(shapes.values(), default=1)
    known = SENSORS[sensor.modality].bands if sensor.modality in SENSORS else {}
    native = {band: known[band].resolution / 10 if band in known else 1.0 for band in shapes}
    return [
        max(1.0, native[b] * shapes[b] / finest) ** 2 if b in shapes else 1.0 for b in sensor.declared.bands
    ]


def _noisy_border(sensor: Sensor) -> Iterator[Finding]:
    units = units_of(sensor)
    band = 'VV' if 'VV' in sensor.declared.bands else sensor.declared.bands[0]
    index = sensor.band(band)
    scale, offset = (values[index] for values in sensor.declared.linear())
    hit, worst = 0, 0.0
    for image, unit, low in zip(sensor.images, units, sensor.summary.minimum[:, index]):
        if unit not in ('dB', 'linear') or band not in image:
            continue
        if decibel(np.array(low * scale + offset), unit) > DARK:
            continue  # not a single pixel is that dark; the rest takes long
        values = decibel(image[band] * scale + offset, unit)
        dark = _dark_border(np.where(usable(image[band], sensor.declared.nodata), values, np.nan))
        hit, worst = hit + (dark >= BORDER_SHARE), max(worst, dark)
    if hit:
        yield Finding(
            's1.border',
            'warning',
            'Sentinel-1: noisy borders',
            f'{share(hit, sensor.summary.patches)} patches have pixels below {DARK:g} dB in {band} along an '
            f'edge, up to {worst:.1%} of the patch; calm water is not that dark',
            'remove border noise (SNAP: S-1 Remove GRD Border Noise), or mask the strip',
        )


def _dark_border(values: np.ndarray) -> float:
    """Share of pixels (dB; NaN: unknown) in dark areas that touch an edge of an otherwise usual patch."""
    filled = np.nan_to_num(values, nan=0.0)  # neither dark nor a bridge between dark areas
    dark = ndimage.uniform_filter(filled, 3, mode='nearest') < DARK
    if dark.mean() > 0.5:
        return 0.0
    areas, _ = ndimage.label(dark)
    edges = np.concatenate([areas[0], areas[-1], areas[:, 0], areas[:, -1]])
    touching = np.unique(edges[edges > 0])
    return float(np.isin(areas, touching).mean())


TITLES = {'s1': 'Sentinel-1', 's2': 'Sentinel-2'}
# What surrounds a clipped scatterer lies this much above the middle of the image, within these limits (dB);
# what surrounds a hole is as bright as any other ground.
BRIGHTER, BRIGHT = 5.0, (-8.0, -5.0)
SCATTERERS = 0.01  # of the image: a larger area of zeros is none


def check_zeros(sensor: Sensor) -> Iterator[Finding]:
    """0 is "nothing here" in Sentinel-2; in float dB it is a strong scatterer, hit where it was clipped."""
    summary = sensor.summary
    counts = summary.zero.copy()
    if sensor.modality == 's1':
        # Rounded values hit 0 by themselves; a fill covers an area.
        rounded = (summary.whole > 0.99) | (summary.step > 0)
        counts[rounded & (counts < 0.2 * summary.pixels)] = 0
    counts[scaled(sensor)] = 0  # the darkest pixel, by definition
    clipped = _clipped_to_zero(sensor, counts)
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


def _clipped_to_zero(sensor: Sensor, zeros: np.ndarray) -> np.ndarray:
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
