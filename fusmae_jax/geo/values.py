"""Scale, offset and nodata of stored numbers, from the metadata first and the settings second."""

import math
import re
from typing import NamedTuple

import numpy as np
from rasterio.windows import Window

from fusmae_jax.geo import UnusableError
from fusmae_jax.geo.bands import RADAR, described
from fusmae_jax.geo.raster import BESIDE, Header, opened

OFFSET_TAGS = ('BOA_ADD_OFFSET', 'RADIO_ADD_OFFSET')  # L2A, L1C; also one a band: BOA_ADD_OFFSET_1
QUANTIFICATION_TAGS = ('BOA_QUANTIFICATION_VALUE', 'QUANTIFICATION_VALUE')
BASELINE_TAG = 'PROCESSING_BASELINE'
FIRST_WITH_OFFSET = 4.0  # processing baseline, January 2022
REPROCESSED = 90.0  # numbers such as 99.99 are those of a processing by users, of either time
DN = {'DN': 1.0, 'reflectance': 1e-4}  # one digital number in each unit
FEW = 0.01  # a scale below this turns digital numbers into reflectance
_LOOK = 256  # pixels a side of what is looked at for a hint


class Values(NamedTuple):
    """How stored numbers become numbers in the declared unit."""

    scale: float
    offset: float
    nodata: tuple[float, ...]  # stored values that mean nothing


class Declared(NamedTuple):
    """What settings say of the values of a file, and how these settings are called."""

    prefix: str  # of their names, such as 's2_' or 'config.s2.'
    unit: str
    scale: float = 0.0  # 0: as the file says
    offset: float | None = None  # in the unit; None: as the file says
    nodata: tuple[float, ...] = ()  # beside that of the file
    calibration: str = ''
    step: float = 1.0  # what 1 of the offset setting is in the unit
    product: str = ''  # what the names of facts of the product begin with, after the prefix


def values_of(header: Header, modality: str, declared: Declared) -> Values:
    """The values of a file; raises UnusableError where metadata and settings disagree or say too little."""
    _check_descriptions(header, modality, declared)
    scale = _scale(header, modality, declared)
    offset = _s2_offset(header, declared) if modality == 's2' else _tagged_offset(header, declared)
    return Values(scale, offset, _nodata(header, modality, declared))


def baseline(header: Header) -> str:
    """The processing baseline that the metadata name, '' if they do not."""
    return header.tags.get(BASELINE_TAG, '').strip()


def stated_offset(header: Header, one: float) -> float | None:
    """The offset of Sentinel-2 that the metadata state, outright or by their baseline; None if they do not.

    `one` is a digital number in the unit. Raises UnusableError where they contradict themselves.
    """
    outright, _ = _said_offset(header, one)
    if outright is not None or header.dtype.startswith('float'):
        return outright
    # As in tags, 05.09, and as in names of products, N0509.
    match = re.fullmatch(r'N?(\d{1,2})\.(\d+)|N?(\d\d)(\d\d)', baseline(header).upper())
    if not match or (number := float('.'.join(filter(None, match.groups())))) >= REPROCESSED:
        return None
    # A baseline does not say that the offset is still there, but products come with it.
    return -1000 * one if number >= FIRST_WITH_OFFSET else 0.0


def unknown_offset(header: Header, declared: Declared) -> UnusableError:
    """What is said where nobody can know whether the offset is in the numbers."""
    ten = -1000 * DN.get(declared.unit, 1.0) / declared.step
    lowest = _lowest(header)
    hint = f'; the lowest 1st percentile of a band here is {lowest:.4g}' if lowest is not None else ''
    return UnusableError(
        'offset',
        f'the metadata do not say whether the 1000 of processing baseline 04.00 are in the numbers{hint}',
        f'{declared.prefix}offset={ten:g} if they are (products since 2022 as delivered: bands hardly go '
        f'below 1000), {declared.prefix}offset=0 if not (older products, and harmonised ones)',
    )


def _check_descriptions(header: Header, modality: str, declared: Declared) -> None:
    """SNAP writes into the description what the values are; it must be what the settings say."""
    for text, band in zip(header.descriptions, header.bands):
        there = described(text, modality)
        for fact, wanted, setting in (
            ('unit', declared.unit, f'{declared.prefix}unit'),
            ('calibration', declared.calibration, f'{declared.prefix}{declared.product}calibration'),
        ):
            if band and wanted and getattr(there, fact) not in ('', wanted):
                message = f'a channel is described as {text!r}, but {setting}={wanted!r}'
                raise UnusableError(fact, message, 'correct the setting or the description')


def _scale(header: Header, modality: str, declared: Declared) -> float:
    unit, tagged, setting = declared.unit, header.scale, f'{declared.prefix}scale'
    if declared.scale and tagged != 1 and not math.isclose(declared.scale, tagged):
        message = f'the tag says {tagged:g}, but {setting}={declared.scale:g}'
        raise UnusableError('scale', message, f'leave {setting} out, or correct the tag')
    if modality == 's2' and unit == 'DN' and tagged < FEW:
        message = f'the tags (scale {tagged:g}, offset {header.offset:g}) make reflectance of the numbers'
        advice = f"set {declared.prefix}unit='reflectance'; the numbers are stored as they are either way"
        raise UnusableError('scale', message, advice)
    whole, bare = not header.dtype.startswith('float'), not declared.scale and tagged == 1
    if whole and bare and unit and (modality in RADAR or unit == 'reflectance'):
        raise UnusableError(
            'scale',
            f'whole numbers ({header.dtype}) cannot be {unit} as they are',
            f'set {setting} to what makes them {unit}, such as {0.01 if unit == "dB" else 0.0001} '
            f'(1 to insist); if they were cast from decimals, take the original files',
        )
    if header.dtype == 'uint8' and bare:
        message = 'uint8 has 256 values: a picture, not digital numbers'
        raise UnusableError(
            'scale', message, f'take the original product, or set {setting} to what makes DN of them'
        )
    return declared.scale or tagged


def _tagged_offset(header: Header, declared: Declared) -> float:
    if declared.offset is not None and header.offset not in (0, declared.offset):
        message = f'the tag says {header.offset:g}, but {declared.prefix}offset={declared.offset:g}'
        raise UnusableError('offset', message, f'leave {declared.prefix}offset out, or correct the tag')
    return header.offset if declared.offset is None else declared.offset


def _s2_offset(header: Header, declared: Declared) -> float:
    """The offset in the declared unit; what adds it is taken off by it."""
    dn = DN.get(declared.unit, 1.0)
    if declared.offset is not None:
        outright, where = _said_offset(header, dn)
        if outright is not None and not math.isclose(outright, declared.offset, abs_tol=1e-9):
            raise UnusableError(
                'offset',
                f'{where} says {outright / declared.step:g}, but '
                f'{declared.prefix}offset={declared.offset / declared.step:g}',
                f'leave {declared.prefix}offset out to believe the file, or correct its metadata',
            )
        return declared.offset
    stated = stated_offset(header, dn)
    if stated is None and declared.unit:
        raise unknown_offset(header, declared)
    # Without a unit nothing is claimed of the numbers, so that an unknown offset does no harm.
    return stated or 0.0


def _said_offset(header: Header, dn: float) -> tuple[float | None, str]:
    """What the metadata state outright, and where. A baseline does not: the offset may be off already."""
    for name in QUANTIFICATION_TAGS:
        text = header.tags.get(name, '10000')
        if text.strip() not in ('10000', '10000.0'):
            advice = 'DN are reflectance x 10,000: rescale the files, or drop the tag if it is wrong'
            raise UnusableError(name, f'{text}, expected 10000', advice)
    stated = {
        key: text
        for key, text in header.tags.items()
        if any(key == name or key.startswith(f'{name}_') for name in OFFSET_TAGS)
    }
    try:
        values = {float(text) * dn for text in stated.values()}
    except ValueError:
        values = {math.nan}
    if header.offset:
        values.add(header.offset)
        stated['band offset'] = f'{header.offset:g}'
    if not values:
        return None, ''
    # Equal offsets may differ by a rounding: one is a product with 1e-4, another a tag.
    if not all(math.isfinite(v) for v in values) or max(values) - min(values) > 1e-9:
        message = ', '.join(f'{key}={text}' for key, text in stated.items())
        raise UnusableError('offset', message, 'one number for all bands is needed; correct the tags')
    return values.pop(), next(iter(stated))


def _lowest(header: Header) -> float | None:
    """The lowest first percentile of the bands in the middle of an image, scaled; None without a pixel."""
    kept = [number for number in header.channels if header.bands[number - 1] != 'B10']
    row, column = max(0, header.rows - _LOOK) // 2, max(0, header.columns - _LOOK) // 2
    window = Window(column, row, min(_LOOK, header.columns), min(_LOOK, header.rows))
    with opened(header.file, **BESIDE) as dataset:
        pixels = dataset.read(kept, window=window) * header.scale
    # 0 is where Sentinel-2 has measured nothing, and would be the lowest of all.
    lowest = [np.percentile(band[band > 0], 1) for band in pixels if (band > 0).any()]
    return min(lowest, default=None)


def _nodata(header: Header, modality: str, declared: Declared) -> tuple[float, ...]:
    dtype, tagged = header.dtype, header.nodata
    if not declared.nodata and tagged is None and modality == 's2' and not dtype.startswith('float'):
        return (0.0,)  # Sentinel-2 products keep 0 for this
    # A tag that cannot be is put right by the setting.
    stated = () if tagged is None or (declared.nodata and not _fits(tagged, dtype)) else (tagged,)
    values = tuple(dict.fromkeys([*declared.nodata, *stated]))
    for value in values:
        if not _fits(value, dtype):
            advice = f'rio edit-info --nodata VALUE IN.tif, or set {declared.prefix}nodata'
            raise UnusableError('nodata', f'{value:g} cannot stand in {dtype}', advice)
    return values


def _fits(value: float, dtype: str) -> bool:
    if dtype.startswith('float'):
        return bool(abs(value) <= np.finfo(np.float32).max)
    limits = np.iinfo(dtype)
    return value == round(value) and limits.min <= value <= limits.max
