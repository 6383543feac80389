"""Checks of the grids: all images of a pair must lie on the same ground (metadata, no pixels)."""

from collections.abc import Iterator, Mapping

from data.doctor.evidence import Evidence, Grid
from data.doctor.findings import Finding, share

REMEDY = 'reproject all images of a pair to one grid, or unpack the pair again'


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
    problems: dict[tuple[str, str], list[str]] = {}
    for name, grids in patches.items():
        for code, what, found in _problems(grids, evidence.slack):
            problems.setdefault((code, what), []).append(f'{name}: {found}')
    for (code, what), lines in problems.items():
        yield Finding(
            code,
            'error',
            what,
            f'{share(len(lines), len(patches))} pairs; {lines[0]}',
            REMEDY,
            needs='metadata',
        )


def _grids(evidence: Evidence) -> dict[str, dict[str, Grid]]:
    """Name of a pair -> image -> its grid."""
    result: dict[str, dict[str, Grid]] = {}
    for modality, sensor in evidence.sensors.items():
        for name, grids in zip(evidence.names, sensor.grids):
            result.setdefault(name, {}).update({f'{modality} {b}': grid for b, grid in grids.items()})
    return {name: grids for name, grids in result.items() if grids}


def _problems(grids: Mapping[str, Grid], slack: float) -> Iterator[tuple[str, str, str]]:
    first, reference = next(iter(grids.items()))
    finest = min(abs(grid.step_x) for grid in grids.values())
    for name, grid in grids.items():
        if grid.turned or grid.step_y <= 0:
            yield 'pair.grid', 'Images are not north up', f'{name}'
            return
        if grid.epsg is None:
            yield 'pair.crs', 'Images have no reference system with an EPSG code', f'{name}'
            return
        if grid.epsg != reference.epsg:
            found = f'{first} has EPSG {reference.epsg}, {name} EPSG {grid.epsg}'
            yield 'pair.crs', 'The images of a pair are in different reference systems', found
            return
    for name, grid in grids.items():
        # Beyond half a pixel, the nearest pixels of the two are no longer the same ground.
        apart = max(abs(a - b) for a, b in zip(grid.box, reference.box))
        if apart > slack * finest:
            found = f'{first} covers {_box(reference)}, {name} {_box(grid)} (left, top, right, bottom)'
            yield 'pair.extent', 'The images of a pair cover different ground', found
            return
    shapes = {(round(abs(g.step_x), 6), g.rows, g.columns) for g in grids.values()}
    if len({shape[0] for shape in shapes}) != len(shapes):
        yield 'pair.size', 'Bands of one pixel size differ in their number of pixels', f'{sorted(shapes)}'


def _box(grid: Grid) -> str:
    return ' '.join(f'{value:.10g}' for value in grid.box)
