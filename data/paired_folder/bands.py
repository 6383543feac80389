"""Names of bands as files spell them."""

import re
from typing import NamedTuple

BANDS = {
    's1': ('VV', 'VH', 'HH', 'HV'),
    's2': ('B01', 'B02', 'B03', 'B04', 'B05', 'B06', 'B07', 'B08', 'B8A', 'B09', 'B10', 'B11', 'B12'),
}  # in the order in which records hold them
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
    """Reads the description of a channel; never guesses: 'nir' or 'Band 4' is no band."""
    text = text.strip()
    if modality == 's1':
        if not (match := _S1.fullmatch(text)):
            return Described()
        calibration, kind, band, decibel = match.groups()
        unit = 'dB' if decibel else _UNITS[(kind or '').lower()]
        return Described(band.upper(), f'{calibration.lower()}0' if calibration else '', unit)
    if not (match := _S2.fullmatch(text)):
        return Described()
    band = 'B8A' if match[1] else f'B{int(match[2]):02d}'
    return Described(band if band in BANDS['s2'] else '')


def band_of(text: str, modality: str) -> str:
    """The band that a text names, '' if none: 'B1' and 'b01' are B01, 'B8a' is B8A, 'vv' is VV."""
    return described(text, modality).band
