"""Faults of pairs, splits and labels; see `faults.py`."""

import dataclasses

import numpy as np

from data.doctor.evidence import Evidence, Split
from tests.support.faults import (
    SHARE,
    Apply,
    Fault,
    Strengths,
    each,
    hit,
    whole,
    with_sensor,
    with_split,
)


def _moved_grid(evidence: Evidence, metres: float, rng: np.random.Generator) -> Evidence:
    grids = tuple(
        {band: grid._replace(left=grid.left + metres) for band, grid in one.items()}
        for one in evidence.sensors['s2'].grids
    )
    return with_sensor(evidence, 's2', grids=grids)


def _larger(evidence: Evidence, factor: float, rng: np.random.Generator) -> Evidence:
    """The geotransforms of Sentinel-2 state other pixel sizes."""
    grids = tuple(
        {
            band: grid._replace(step_x=grid.step_x * factor, step_y=grid.step_y * factor)
            for band, grid in one.items()
        }
        for one in evidence.sensors['s2'].grids
    )
    return with_sensor(evidence, 's2', grids=grids)


def _other_zone(evidence: Evidence, share: float, rng: np.random.Generator) -> Evidence:
    at = hit(evidence, share, rng)
    grids = tuple(
        {band: grid._replace(epsg=32634) for band, grid in one.items()} if i in at else one
        for i, one in enumerate(evidence.sensors['s2'].grids)
    )
    return with_sensor(evidence, 's2', grids=grids)


def _shifted(evidence: Evidence, pixels: float, rng: np.random.Generator) -> Evidence:
    """Sentinel-1 lies `pixels` to the side, in every pair the same way."""
    distance = round(pixels)
    sensor = evidence.sensors['s1']
    images = tuple({b: np.roll(x, distance, 1) for b, x in image.items()} for image in sensor.images)
    return with_sensor(evidence, 's1', images=images)


def _shuffled(evidence: Evidence, share: float, rng: np.random.Generator) -> Evidence:
    """Sentinel-1 images of other places."""
    at = sorted(hit(evidence, share, rng))
    images = list(evidence.sensors['s1'].images)
    for here, there in zip(at, [*at[1:], at[0]]):
        images[here] = evidence.sensors['s1'].images[there]
    return with_sensor(evidence, 's1', images=tuple(images))


def _flat(x: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    return np.full_like(x, x[0, 0])


def _emptied(evidence: Evidence, strength: float, rng: np.random.Generator) -> Evidence:
    return dataclasses.replace(evidence, splits={**evidence.splits, 'val': Split(0)})


def _overlapping(evidence: Evidence, share: float, rng: np.random.Generator) -> Evidence:
    test, train = evidence.splits['test'], evidence.splits['train']
    ids = test.ids.copy()
    count = max(1, round(share * len(ids)))
    ids[:count] = train.ids[:count]
    return with_split(evidence, 'test', ids=ids)


def _same_ground(evidence: Evidence, share: float, rng: np.random.Generator) -> Evidence:
    test, train = evidence.splits['test'], evidence.splits['train']
    places = test.places.copy()
    count = max(1, round(share * len(places)))
    places[:count] = train.places[:count]
    return with_split(evidence, 'test', places=places)


def _renamed(evidence: Evidence, share: float, rng: np.random.Generator) -> Evidence:
    field, values = next(iter(evidence.labels.items()))
    at = hit(evidence, share, rng)
    changed = [('Coniferous Forrest',) if i in at else names for i, names in enumerate(values)]
    return dataclasses.replace(evidence, labels={field: changed})


def _records(name: str, codes: tuple[str, ...], change: Apply, unit: str = 'of the records') -> Fault:
    """A fault of the list: plain in all records or half of them, marginal in a few."""
    return Fault(name, codes, change, unit, developed=Strengths(1.0, 0.05), judged=Strengths(0.7, 0.04))


BOTH = (
    _records('S2 in another UTM zone', ('pair.crs',), _other_zone, SHARE),
    Fault(
        'grids shifted',
        ('pair.extent',),
        _moved_grid,
        'metres',
        developed=Strengths(300.0, 10.0),
        judged=Strengths(400.0, 8.0),
    ),
    Fault(
        'a wrong geotransform of S2',
        ('pair.geotransform',),
        _larger,
        'times the pixel size',
        developed=Strengths(6.0, 1.5),
        judged=Strengths(10.0, 1.3),
    ),
    Fault(
        'S1 shifted against S2',
        ('pair.shift',),
        _shifted,
        'pixels',
        developed=Strengths(8.0, 3.0),
        judged=Strengths(7.0, 2.5),
    ),
    Fault(
        'S1 of other places',
        ('pair.unrelated',),
        _shuffled,
        SHARE,
        developed=Strengths(1.0, 0.8),
        judged=Strengths(1.0, 0.6),
    ),
    whole('constant images of S1', ('s1.constant',), 's1', each(_flat)),
    whole('constant images of S2', ('s2.constant',), 's2', each(_flat)),
    Fault('a split is empty', ('split.empty',), _emptied, '', Strengths(1.0), Strengths(1.0)),
    _records('splits share records', ('split.overlap',), _overlapping),
    _records('splits share ground', ('split.place',), _same_ground),
    _records('labels outside the nomenclature', ('labels.unknown',), _renamed, SHARE),
)
