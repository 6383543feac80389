"""What stored numbers mean: scale, offset and nodata, from the metadata first and the settings second."""

import math
from typing import NamedTuple

import numpy as np

from data.paired_folder.bands import described
from data.paired_folder.headers import Header, opened
from data.paired_folder.settings import Archive
from data.records import RecordError
from fusmae_jax import rio

OFFSET_TAGS = ('BOA_ADD_OFFSET', 'RADIO_ADD_OFFSET')  # L2A, L1C; also one a band: BOA_ADD_OFFSET_1
QUANTIFICATION_TAGS = ('BOA_QUANTIFICATION_VALUE', 'QUANTIFICATION_VALUE')
BASELINE_TAG = 'PROCESSING_BASELINE'
FIRST_WITH_OFFSET = 4.0  # processing baseline, January 2022
DN = {'DN': 1.0, 'reflectance': 1e-4}  # one digital number in each unit
FEW = 0.01  # a scale below this turns digital numbers into reflectance


class Values(NamedTuple):
    """How stored numbers become numbers in the declared unit."""

    scale: float
    offset: float
    nodata: tuple[float, ...]


def values_of(header: Header, modality: str, archive: Archive) -> Values:
    """The values of a file; raises RecordError where metadata and settings disagree or say too little."""
    _check_descriptions(header, modality, archive)
    scale = _scale(header, modality, archive)
    offset = header.offset if modality == 's1' else _s2_offset(header, archive)
    return Values(scale, offset, _nodata(header, modality, archive))


def baseline(header: Header) -> str:
    """The processing baseline that the metadata name, '' if they do not."""
    return header.tags.get(BASELINE_TAG, '').strip()


def _check_descriptions(header: Header, modality: str, archive: Archive) -> None:
    """SNAP writes into the description what the values are; it must be what the settings say."""
    for text, band in zip(header.descriptions, header.bands):
        said = described(text, modality)
        for fact, there in (('unit', said.unit), ('calibration', said.calibration)):
            declared = getattr(archive, f'{modality}_{fact}', '')
            if band and there and declared and there != declared:
                raise RecordError(
                    header.file,
                    f'{modality} {fact}',
                    f'a channel is described as {text!r}, but {modality}_{fact}={declared!r}',
                    'correct the setting or the description',
                )


def _scale(header: Header, modality: str, archive: Archive) -> float:
    unit, declared = getattr(archive, f'{modality}_unit'), getattr(archive, f'{modality}_scale')
    tagged, field = header.scale, f'{modality} scale'
    if declared and tagged != 1 and not math.isclose(declared, tagged):
        raise RecordError(
            header.file,
            field,
            f'the tag says {tagged:g}, but {modality}_scale={declared:g}',
            f'leave {modality}_scale out, or correct the tag',
        )
    if modality == 's2' and unit == 'DN' and tagged < FEW:
        raise RecordError(
            header.file,
            field,
            f'the tags (scale {tagged:g}, offset {header.offset:g}) make reflectance of the numbers',
            "set s2_unit='reflectance'; the numbers are stored as they are either way",
        )
    whole, bare = not header.dtype.startswith('float'), not declared and tagged == 1
    if whole and bare and (modality == 's1' or unit == 'reflectance'):
        raise RecordError(
            header.file,
            field,
            f'whole numbers ({header.dtype}) cannot be {unit} as they are',
            f'set {modality}_scale to what makes them {unit}, such as {0.01 if unit == "dB" else 0.0001} '
            f'(1 to insist); if they were cast from decimals, take the original files',
        )
    if header.dtype == 'uint8' and bare:
        raise RecordError(
            header.file,
            field,
            'uint8 has 256 values: a picture, not digital numbers',
            'take the original product, or set s2_scale to what makes DN of them',
        )
    return declared or tagged


def _s2_offset(header: Header, archive: Archive) -> float:
    """The offset in the declared unit; what adds it is taken off by it."""
    one = DN[archive.s2_unit]
    said, where = _said_offset(header, one)
    if archive.s2_offset != 'auto':
        declared = int(archive.s2_offset) * one
        if said is not None and not math.isclose(said, declared, abs_tol=1e-9):
            raise RecordError(
                header.file,
                's2 offset',
                f'{where} says {said / one:g}, but s2_offset={archive.s2_offset}',
                's2_offset=auto believes the file; correct its metadata if they are wrong',
            )
        return declared
    if said is not None:
        return said
    number = _baseline_number(header)
    if number is None or header.dtype.startswith('float'):
        raise _unknown_offset(header)
    return -1000 * one if number >= FIRST_WITH_OFFSET else 0.0


def _said_offset(header: Header, one: float) -> tuple[float | None, str]:
    """What the metadata state outright, and where. A baseline does not: the offset may be off already."""
    _check_quantification(header)
    stated = {
        key: text
        for key, text in header.tags.items()
        if any(key == name or key.startswith(f'{name}_') for name in OFFSET_TAGS)
    }
    try:
        values = {float(text) * one for text in stated.values()}
    except ValueError:
        values = {math.nan}
    if header.offset:
        values.add(header.offset)
        stated['band offset'] = f'{header.offset:g}'
    if not values:
        return None, ''
    if max(values) - min(values) > 1e-9 or not all(math.isfinite(v) for v in values):
        found = ', '.join(f'{key}={text}' for key, text in stated.items())
        raise RecordError(
            header.file, 's2 offset', found, 'one number for all bands is needed; correct the tags'
        )
    return values.pop(), next(iter(stated))


def _check_quantification(header: Header) -> None:
    for name in QUANTIFICATION_TAGS:
        text = header.tags.get(name, '10000')
        if text.strip() not in ('10000', '10000.0'):
            raise RecordError(
                header.file,
                f's2 {name}',
                f'{text}, expected 10000',
                'DN are reflectance x 10,000: rescale the files, or drop the tag if it is wrong',
            )


def _baseline_number(header: Header) -> float | None:
    try:
        return float(baseline(header).removeprefix('N'))
    except ValueError:
        return None


def _unknown_offset(header: Header) -> RecordError:
    with opened(header.file, 's2') as dataset:
        kept = [index for index, band in enumerate(header.bands, 1) if band and band != 'B10']
        shape = (min(256, header.rows), min(256, header.columns))
        pixels = dataset.read(kept, out_shape=(len(kept), *shape)) * header.scale
    lowest = [np.percentile(band[band > 0], 1) for band in pixels if (band > 0).any()]
    hint = f'; the lowest 1st percentile of a band here is {min(lowest):.4g}' if lowest else ''
    return RecordError(
        header.file,
        's2 offset',
        f'the metadata do not say whether the 1000 of processing baseline 04.00 are in the numbers{hint}',
        's2_offset=-1000 if they are (products since 2022 as delivered: bands hardly go below 1000), '
        's2_offset=0 if not (older products, and harmonised ones)',
    )


def _nodata(header: Header, modality: str, archive: Archive) -> tuple[float, ...]:
    declared: tuple[float, ...] = getattr(archive, f'{modality}_nodata')
    found = declared or (() if header.nodata is None else (header.nodata,))
    whole = not header.dtype.startswith('float')
    if not found and whole and modality == 's2':
        return (0.0,)  # Sentinel-2 products keep 0 for this
    for value in found:
        if whole:
            limits = np.iinfo(header.dtype)
            fits = value == round(value) and limits.min <= value <= limits.max
        else:
            fits = bool(abs(value) <= np.finfo(np.float32).max)
        if not fits:
            raise RecordError(
                header.file,
                f'{modality} nodata',
                f'{value:g} cannot stand in {header.dtype}',
                f'{rio.edit_nodata(header.file)}, or set {modality}_nodata',
            )
    return found
