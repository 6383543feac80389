"""Sentinel-1 over a land-cover map: sigma0 with moisture, texture, thermal noise and speckle."""

import numpy as np

from .classes import CLASSES
from .fields import smooth

_MEAN = np.array([c.backscatter for c in CLASSES], np.float32)
_TEXTURE = np.array([c.radar.texture for c in CLASSES], np.float32)
NOISE_FLOOR = -29.0  # dB, the power that the instrument adds

# Standard deviations: of whole scenes, of a class between scenes, and of VV against VH in one.
SCENE_DB, CLASS_DB, RATIO_DB = 0.5, 0.6, 0.3


def backscatter(
    rng: np.random.Generator, cover: np.ndarray, looks: float, snow: bool
) -> dict[str, np.ndarray]:
    """VV and VH of a map (size, size), float32 dB.

    Speckle multiplies the power and is gamma distributed with `looks` looks, independent between pixels
    and polarisations.
    """
    size = len(cover)
    moisture = SCENE_DB * rng.standard_normal() - (1.0 if snow else 0.0)
    shift = CLASS_DB * rng.standard_normal((len(CLASSES), 1)) + moisture
    mean = _MEAN + shift + RATIO_DB * rng.standard_normal(_MEAN.shape)
    texture = smooth(rng, 1, size, {12.0: 0.8, 3.0: 0.6})[0] * _TEXTURE[cover]
    decibel = mean.astype(np.float32).T[:, cover] + texture
    power = np.exp(decibel * np.float32(np.log(10) / 10)) + np.float32(10 ** (NOISE_FLOOR / 10))
    power *= rng.standard_gamma(looks, power.shape, np.float32) / np.float32(looks)
    decibel = 10 * np.log10(np.maximum(power, np.float32(1e-5)))
    return {'VV': decibel[0], 'VH': decibel[1]}
