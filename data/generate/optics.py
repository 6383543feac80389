"""Sentinel-2 over a land-cover map: season, snow, cloud and, for L1C, the atmosphere."""

from typing import NamedTuple

import numpy as np

from .classes import CLASSES, S2_BANDS
from .fields import parcels, smooth

_LOG_SPECTRUM = np.log(np.maximum([c.spectrum for c in CLASSES], 1.0)).astype(np.float32)  # (classes, bands)
_VEGETATION = np.array([c.optical.vegetation for c in CLASSES], np.float32)
_TEXTURE = np.array([c.optical.texture for c in CLASSES], np.float32)
_PARCELS = np.array([c.optical.parcels for c in CLASSES], np.float32)
_OPEN = np.array([1 - c.optical.canopy for c in CLASSES], np.float32)


def _bands(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


# In the order of S2_BANDS. How the logarithm of reflectance answers to one unit of greenness:
_GREENING = _bands(-0.15, -0.18, -0.06, -0.3, -0.1, 0.12, 0.18, 0.2, 0.2, 0.2, 0, -0.16, -0.28)
_SNOW = _bands(8600, 8500, 8400, 8300, 8200, 8000, 7900, 7800, 7600, 7000, 0, 1100, 950)
_CLOUD = _bands(6200, 6000, 5900, 5950, 6000, 6050, 6100, 6100, 6100, 5200, 0, 4200, 3300)
# Top of the atmosphere in L1C: transmission, and the light that the air itself scatters back.
_TRANSMISSION = _bands(0.8, 0.84, 0.88, 0.92, 0.93, 0.93, 0.95, 0.95, 0.96, 0.4, 0, 0.95, 0.94)
_PATH = _bands(1050, 760, 470, 280, 230, 190, 160, 130, 110, 40, 0, 15, 8)
_SEASON = {'Winter': -1.0, 'Spring': 0.1, 'Summer': 0.6, 'Fall': -0.3}  # greenness

# Standard deviations between scenes: of all reflectance, of a class, of one band of it (logarithms); and of
# greenness.
SCENE_LOG, CLASS_LOG, BAND_LOG, GREENNESS = 0.08, 0.1, 0.02, 0.3


class Sky(NamedTuple):
    """What stands between the ground and the satellite; opacity and shade are (size, size), 0..1."""

    opacity: np.ndarray
    shade: np.ndarray


def clouds(rng: np.random.Generator, size: int) -> Sky:
    """Soft-edged clouds over a tenth to most of an image, and their shadow some pixels away."""
    field = smooth(rng, 1, size, {size / 3: 0.9, size / 10: 0.4, 4.0: 0.12})[0]
    limit = np.quantile(field, rng.uniform(0.3, 0.9))
    opacity = np.clip((field - limit) / 0.5 + 0.5, 0, 1).astype(np.float32)
    distance = rng.integers(size // 12, size // 5, 2) * rng.choice([-1, 1], 2)
    rows, columns = np.clip(np.arange(size) - distance[:, None], 0, size - 1)
    shade = opacity[rows[:, None], columns] * (1 - opacity)
    return Sky(opacity, shade)


def reflectance(
    rng: np.random.Generator, cover: np.ndarray, season: str, bands: tuple[str, ...]
) -> np.ndarray:
    """Surface reflectance x 10,000 of a map (size, size) without snow and cloud: (bands, size, size)."""
    size, index = len(cover), [S2_BANDS.index(band) for band in bands]
    classes = len(CLASSES)
    # Half of the variance of greenness belongs to the scene, half to each class.
    common, by_class = rng.standard_normal(), rng.standard_normal(classes)
    greenness = _SEASON[season] + GREENNESS * (common + by_class) / 2**0.5
    spectrum = _LOG_SPECTRUM + SCENE_LOG * rng.standard_normal()
    spectrum = spectrum + CLASS_LOG * rng.standard_normal((classes, 1))
    spectrum = spectrum + BAND_LOG * rng.standard_normal(spectrum.shape)
    spectrum = spectrum + (_VEGETATION * greenness)[:, None] * _GREENING
    texture, green = smooth(rng, 2, size, {10.0: 0.7, 3.0: 0.7})
    fields = parcels(rng, size)
    amplitude, parcel = _TEXTURE[cover], _PARCELS[cover]
    brightness = amplitude * texture + parcel * fields[0]
    green = 3 * (amplitude * green + 2 * parcel * fields[1]) * _VEGETATION[cover]
    table = spectrum.astype(np.float32).T[index]
    return np.exp(table[:, cover] + brightness + _GREENING[index][:, None, None] * green)


def snowed(
    rng: np.random.Generator, ground: np.ndarray, cover: np.ndarray, bands: tuple[str, ...]
) -> np.ndarray:
    """The same ground (bands, size, size) under patchy snow, which canopy and water keep off."""
    field = smooth(rng, 1, len(cover), {30.0: 0.8, 5.0: 0.4})[0]
    depth = np.clip(0.5 + field + rng.uniform(0, 1), 0, 1) * _OPEN[cover]
    snow = _SNOW[[S2_BANDS.index(band) for band in bands]] * np.float32(rng.uniform(0.4, 0.9))
    return ground + depth * (snow[:, None, None] - ground)


def clouded(rng: np.random.Generator, ground: np.ndarray, sky: Sky, bands: tuple[str, ...]) -> np.ndarray:
    """The same ground (bands, size, size) in the shadow of, and behind, clouds."""
    cloud = _CLOUD[[S2_BANDS.index(band) for band in bands]] * np.float32(rng.uniform(0.7, 1.3))
    dark = ground * (1 - np.float32(0.6) * sky.shade)
    return dark + sky.opacity * (cloud[:, None, None] - dark)


def at_satellite(rng: np.random.Generator, ground: np.ndarray, bands: tuple[str, ...]) -> np.ndarray:
    """Top-of-atmosphere reflectance x 10,000 of a surface (bands, size, size); B10 sees cirrus alone."""
    index = [S2_BANDS.index(band) for band in bands]
    haze = np.float32(rng.uniform(0.8, 1.4))
    result = ground * _TRANSMISSION[index][:, None, None] + haze * _PATH[index][:, None, None]
    if 'B10' in bands:
        cirrus = smooth(rng, 1, ground.shape[-1], {ground.shape[-1] / 4: 1.0})[0]
        result[bands.index('B10')] = np.float32(rng.uniform(10, 22)) * np.exp(0.2 * cirrus)
    return result
