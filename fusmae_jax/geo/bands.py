"""Names of bands as files spell them."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from fusmae_jax.geo import UnusableError

BANDS = {
    's1': ('VV', 'VH', 'HH', 'HV'),
    's1_desc': ('VV', 'VH', 'HH', 'HV'),  # Sentinel-1 as two sensors, by the pass
    's2': ('B01', 'B02', 'B03', 'B04', 'B05', 'B06', 'B07', 'B08', 'B8A', 'B09', 'B10', 'B11', 'B12'),
    'dem': ('ELEVATION',),
}  # in the order in which records hold them
RADAR = ('s1', 's1_desc')
SKIP = '-'  # a channel to leave out

# SNAP: Sigma0_VV_db, Gamma0_VH, Amplitude_VV. GDAL's Sentinel-2 driver: "B8A, central wavelength 865 nm".
_S1 = re.compile(r'(?:(sigma|gamma|beta)0_|(amplitude|intensity)_)?(vv|vh|hh|hv)(_db)?', re.IGNORECASE)
_S2 = re.compile(r'b(?:0*8(a)|0*(\d{1,2}))(?:, central wavelength.*)?', re.IGNORECASE)
_UNITS = {'': '', 'amplitude': 'amplitude', 'intensity': 'linear'}


class Described(NamedTuple):
    """What the description of a channel says."""

    band: str = ''  # '': nothing that is known
    calibration: str = ''
    unit: str = ''


def described(text: str, modality: str) -> Described:
    """What a channel's description says; never a guess: 'nir' or 'Band 4' is no band."""
    text = text.strip()
    if modality not in BANDS:
        # A sensor of somebody's own: its bands are called as its files call them.
        return Described(text.upper())
    if modality in RADAR:
        if not (match := _S1.fullmatch(text)):
            return Described()
        calibration, kind, band, decibel = match.groups()
        unit = 'dB' if decibel else _UNITS[(kind or '').lower()]
        return Described(band.upper(), f'{calibration.lower()}0' if calibration else '', unit)
    if modality == 'dem':
        return Described('ELEVATION' if text.lower() in ('elevation', 'dem') else '')
    if not (match := _S2.fullmatch(text)):
        return Described()
    band = 'B8A' if match[1] else f'B{int(match[2]):02d}'
    return Described(band if band in BANDS['s2'] else '')


def band_of(text: str, modality: str) -> str:
    """The band that a text names, '' if none: 'B1' and 'b01' are B01, 'B8a' is B8A, 'vv' is VV."""
    return described(text, modality).band


def by_description(texts: Sequence[str], modality: str) -> tuple[str | None, ...]:
    """The band of each channel by its description; '' for a band of another sensor, None where that is open.

    A stack of several sensors is read for each of them by the names of its bands.
    """
    others = [name for name in BANDS if name != modality]
    return tuple(
        band_of(text, modality) or ('' if any(band_of(text, other) for other in others) else None)
        for text in texts
    )


def by_setting(texts: Sequence[str], modality: str, names: Sequence[str], setting: str) -> tuple[str, ...]:
    """The band of each channel as a setting names them, '' for `SKIP`.

    Raises UnusableError where the number of names, or a description, says otherwise.
    """
    if len(names) != len(texts):
        message = f'{len(texts)} channels, but {setting} has {len(names)} names for them'
        raise UnusableError(
            'bands', message, f'{setting} must name every channel, {SKIP!r} for one to leave out'
        )
    bands = tuple('' if name == SKIP else spelt(name, modality) for name in names)
    for index, (band, text) in enumerate(zip(bands, texts), 1):
        stated = band_of(text, modality)
        if band and stated and band != stated:
            raise UnusableError(
                'bands',
                f'channel {index} is described as {stated}, but {setting} says {band}',
                f'correct {setting} or the description',
            )
    return bands


def check_unique(bands: Sequence[str], setting: str) -> None:
    """Raises UnusableError where a band that is kept stands twice, or none is kept."""
    kept = [band for band in bands if band]
    if not kept:
        raise UnusableError('bands', 'no channel is kept', f'name the channels, {setting}=(...)')
    if twice := next((band for band in kept if kept.count(band) > 1), ''):
        advice = f'set {setting}, with {SKIP!r} for a channel to leave out'
        raise UnusableError('bands', f'{twice} is there more than once', advice)


def spelt(text: str, modality: str) -> str:
    """A name as this project writes it, of a band that it knows or any other: B2 is B02, angle ANGLE."""
    return band_of(text, modality) or text.strip().upper()
