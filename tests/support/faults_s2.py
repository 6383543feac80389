"""Faults of Sentinel-2; see `faults.py`."""

import dataclasses
from collections.abc import Callable

import numpy as np

from data.doctor.evidence import Declared, Evidence
from data.generate.scene import SceneConfig, resampled, scene
from tests.support.faults import (
    LAYOUTS,
    SHARE,
    SIDE,
    Fault,
    Images,
    Strengths,
    border,
    each,
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
    whole('offset of +1000, undeclared', ('s2.offset', 's2.offset_mixed'), 's2', each(_plus(1000))),
    Fault(
        'offset in a part of the set',
        ('s2.offset_mixed',),
        on_images('s2', each(_plus(1000))),
        SHARE,
        developed=Strengths(0.5, 0.08),
        judged=Strengths(0.4, 0.06),
    ),
    Fault(
        'offset applied twice',
        ('s2.offset_twice',),
        lambda e, s, rng: on_images('s2', each(_plus(2000)))(e, 1.0, rng),
        '',
        developed=Strengths(1.0),
        judged=Strengths(1.0),
    ),
    Fault(
        'wrap after a subtraction',
        ('s2.wrapped',),
        on_images('s2', each(_under), by_share=False),
        'DN subtracted',
        developed=Strengths(1000.0, 60.0),
        judged=Strengths(800.0, 40.0),
        layouts=('bigearthnet', 'sen12ms', 'ssl4eo_s12_1.0', 'paired_folder'),
    ),
    whole('reflectance in 0..1 for DN', ('s2.scale',), 's2', each(_unit_scale)),
    Fault(
        'DN scaled to 8 bits',
        ('s2.scale',),
        on_images('s2', each(_bytes), by_share=False),
        'DN that became 255',
        developed=Strengths(3000.0),
        judged=Strengths(5000.0),
    ),
    Fault(
        'S2 normalised before',
        ('s2.scale',),
        on_images('s2', each(normalised)),
        SHARE,
        developed=Strengths(1.0),
        judged=Strengths(1.0),
    ),
    whole('S2 scaled to its own range', ('s2.scale',), 's2', each(own_range)),
    Fault(
        'zeros along a border of S2',
        ('s2.zero',),
        on_images('s2', each(lambda x, w, rng: border(x, w, 0)), by_share=False),
        SIDE,
        developed=Strengths(0.1, 0.01),
        judged=Strengths(0.08, 0.015),
    ),
    Fault(
        'S2 clipped at a limit',
        ('s2.saturated',),
        on_images('s2', each(_limited), by_share=False),
        'DN',
        developed=Strengths(3000.0, 6000.0),
        judged=Strengths(3200.0, 7000.0),
    ),
    Fault(
        'NaN along a border of S2',
        ('s2.nan',),
        on_images('s2', each(_holes), by_share=False),
        SIDE,
        developed=Strengths(0.1, 0.01),
        judged=Strengths(0.08, 0.015),
    ),
    Fault(
        'B8A stored last',
        ('s2.order',),
        on_images('s2', _order('B8A')),
        SHARE,
        developed=Strengths(1.0, 0.5),
        judged=Strengths(1.0, 0.4),
    ),
    whole('a band is missing in patches', ('s2.absent',), 's2', _without),
    Fault(
        'bands are missing from the list',
        ('s2.bands',),
        _shorter,
        'bands',
        developed=Strengths(2.0, 1.0),
        judged=Strengths(4.0, 1.0),
        layouts=tuple(layout for layout in LAYOUTS if layout != 'paired_folder'),  # a user's own choice
    ),
    whole('B11 stored as B12 too', ('s2.duplicate',), 's2', _b11_twice),
    Fault(
        'B10 in L2A',
        ('s2.bands',),
        _thirteen,
        '',
        developed=Strengths(1.0),
        judged=Strengths(1.0),
        layouts=L2A,
    ),
    Fault(
        'L1C taken for L2A',
        ('s2.level',),
        _at_satellite,
        'of the haze',
        developed=Strengths(1.0, 0.5),
        judged=Strengths(1.0, 0.4),
        layouts=L2A,
    ),
)
