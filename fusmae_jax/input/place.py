"""Places of records: a rectangle of ground each, and which rectangles lie on common ground.

A place is text, so that it can be sorted, stored and compared like a name: EPSG code, easting and northing of
the upper left corner, width and height in metres. In EPSG:4326 the corner is longitude and latitude.
"""

import numpy as np

from fusmae_jax.input.contract import Contract
from fusmae_jax.installed import need

DEGREES = 4326
_EDGE = 0.01  # of a side: rectangles that share less are neighbours
# Across reference systems centres are compared. A metre of a projection is up to 0.1 % off one of ground, and
# grids stand at an angle to each other.
_NEAR = 0.97
_METRES = 111_320.0  # in a degree of latitude
_A, _E2 = 6_378_137.0, 6.69437999014e-3  # WGS 84: semi-major axis in metres, squared eccentricity


def describe(contract: Contract, epsg: np.ndarray, upper_left: np.ndarray) -> list[bytes]:
    """The places of records; empty for a record without one.

    Args:
        contract: of the data set; its largest image gives the size of the ground.
        epsg: (records,) codes.
        upper_left: (records, 2) easting and northing, metres; of EPSG:4326 longitude and latitude, degrees.
    """
    sizes = [(g.size[1] * g.resolution, g.size[0] * g.resolution) for g in contract.groups.values()]
    if not sizes:
        return [b''] * len(epsg)
    width, height = (max(side) for side in zip(*sizes))
    known = (epsg > 0) & np.isfinite(upper_left).all(axis=1)
    return [
        b'%d %.10g %.10g %g %g' % (code, left, top, width, height) if there else b''
        for code, (left, top), there in zip(epsg.tolist(), upper_left.tolist(), known.tolist())
    ]


def overlap(here: np.ndarray, there: np.ndarray) -> np.ndarray:
    """Which of the places `here` share ground with any place `there`: (here,) bool.

    Rectangles of one reference system are compared exactly; across systems, where the centres are nearer
    than half the sum of the sides (a common corner of less than a tenth of the ground is not seen).
    """
    shared = np.zeros(len(here), bool)
    wanted = np.flatnonzero(here != b'')
    there = there[there != b'']
    if wanted.size and there.size:
        ours, theirs = _numbers(here[wanted]), _numbers(there)
        shared[wanted] = _rectangles(ours, theirs)
        rest = wanted[~shared[wanted]]
        shared[rest] = _centres(_numbers(here[rest]), theirs)
    return shared


def _numbers(places: np.ndarray) -> np.ndarray:
    """(places, 5): EPSG, left, top, width, height."""
    return np.array([place.split() for place in places.tolist()], np.float64).reshape(-1, 5)


def _rectangles(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Which of ours overlap one of theirs in the same projected system."""
    shared = np.zeros(len(ours), bool)
    for code in np.intersect1d(ours[:, 0], theirs[:, 0]):
        if code == DEGREES:  # sides are metres
            continue
        rows = np.flatnonzero(ours[:, 0] == code)
        shared[rows] = _nearer(ours[rows], theirs[theirs[:, 0] == code], _middle, 1 - _EDGE, np.inf)
    return shared


def _middle(places: np.ndarray) -> np.ndarray:
    """(places, 2): easting and northing of the centres."""
    return places[:, 1:3] + places[:, 3:5] * (0.5, -0.5)


def _centres(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Which of ours have their centre near one of theirs, in any other system."""
    near = np.zeros(len(ours), bool)
    for code in np.unique(ours[:, 0]):
        # Of the same projected system all that overlaps is known; what is near there only touches.
        others = theirs[(theirs[:, 0] != code) | (code == DEGREES)]
        rows = np.flatnonzero(ours[:, 0] == code)
        if len(others):
            near[rows] = _nearer(ours[rows], others, _geocentric, _NEAR, 2)
    return near


def _nearer(ours: np.ndarray, theirs: np.ndarray, point, limit: float, norm: float) -> np.ndarray:
    """Which of ours lie nearer to one of theirs than `limit` times half the sum of their sides."""
    need('eval', 'comparing the places of images', 'scipy')
    from scipy.spatial import KDTree

    near = np.zeros(len(ours), bool)
    for mine in np.unique(ours[:, 3:5], axis=0):
        rows = np.flatnonzero((ours[:, 3:5] == mine).all(axis=1))
        for other in np.unique(theirs[:, 3:5], axis=0):
            targets = point(theirs[(theirs[:, 3:5] == other).all(axis=1)])
            points = point(ours[rows])
            # Sides may differ from each other: each axis of a plane counts in its own.
            unit = (mine + other) / 2 if points.shape[1] == 2 else (mine + other).min() / 2
            targets, points = targets / unit, points / unit
            targets = targets[np.isfinite(targets).all(axis=1)]
            usable = np.isfinite(points).all(axis=1)
            if len(targets) and usable.any():
                distance, _ = KDTree(targets).query(points[usable], p=norm, distance_upper_bound=limit)
                near[rows[usable]] |= np.isfinite(distance)
    return near


def _geocentric(places: np.ndarray) -> np.ndarray:
    """(places, 3): metres from the middle of the Earth; NaN for a system that is not known."""
    longitude, latitude = (np.radians(values) for values in _longitude_latitude(places))
    normal = _A / np.sqrt(1 - _E2 * np.sin(latitude) ** 2)
    flat = normal * np.cos(latitude)
    up = normal * (1 - _E2) * np.sin(latitude)
    return np.stack([flat * np.cos(longitude), flat * np.sin(longitude), up], axis=1)


def _longitude_latitude(places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of the centres, degrees."""
    need('eval', 'comparing the places of images', 'rasterio')
    from rasterio.crs import CRS
    from rasterio.errors import CRSError
    from rasterio.warp import transform

    longitude, latitude = np.full(len(places), np.nan), np.full(len(places), np.nan)
    for code in np.unique(places[:, 0]):
        rows = places[:, 0] == code
        if code == DEGREES:
            top = places[rows, 2]
            latitude[rows] = top - places[rows, 4] / 2 / _METRES
            across = _METRES * np.cos(np.radians(top))
            longitude[rows] = places[rows, 1] + places[rows, 3] / 2 / across
            continue
        try:
            system = CRS.from_epsg(int(code))
        except CRSError:
            continue
        longitude[rows], latitude[rows] = transform(system, CRS.from_epsg(DEGREES), *_middle(places[rows]).T)
    return longitude, latitude
