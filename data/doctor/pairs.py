"""Checks of the grids: all images of a pair must lie on the same ground (metadata, no pixels)."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from data.doctor.evidence import Evidence, Grid
from data.doctor.findings import Finding, Severity, share
from fusmae_jax.geo import rio

REMEDY = 'reproject all images of a pair to one grid, or unpack the pair again'
NORTH_UP = 'bring them onto a grid that is north up: ' + rio.warp(crs='EPSG:326NN', step=10)


class Problem(NamedTuple):
    """What is wrong with the grids of one pair."""

    code: str
    what: str
    found: str
    remedy: str = REMEDY
    severity: Severity = 'error'


def check(evidence: Evidence) -> Iterator[Finding]:
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
    problems: dict[str, list[tuple[str, Problem]]] = {}
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


def _problems(grids: Mapping[str, Grid], slack: float) -> Iterator[Problem]:
    first, reference = next(iter(grids.items()))
    finest = min(abs(grid.step_x) for grid in grids.values())
    for name, grid in grids.items():
        if not grid.placed:
            yield _nowhere(name)
            return
        if grid.turned or grid.step_y <= 0:
            yield Problem('pair.grid', 'Images are not north up', name, NORTH_UP)
            return
        if grid.epsg is None:
            yield Problem('pair.crs', 'Images have no reference system with an EPSG code', name)
            return
        if grid.epsg != reference.epsg:
            found = f'{first} has EPSG {reference.epsg}, {name} EPSG {grid.epsg}'
            yield Problem('pair.crs', 'The images of a pair are in different reference systems', found)
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
        yield Problem('pair.size', what, f'{sorted(shapes)}')


def _pixels(grid: Grid) -> tuple[int, int]:
    return grid.rows, grid.columns


def _distance(one: Grid, other: Grid) -> float:
    return max(abs(a - b) for a, b in zip(one.box, other.box))


def _nowhere(name: str) -> Problem:
    return Problem(
        'pair.place',
        'Images have no place on the ground',
        f'{name}: no geotransform, so nothing tells whether a pair is one, nor whether splits share ground',
        rio.georeference('FILE.tif'),
        'warning',
    )


def _elsewhere(first: str, reference: Grid, name: str, grid: Grid) -> Problem:
    """Two images that should cover the same ground: one may be said to be larger than it is."""
    one, other = (
        rio.Placed(f'{n.replace(" ", "_")}.tif', g.rows, g.columns, g.left, g.top, g.step_x)
        for n, g in ((first, reference), (name, grid))
    )
    if remedy := rio.wrong_transform(one, other):
        return Problem(
            'pair.geotransform',
            'The images of a pair have as many pixels, but pixels of another size: one geotransform is wrong',
            f'{first}: {one.rows} x {one.columns} pixels of {one.step:g} m from {one.left:.10g}, '
            f'{one.top:.10g}; {name}: as many of {other.step:g} m from {other.left:.10g}, {other.top:.10g}',
            remedy,
        )
    found = f'{first} covers {_box(reference)}, {name} {_box(grid)} (left, top, right, bottom)'
    left, top, right, bottom = grid.box
    onto = rio.warp(one.file, crs=f'EPSG:{grid.epsg}', bounds=(left, bottom, right, top), step=one.step)
    return Problem(
        'pair.extent',
        'The images of a pair cover different ground',
        found,
        f'unpack the pair again, or bring one onto the other: {onto}',
    )


def _box(grid: Grid) -> str:
    return ' '.join(f'{value:.10g}' for value in grid.box)
