"""One generated scene: a land-cover map and what Sentinel-1 and Sentinel-2 see of it.

A scene is a function of (configuration, index, visit). Its parts draw from random streams of their own, so
that another share of cloud, say, leaves cover, radar and season as they were. The last bits may depend on
the machine (vectorised exponentials differ), the rest does not.
"""

import dataclasses
from typing import Literal, NamedTuple, get_args

import numpy as np

from fusmae_jax.errors import InputError, raise_all
from fusmae_jax.input.contract import fingerprint

from . import optics, radar
from .classes import CLASSES, NEED_BOTH, ONLY_S1, ONLY_S2, ORDINARY, S2_BANDS
from .fields import smooth

VERSION = 1  # of the generator: raise it when the same configuration comes to give other pixels
LABEL_SHARE = 0.05  # a class is a label of a scene that it covers to this share
SEASONS = ('Winter', 'Spring', 'Summer', 'Fall')
RESOLUTION = {  # metres
    **dict.fromkeys(S2_BANDS, 20),
    **dict.fromkeys(('B02', 'B03', 'B04', 'B08'), 10),
    **dict.fromkeys(('B01', 'B09', 'B10'), 60),
}

Level = Literal['L2A', 'L1C']


@dataclasses.dataclass(frozen=True)
class SceneConfig:
    """Everything that decides the pixels."""

    seed: int = 0
    size: int = 120  # pixels a side at 10 m, even
    patch: float = 30.0  # pixels over which land cover varies
    cloud_share: float = 0.03  # share of scenes with some cloud in Sentinel-2
    snow_share: float = 0.06  # share of scenes under snow
    level: Level = 'L2A'  # L1C: top of the atmosphere, with B10
    offset: int = 0  # added to every digital number of Sentinel-2; 1000 from processing baseline 04.00 on
    looks: float = 4.9  # equivalent number of looks of the speckle

    def __post_init__(self):
        problems = []
        if self.seed < 0:
            problems.append(f'seed={self.seed} must be at least 0')
        if self.size < 12 or self.size % 2:
            problems.append(f'size={self.size} must be even, at least 12')
        for name in ('cloud_share', 'snow_share'):
            if not 0 <= getattr(self, name) <= 1:
                problems.append(f'{name}={getattr(self, name)} must lie between 0 and 1')
        if self.level not in get_args(Level):
            problems.append(f'level={self.level!r}; valid: {", ".join(get_args(Level))}')
        if not 0 <= self.offset <= 10_000:
            problems.append(f'offset={self.offset} must lie between 0 and 10,000')
        for name in ('patch', 'looks'):
            if not getattr(self, name) > 0:
                problems.append(f'{name}={getattr(self, name)} must be positive')
        raise_all('scene: these settings cannot be used', problems)


class Scene(NamedTuple):
    """A pair of images and the truth about them."""

    index: int  # type: ignore[assignment]  # hides a method of tuples that nobody needs here
    cover: np.ndarray  # (size, size) uint8, index into CLASSES
    s1: dict[str, np.ndarray]  # 'VV', 'VH' -> (size, size) float32, dB
    s2: dict[str, np.ndarray]  # band -> native grid, uint16 DN, at least 1
    fractions: np.ndarray  # (classes,) float64, share of each cover class
    snow: bool
    cloud: float  # share of pixels that a cloud hides at least half
    season: str  # one of SEASONS


def digest(config: SceneConfig) -> str:
    """16 hexadecimal digits that stand for the configuration and this version of the generator."""
    return fingerprint({'version': VERSION, **dataclasses.asdict(config)})


def scene(config: SceneConfig, index: int, visit: int = 0) -> Scene:
    """The scene of that index; another visit sees the same ground in the next season."""
    if index < 0 or visit < 0:
        raise InputError(f'scene: index={index}, visit={visit}: must be at least 0')
    ground = np.random.default_rng((config.seed, index, 0, 0))
    weather, s1, s2, snow_stream, cloud_stream, air = (
        np.random.default_rng((config.seed, index, visit, stream)) for stream in range(1, 7)
    )
    cover = _cover(ground, config)
    snow, cloudy = weather.random(2) < (config.snow_share, config.cloud_share)
    season = SEASONS[0] if snow else SEASONS[(int(ground.integers(4)) + visit) % 4]
    bands = tuple(band for band in S2_BANDS if band != 'B10' or config.level == 'L1C')
    image = optics.reflectance(s2, cover, season, bands)
    if snow:
        image = optics.snowed(snow_stream, image, cover, bands)
    cloud = 0.0
    if cloudy:
        sky = optics.clouds(cloud_stream, config.size)
        image = optics.clouded(cloud_stream, image, sky, bands)
        cloud = float((sky.opacity >= 0.5).mean())
    if config.level == 'L1C':
        image = optics.at_satellite(air, image, bands)
    return Scene(
        index=index,
        cover=cover,
        s1=radar.backscatter(s1, cover, config.looks, bool(snow)),
        s2=_digital(s2, image, bands, config.offset),
        fractions=np.bincount(cover.ravel(), minlength=len(CLASSES)) / cover.size,
        snow=bool(snow),
        cloud=cloud,
        season=season,
    )


def labels(scene: Scene) -> tuple[int, ...]:
    """The classes that cover at least LABEL_SHARE of the scene; there is always one."""
    return tuple(int(i) for i in np.flatnonzero(scene.fractions >= LABEL_SHARE))


def resampled(scene: Scene, resolution: int = 10) -> dict[str, np.ndarray]:
    """All Sentinel-2 bands on a grid of pixels of `resolution` metres, each from the nearest native pixel."""
    at = (np.arange(len(scene.cover) * 10 // resolution) + 0.5) * resolution
    result = {}
    for band, image in scene.s2.items():
        index = (at / RESOLUTION[band]).astype(np.intp)
        result[band] = image[index[:, None], index]
    return result


def _composition(rng: np.random.Generator) -> list[int]:
    """The classes of a scene; the special sets are in most, so that the presence of a set says little."""
    special = []
    for group, share, twice in ((ONLY_S1, 0.95, 0.1), (ONLY_S2, 0.95, 0.1), (NEED_BOTH, 0.85, 0.1)):
        draw, more = rng.random(2)
        order = rng.permutation(group)
        special += order[: (draw < share) * (1 + (more < twice))].tolist()
    weights = np.array([CLASSES[i].weight for i in ORDINARY])
    count = 1 + int(rng.random() < 0.4)
    return special + rng.choice(ORDINARY, count, replace=False, p=weights / weights.sum()).tolist()


def _cover(rng: np.random.Generator, config: SceneConfig) -> np.ndarray:
    """The class whose random field is highest at each pixel."""
    classes = np.array(_composition(rng), np.uint8)
    fields = smooth(rng, len(classes), config.size, {config.patch: 1.0, config.patch / 4: 0.3, 2.0: 0.08})
    fields += 0.6 * rng.standard_normal((len(classes), 1, 1), np.float32)
    return classes[fields.argmax(0)]


def _digital(
    rng: np.random.Generator, image: np.ndarray, bands: tuple[str, ...], offset: int
) -> dict[str, np.ndarray]:
    """Digital numbers of each band on its native grid, by block means, with some sensor noise."""
    result = {}
    for band, plane in zip(bands, image):
        plane = block_mean(plane, RESOLUTION[band] // 10)
        noise = rng.standard_normal(plane.shape, np.float32)
        plane = plane * (1 + np.float32(0.015) * noise) + np.float32(8 * (band != 'B10')) * noise
        result[band] = np.clip(np.rint(plane) + offset, 1 + offset, 2**16 - 1).astype(np.uint16)
    return result


def block_mean(plane: np.ndarray, factor: int) -> np.ndarray:
    """Means of blocks of `factor` pixels a side; at the lower right edge of what is left of a block."""
    if factor == 1:
        return plane
    pad = -len(plane) % factor
    if pad:
        plane = np.pad(plane, ((0, pad), (0, pad)), 'edge')
    size = len(plane) // factor
    return plane.reshape(size, factor, size, factor).mean((1, 3), dtype=np.float32)
