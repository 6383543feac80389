"""A surface model over a land-cover map: heights in metres, as a digital elevation model of 30 m has them.

Height says something of the cover without settling it: sea, marsh and beach lie low, heath and conifers high;
water is flat, slopes are wooded; and crowns and roofs stand out, since it is the surface that is measured.
The classes that need both other sensors (`classes.NEED_BOTH`) differ here too: towns and arable land lie
lower than heath, peatbogs in hollows beside it.
"""

from typing import NamedTuple

import numpy as np

from .classes import CLASSES, NEED_BOTH
from .fields import smooth
from .scene import Scene, SceneConfig, block_mean

STEP = 3  # model pixels of 10 m in one of the elevation model
_STREAM = 20  # of random numbers, apart from those of a scene


class Relief(NamedTuple):
    """Where a class lies, in metres."""

    altitude: float  # of scenes that it covers, above the sea
    above: float  # its ground above the rest of the scene
    rough: float  # standard deviation of its ground
    crown: float = 0.0  # how far what stands on it rises


_PLAIN = Relief(90.0, 0.0, 2.5)
_RELIEF = {
    'urban': Relief(60.0, -2.0, 1.5, 6.0),
    'industrial': Relief(50.0, -3.0, 1.0, 8.0),
    'arable': Relief(80.0, 0.0, 2.0),
    'orchard': Relief(120.0, 3.0, 3.0, 3.0),
    'agroforestry': Relief(200.0, 4.0, 4.0, 2.0),
    'broadleaf': Relief(180.0, 8.0, 7.0, 16.0),
    'conifer': Relief(320.0, 12.0, 9.0, 18.0),
    'mixed_forest': Relief(250.0, 10.0, 8.0, 17.0),
    'grassland': Relief(260.0, 6.0, 6.0),
    'heath': Relief(330.0, 10.0, 6.0),
    'young_wood': Relief(200.0, 8.0, 7.0, 4.0),
    'beach': Relief(2.0, -3.0, 1.0),
    'peatbog': Relief(280.0, -6.0, 0.7),
    'salt_marsh': Relief(1.5, -3.0, 0.4),
    'lake': Relief(110.0, -8.0, 0.0),
    'sea': Relief(0.0, -8.0, 0.0),
}
_TABLE = np.array([_RELIEF.get(cover.name, _PLAIN) for cover in CLASSES], np.float32)
assert {*_RELIEF} <= {cover.name for cover in CLASSES}
assert all(CLASSES[i].name in _RELIEF for i in NEED_BOTH)

# Standard deviations: of the altitude of scenes beside what their cover says of it (of its logarithm), of
# broad slopes, of an instrument.
SCENE_LOG, SLOPE, NOISE = 0.5, 12.0, 0.6


def elevation(config: SceneConfig, generated: Scene) -> np.ndarray:
    """Heights of a scene, metres above the sea: (size / 3, size / 3) float32.

    A function of configuration and scene, from random numbers of its own: the images stay as they are.
    """
    rng = np.random.default_rng((config.seed, generated.index, 0, _STREAM))
    altitude, above, rough, crown = _TABLE.T
    base = float(generated.fractions @ altitude) * np.exp(SCENE_LOG * rng.standard_normal())
    cover, size = generated.cover, len(generated.cover)
    broad, ground, crowns = smooth(rng, 3, size, {size / 2: 0.8, size / 6: 0.4, 6.0: 0.3})
    # Steps between classes are spread over some pixels: ground has slopes, not cliffs.
    height = base + SLOPE * broad + _blurred(above[cover] + rough[cover] * ground, 9)
    height += crown[cover] * (1 + np.float32(0.2) * crowns)
    plane = block_mean(height.astype(np.float32), STEP)
    return plane + np.float32(NOISE) * rng.standard_normal(plane.shape, np.float32)


def _blurred(plane: np.ndarray, width: int) -> np.ndarray:
    """Means over squares of `width` pixels, an odd number, with the borders repeated."""
    for axis in (0, 1):
        pad = [(width // 2 + 1, width // 2) if i == axis else (0, 0) for i in (0, 1)]
        total = np.pad(plane.astype(np.float64), pad, 'edge').cumsum(axis)
        ends = np.take(total, range(width, total.shape[axis]), axis)
        plane = (ends - np.take(total, range(total.shape[axis] - width), axis)) / width
    return plane
