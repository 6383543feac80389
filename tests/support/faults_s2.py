"""Faults of Sentinel-2; see `faults.py`."""

import dataclasses
from collections.abc import Callable

import numpy as np

from fusmae_jax.shipped.data.doctor.evidence import Declared, Evidence
from fusmae_jax.shipped.data.generate.scene import SceneConfig, resampled, scene
from tests.support.faults import (
    LAYOUTS,
    SHARE,
    Images,
    along_border,
    border,
    each,
    fault,
    in_all,
    normalised,
    on_images,
    own_range,
    whole,
    with_sensor,
)


def _plus(offset: int) -> Callable[..., np.ndarray]:
    return lambda x, s, rng: (x.astype(np.int32) + offset).astype(x.dtype)


def _under(x: np.ndarray, amount: float, rng: np.random.Generator) -> np.ndarray:
    """`amount` is subtracted in unsigned integers."""
    return (x.astype(np.int64) - int(amount)).astype(np.uint16)


def _unit_scale(x: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    return (x.astype(np.float32) / 10_000).astype(np.float32)


def _bytes(x: np.ndarray, white: float, rng: np.random.Generator) -> np.ndarray:
    """`white` becomes 255."""
    return np.clip(x.astype(np.float32) / white * 255, 0, 255).astype(np.uint8)


def _limited(x: np.ndarray, limit: float, rng: np.random.Generator) -> np.ndarray:
    return np.minimum(x, np.array(limit, x.dtype))


def _holes(x: np.ndarray, width: float, rng: np.random.Generator) -> np.ndarray:
    return border(x.astype(np.float32), width, np.nan)


def _at_satellite(evidence: Evidence, strength: float, rng: np.random.Generator) -> Evidence:
    """L1C images in place of L2A, with `strength` of the light that the air adds."""
    sensor = evidence.sensors['s2']
    first = next(iter(sensor.images[0].values()))
    seed, size = int(rng.integers(1000)), max(i.shape[0] for i in sensor.images[0].values())
    native = len({i.shape for i in sensor.images[0].values()}) > 1
    images = []
    for index in range(len(sensor.images)):
        ground, sky = (
            scene(SceneConfig(seed=seed, size=size, level=level), index) for level in ('L2A', 'L1C')
        )
        pair = [one.s2 if native else resampled(one) for one in (ground, sky)]
        mixed = {b: (1 - strength) * pair[0][b] + strength * pair[1][b] for b in sensor.declared.bands}
        shift = -sensor.declared.offset.get('B02', 0.0)
        images.append({b: np.rint(x + shift).astype(first.dtype) for b, x in mixed.items()})
    return with_sensor(evidence, 's2', images=tuple(images))


def _order(*order: str) -> Callable[..., Images]:
    """The bands lie in `order` behind the declared names."""

    def change(image: Images, about: Declared, strength: float, rng: np.random.Generator) -> Images:
        names = [band for band in about.bands if band in image]
        stored = [band for band in names if band not in order] + [band for band in order if band in names]
        grid = max(x.shape for x in image.values())
        whole = {
            b: np.repeat(np.repeat(x, -(-grid[0] // len(x)), 0), -(-grid[1] // len(x)), 1)
            for b, x in image.items()
        }
        return {name: whole[band][: grid[0], : grid[1]] for name, band in zip(names, stored)}

    return change


def _without(image: Images, about: Declared, strength: float, rng: np.random.Generator) -> Images:
    return {band: pixels for band, pixels in image.items() if band != 'B05'}


def _b11_twice(image: Images, about: Declared, strength: float, rng: np.random.Generator) -> Images:
    return {**image, 'B12': image['B11'].copy()}


def _thirteen(evidence: Evidence, strength: float, rng: np.random.Generator) -> Evidence:
    """B10 stands on the list of an L2A product."""
    sensor = evidence.sensors['s2']
    images = tuple({**image, 'B10': image['B09']} for image in sensor.images)
    about = dataclasses.replace(sensor.declared, bands=(*sensor.declared.bands, 'B10'))
    return with_sensor(evidence, 's2', declared=about, images=images)


def _shorter(evidence: Evidence, strength: float, rng: np.random.Generator) -> Evidence:
    """`strength` bands are not there at all."""
    sensor = evidence.sensors['s2']
    gone = ('B06', 'B12', 'B11')[: int(strength)]
    bands = tuple(band for band in sensor.declared.bands if band not in gone)
    images = tuple({band: image[band] for band in bands} for image in sensor.images)
    return with_sensor(
        evidence, 's2', declared=dataclasses.replace(sensor.declared, bands=bands), images=images
    )


L2A = ('bigearthnet', 'ssl4eo_s12_1.1', 'ssl4eo_s12_1.0')
S2 = (
    whole('offset of +1000, undeclared', ('s2.offset', 's2.offset_mixed'), each(_plus(1000))),
    fault(
        'offset in a part of the set',
        's2.offset_mixed',
        on_images('s2', each(_plus(1000))),
        SHARE,
        developed=(0.5, 0.08),
        judged=(0.4, 0.06),
    ),
    in_all('offset applied twice', 's2.offset_twice', _plus(2000), '', (1.0,), (1.0,)),
    in_all(
        'wrap after a subtraction',
        's2.wrapped',
        _under,
        'DN subtracted',
        developed=(1000.0, 60.0),
        judged=(800.0, 40.0),
        layouts=('bigearthnet', 'sen12ms', 'ssl4eo_s12_1.0', 'paired_folder'),
    ),
    whole('reflectance in 0..1 for DN', ('s2.scale',), each(_unit_scale)),
    in_all('DN scaled to 8 bits', 's2.scale', _bytes, 'DN that became 255', (3000.0,), (5000.0,)),
    fault('S2 normalised before', 's2.scale', on_images('s2', each(normalised)), SHARE, (1.0,), (1.0,)),
    whole('S2 scaled to its own range', ('s2.scale',), each(own_range)),
    along_border('zeros along a border of S2', 's2.zero', lambda x, w, rng: border(x, w, 0)),
    in_all('S2 clipped at a limit', 's2.saturated', _limited, 'DN', (3000.0, 6000.0), (3200.0, 7000.0)),
    along_border('NaN along a border of S2', 's2.nan', _holes),
    fault('B8A stored last', 's2.order', on_images('s2', _order('B8A')), SHARE, (1.0, 0.5), (1.0, 0.4)),
    whole('a band is missing in patches', ('s2.absent',), _without),
    fault(
        'bands are missing from the list',
        's2.bands',
        _shorter,
        'bands',
        developed=(2.0, 1.0),
        judged=(4.0, 1.0),
        layouts=tuple(layout for layout in LAYOUTS if layout != 'paired_folder'),  # a user's own choice
    ),
    whole('B11 stored as B12 too', ('s2.duplicate',), _b11_twice),
    fault('B10 in L2A', 's2.bands', _thirteen, '', (1.0,), (1.0,), layouts=L2A),
    fault('L1C taken for L2A', 's2.level', _at_satellite, 'of the haze', (1.0, 0.5), (1.0, 0.4), layouts=L2A),
)
