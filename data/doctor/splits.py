"""Checks of records against each other: the images of a pair, and the splits.

Checks of the grids: all images of a pair must lie on the same ground (metadata, no pixels).

Checks of the list of records: splits, orbits, labels.
"""

from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from fusmae_jax.geo import rio
from fusmae_jax.input.place import DEGREES

from .evidence import Evidence, Grid, Split
from .findings import Finding, Severity, share

REMEDY = 'reproject all images of a pair to one grid, or unpack the pair again'
NORTH_UP = 'bring them onto a grid that is north up: ' + rio.warp(crs='EPSG:326NN', step=10)


class GridProblem(NamedTuple):
    """What is wrong with the grids of one pair."""

    code: str
    what: str
    found: str
    remedy: str = REMEDY
    severity: Severity = 'error'


def check_pairs(evidence: Evidence) -> Iterator[Finding]:
    """Reference systems, extents and orientation, within each sensor and between the two."""
    patches = _grids(evidence)
    if not patches:
        if any(sensor.images for sensor in evidence.sensors.values()):
            yield Finding(
                'pair.grid',
                'cannot tell',
                'Whether the images of a pair lie on the same ground',
                'nothing is known of the grids beyond their size',
                needs='metadata',
            )
        return
    problems: dict[str, list[tuple[str, GridProblem]]] = {}
    for name, grids in patches.items():
        for problem in _problems(grids, evidence.slack):
            problems.setdefault(problem.what, []).append((name, problem))
    for what, cases in problems.items():
        name, first = cases[0]
        yield Finding(
            first.code,
            first.severity,
            what,
            f'{share(len(cases), len(patches))} pairs; {name}: {first.found}',
            first.remedy,
            needs='metadata',
        )


def _grids(evidence: Evidence) -> dict[str, dict[str, Grid]]:
    """Name of a pair -> image -> its grid."""
    result: dict[str, dict[str, Grid]] = {}
    for modality, sensor in evidence.sensors.items():
        for name, grids in zip(evidence.names, sensor.grids):
            result.setdefault(name, {}).update({f'{modality} {b}': grid for b, grid in grids.items()})
    return {name: grids for name, grids in result.items() if grids}


def _problems(grids: Mapping[str, Grid], slack: float) -> Iterator[GridProblem]:
    first, reference = next(iter(grids.items()))
    finest = min(abs(grid.step_x) for grid in grids.values())
    # One problem a pair, the first of these: each makes the later ones meaningless.
    for name, grid in grids.items():
        if not grid.placed:
            yield _nowhere(name)
            return
        if grid.turned or grid.step_y <= 0:
            yield GridProblem('pair.grid', 'Images are not north up', name, NORTH_UP)
            return
        if grid.epsg is None:
            yield GridProblem('pair.crs', 'Images have no reference system with an EPSG code', name)
            return
        if grid.epsg != reference.epsg:
            message = f'{first} has EPSG {reference.epsg}, {name} EPSG {grid.epsg}'
            yield GridProblem('pair.crs', 'The images of a pair are in different reference systems', message)
            return
    # Beyond half a pixel, the nearest pixels of the two are no longer the same ground.
    apart = [n for n, g in grids.items() if _distance(g, reference) > slack * finest]
    if apart:
        # Of several bands, one with as many pixels tells most.
        same = [n for n in apart if _pixels(grids[n]) == _pixels(reference)]
        name = (same or apart)[0]
        yield _elsewhere(first, reference, name, grids[name])
        return
    shapes = {(round(abs(g.step_x), 6), g.rows, g.columns) for g in grids.values()}
    if len({shape[0] for shape in shapes}) != len(shapes):
        what = 'Bands of one pixel size differ in their number of pixels'
        yield GridProblem('pair.size', what, f'{sorted(shapes)}')


def _pixels(grid: Grid) -> tuple[int, int]:
    return grid.rows, grid.columns


def _distance(grid: Grid, other: Grid) -> float:
    return max(abs(a - b) for a, b in zip(grid.box, other.box))


def _nowhere(name: str) -> GridProblem:
    return GridProblem(
        'pair.place',
        'Images have no place on the ground',
        f'{name}: no geotransform, so nothing tells whether a pair is one, nor whether splits share ground',
        rio.georeference('FILE.tif'),
        'warning',
    )


def _elsewhere(first: str, reference: Grid, name: str, grid: Grid) -> GridProblem:
    """Two images that should cover the same ground: one may be said to be larger than it is."""
    placed, other = (
        rio.Placed(f'{n.replace(" ", "_")}.tif', g.rows, g.columns, g.left, g.top, g.step_x)
        for n, g in ((first, reference), (name, grid))
    )
    if remedy := rio.wrong_transform(placed, other):
        return GridProblem(
            'pair.geotransform',
            'The images of a pair have as many pixels, but pixels of another size: one geotransform is wrong',
            f'{first}: {placed.rows} x {placed.columns} pixels of {placed.step:g} m from {placed.left:.10g}, '
            f'{placed.top:.10g}; {name}: as many of {other.step:g} m from '
            f'{other.left:.10g}, {other.top:.10g}',
            remedy,
        )
    message = f'{first} covers {_box(reference)}, {name} {_box(grid)} (left, top, right, bottom)'
    left, top, right, bottom = grid.box
    onto = rio.warp(placed.file, crs=f'EPSG:{grid.epsg}', bounds=(left, bottom, right, top), step=placed.step)
    return GridProblem(
        'pair.extent',
        'The images of a pair cover different ground',
        message,
        f'unpack the pair again, or bring one onto the other: {onto}',
    )


def _box(grid: Grid) -> str:
    return ' '.join(f'{value:.10g}' for value in grid.box)


MIN_RECORDS = 30  # of a split, for its orbit mix
ORBIT_GAP = 0.15  # difference of the share of descending passes that is worth a warning
SIGMA = 4.0  # ... and it must be this many standard errors


def check_splits(evidence: Evidence) -> Iterator[Finding]:
    """All findings about splits, orbits and labels."""
    yield from _sizes(evidence.splits)
    yield from _overlaps(evidence.splits)
    yield from _orbits(evidence)
    for field, values in evidence.labels.items():
        yield from _labels(field, values, evidence.classes.get(field, ()))


def _sizes(splits: Mapping[str, Split]) -> Iterator[Finding]:
    empty = [name for name, split in splits.items() if not split.records]
    if empty:
        yield Finding(
            'split.empty',
            'error',
            'Splits are empty',
            f'{", ".join(empty)}; all: ' + ', '.join(f'{n} {s.records:,}' for n, s in splits.items()),
            'check the names of splits and lists: a misspelt one (val, validation) leaves a split without '
            'records',
            needs='metadata',
        )


def _overlaps(splits: Mapping[str, Split]) -> Iterator[Finding]:
    for (left, split), (right, other) in combinations(splits.items(), 2):
        if split.ids is not None and other.ids is not None:
            common = np.intersect1d(split.ids, other.ids)
            if len(common):
                yield Finding(
                    'split.overlap',
                    'error',
                    f'The splits {left} and {right} share records',
                    f'{len(common):,} names, such as {_text(common[0])}',
                    'every record belongs to one split; figures on a split that was trained on mean nothing',
                    needs='metadata',
                )
        if split.places is not None and other.places is not None:
            common = np.isin(_rows(other.places), _rows(split.places)).sum()
            if common:
                yield Finding(
                    'split.place',
                    'warning',
                    f'The splits {left} and {right} share ground',
                    f'{share(common, other.records)} records of {right} lie exactly where a record of '
                    f'{left} lies',
                    'split by place, or state it beside every figure on these splits',
                    needs='metadata',
                )
    for name, split in splits.items():
        if split.ids is not None and len(split.ids) != len(np.unique(split.ids)):
            yield Finding(
                'split.repeated',
                'error',
                f'The split {name} holds records more than once',
                f'{len(split.ids) - len(np.unique(split.ids)):,} of {len(split.ids):,}',
                'convert again from a list without repetitions',
                needs='metadata',
            )


def _rows(places: np.ndarray) -> np.ndarray:
    """Places (n, 3: EPSG, left, top) as one value each."""
    # To a tenth of a metre, also where the corner is in degrees.
    steps = np.where(places[:, :1] == DEGREES, 1e6, 10.0)
    whole = np.ascontiguousarray(np.rint(places * steps).astype(np.int64))
    return whole.view([('', np.int64)] * 3).reshape(-1)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def descending(hours: np.ndarray) -> np.ndarray:
    """Which passes of Sentinel-1 went south: its orbit crosses the equator at 6 and 18 h local solar time."""
    return hours[np.isfinite(hours)] < 12


def _orbits(evidence: Evidence) -> Iterator[Finding]:
    known = {
        name: descending(split.s1_hours)
        for name, split in evidence.splits.items()
        if split.s1_hours is not None and np.isfinite(split.s1_hours).any()
    }
    if not known:
        if 's1' in evidence.sensors and evidence.names:
            yield Finding(
                's1.orbit',
                'cannot tell',
                'Sentinel-1: ascending or descending passes',
                'no acquisition times with a place',
                'pixels do not show it; keep the names or times of the products',
                needs='metadata',
            )
        return
    mix = ', '.join(f'{name} {share(d.sum(), len(d))}' for name, d in known.items())
    declared = evidence.sensors['s1'].declared.product.orbit if 's1' in evidence.sensors else ''
    passes = np.concatenate(list(known.values())).mean()
    wrong = {'asc': passes > 0.02, 'desc': passes < 0.98}.get(declared, False)
    yield Finding(
        's1.orbit',
        'warning' if wrong else 'note',
        f'Sentinel-1: declared as {declared} passes alone, but there are others'
        if wrong
        else 'Sentinel-1: passes by orbit',
        f'descending, by local solar time: {mix}',
        "declare orbit='mixed', or leave the others out" if wrong else '',
        needs='metadata',
    )
    for (left, orbits), (right, other) in combinations(known.items(), 2):
        if _differ(orbits, other):
            yield Finding(
                's1.orbit',
                'warning',
                f'Sentinel-1: the splits {left} and {right} have different mixes of ascending and '
                'descending passes',
                f'descending, by local solar time: {mix}',
                'slopes and fields look different from the other side: balance splits, or report per orbit',
                needs='metadata',
            )


def _differ(orbits: np.ndarray, other: np.ndarray) -> bool:
    """Whether two mixes differ by more than ORBIT_GAP, and by more than chance explains."""
    if min(len(orbits), len(other)) < MIN_RECORDS:
        return False
    gap, both = abs(orbits.mean() - other.mean()), np.concatenate([orbits, other]).mean()
    error = np.sqrt(both * (1 - both) * (1 / len(orbits) + 1 / len(other)))
    return bool(gap > ORBIT_GAP and gap > SIGMA * error)


def _labels(field: str, values: Any, classes: tuple[Any, ...]) -> Iterator[Finding]:
    if isinstance(values, np.ndarray):
        yield from _multi_hot(field, values)
        return
    valid = set(classes)
    unknown: dict[Any, int] = {}
    for names in values:
        for name in set(names) - valid:
            unknown[name] = unknown.get(name, 0) + 1
    if unknown and valid:
        shown = ', '.join(f'{name!r} ({count})' for name, count in list(unknown.items())[:5])
        yield Finding(
            'labels.unknown',
            'error',
            f'Labels that are not in the nomenclature ({field})',
            f'{len(unknown)} names: {shown}; the nomenclature has {len(valid)} classes',
            'choose the nomenclature that the labels come from, or map them to it',
            needs='metadata',
        )
    empty = sum(not len(names) for names in values)
    if empty:
        yield _unlabelled(field, empty, len(values))


def _multi_hot(field: str, values: np.ndarray) -> Iterator[Finding]:
    odd = ~np.isin(values, (0, 1)).all(1)
    if odd.any():
        yield Finding(
            'labels.unknown',
            'error',
            f'Multi-hot labels other than 0 and 1 ({field})',
            f'{share(odd.sum(), len(values))} records',
            'convert again from the original labels',
            needs='metadata',
        )
    empty = (values == 0).all(1).sum()
    if empty:
        yield _unlabelled(field, int(empty), len(values))


def _unlabelled(field: str, count: int, total: int) -> Finding:
    return Finding(
        'labels.none',
        'warning' if count > 0.5 * total else 'note',
        f'Records without a label ({field})',
        f'{share(count, total)}',
        'leave them out of classification',
        needs='metadata',
    )
