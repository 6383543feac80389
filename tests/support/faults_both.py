"""Faults of pairs, splits and labels; see `faults.py`."""

import dataclasses
from collections.abc import Callable

import numpy as np

from fusmae_jax.shipped.data.doctor.evidence import Evidence, Grid, Split
from tests.support.faults import SHARE, Apply, Fault, each, fault, hit, whole, with_sensor, with_split


def _with_grids(evidence: Evidence, change: Callable[[int, Grid], Grid]) -> Evidence:
    """The grids of Sentinel-2 as `change(patch, grid)` makes them."""
    grids = tuple(
        {band: change(i, grid) for band, grid in one.items()}
        for i, one in enumerate(evidence.sensors['s2'].grids)
    )
    return with_sensor(evidence, 's2', grids=grids)


def _moved_grid(evidence: Evidence, metres: float, rng: np.random.Generator) -> Evidence:
    return _with_grids(evidence, lambda i, grid: grid._replace(left=grid.left + metres))


def _larger(evidence: Evidence, factor: float, rng: np.random.Generator) -> Evidence:
    """The geotransforms of Sentinel-2 state other pixel sizes."""
    return _with_grids(
        evidence, lambda i, grid: grid._replace(step_x=grid.step_x * factor, step_y=grid.step_y * factor)
    )


def _other_zone(evidence: Evidence, share: float, rng: np.random.Generator) -> Evidence:
    at = hit(evidence, share, rng)
    return _with_grids(evidence, lambda i, grid: grid._replace(epsg=32634) if i in at else grid)


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


def _shared(field: str) -> Apply:
    """The first records of `test` have the `field` of those of `train`."""

    def apply(evidence: Evidence, share: float, rng: np.random.Generator) -> Evidence:
        train, test = (getattr(evidence.splits[name], field) for name in ('train', 'test'))
        count = max(1, round(share * len(test)))
        return with_split(evidence, 'test', **{field: np.concatenate([train[:count], test[count:]])})

    return apply


def _renamed(evidence: Evidence, share: float, rng: np.random.Generator) -> Evidence:
    field, values = next(iter(evidence.labels.items()))
    at = hit(evidence, share, rng)
    changed = [('Coniferous Forrest',) if i in at else names for i, names in enumerate(values)]
    return dataclasses.replace(evidence, labels={field: changed})


def _records(name: str, code: str, change: Apply, unit: str = 'of the records') -> Fault:
    """A fault of the list: plain in all records or half of them, marginal in a few."""
    return fault(name, code, change, unit, developed=(1.0, 0.05), judged=(0.7, 0.04))


BOTH = (
    _records('S2 in another UTM zone', 'pair.crs', _other_zone, SHARE),
    fault('grids shifted', 'pair.extent', _moved_grid, 'metres', (300.0, 10.0), (400.0, 8.0)),
    fault(
        'a wrong geotransform of S2',
        'pair.geotransform',
        _larger,
        'times the pixel size',
        (6.0, 1.5),
        (10.0, 1.3),
    ),
    fault('S1 shifted against S2', 'pair.shift', _shifted, 'pixels', (8.0, 3.0), (7.0, 2.5)),
    fault('S1 of other places', 'pair.unrelated', _shuffled, SHARE, (1.0, 0.8), (1.0, 0.6)),
    whole('constant images of S1', ('s1.constant',), each(_flat)),
    whole('constant images of S2', ('s2.constant',), each(_flat)),
    fault('a split is empty', 'split.empty', _emptied, '', (1.0,), (1.0,)),
    _records('splits share records', 'split.overlap', _shared('ids')),
    _records('splits share ground', 'split.place', _shared('places')),
    _records('labels outside the nomenclature', 'labels.unknown', _renamed, SHARE),
)
