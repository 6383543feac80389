"""Names of files and folders: sensor, band, and which files belong together."""

import re
from pathlib import Path

from fusmae_jax.geo.bands import band_of

# S1A, s2_63, sentinel-1; with the product: S1RTC, S1_GRDH, S2L2A, S2MSI2A.
_PRODUCT = r'[a-d]?[-_]?(?:rtc|grd[hfm]?|slc|(?:msi)?l?[12][ac])'
_SENSOR = re.compile(rf'(?:^|[^a-z0-9])s(?:en(?:tinel)?[-_]?)?([12])(?:{_PRODUCT}|[a-d]?)(?=[^a-z0-9]|$)')
_WORDS = re.compile(r'[^a-z0-9]+')
_RESOLUTION = re.compile(r'[126]0m')
_BAND = re.compile(r'b(?:0\d|1[0-2]|8a)')  # b2 may count something else, where it is not the last word


def sensor_in(name: str) -> str:
    """'s1' or 's2' if the name of a file or folder says so, as S1A, S2L2A and sentinel-1 do; else ''."""
    match = _SENSOR.search(name.lower())
    return f's{match[1]}' if match else ''


def band_in(file: Path) -> str:
    """The band that a file is of: the last word of its name, or the only one in it; '' if none does."""
    word = _band_word(_words(file))
    return band_of(word, 's1') or band_of(word, 's2')


def stem(file: Path) -> str:
    """The name of a file without sensor and band, so that all files of a patch have the same."""
    words = _words(file, _SENSOR)
    band = _band_word(words)
    if band:
        words.reverse()  # the last one, should it stand twice
        words.remove(band)
        words = [word for word in reversed(words) if not _RESOLUTION.fullmatch(word)]
    return '_'.join(words).strip('_')


def _words(file: Path, without: re.Pattern[str] | None = None) -> list[str]:
    name = file.stem.lower()
    return _WORDS.split(without.sub('', name) if without else name)


def _band_word(words: list[str]) -> str:
    """The word that names the band of the whole file; '' if none does, or several."""
    if band_of(words[-1], 's1') or band_of(words[-1], 's2'):
        return words[-1]
    named = {word for word in words if band_of(word, 's1') or _BAND.fullmatch(word)}
    return named.pop() if len(named) == 1 else ''
