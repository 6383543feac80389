"""The made-up locations of SSL4EO-S12: their ground, their names, and four visits of each."""

import datetime
from typing import NamedTuple

import numpy as np
import rasterio.warp

from ..geotiff import Place
from ..ssl4eo_s12.schema import PUBLISHED, SIZE, TIMES

EXTENT = SIZE * 10  # metres
MOST = PUBLISHED['1.0']['train'] // TIMES  # locations
ZONES = (*range(32628, 32638), *range(32732, 32738))  # UTM, northern and southern
_COLUMNS = 150  # locations side by side in a zone
_FIRST_DAY = datetime.date(2019, 12, 15)


class Visit(NamedTuple):
    """One time stamp of a location: its two images."""

    s1_name: str
    s2_name: str
    s1_time: datetime.datetime
    s2_time: datetime.datetime


class Location(NamedTuple):
    """A location: its name, its ground, and its four visits by date."""

    number: int  # of its scene
    name: str
    place: Place
    center: tuple[float, float]  # latitude, longitude
    tile: str
    visits: tuple[Visit, ...]


def location(index: int, seed: int) -> Location:
    """The ground, the dates and the names of location `index`; no two share ground or a name."""
    number, which = divmod(index, len(ZONES))
    row, column = divmod(number, _COLUMNS)
    epsg = ZONES[which]
    north = epsg < 32700
    place = Place(epsg, 300_000 + column * EXTENT, (5_100_000 if north else 7_000_000) - row * EXTENT)
    longitude, latitude = degrees(epsg, place.left + EXTENT / 2, place.top - EXTENT / 2)
    tile = f'{epsg % 100:02d}{"TJ"[not north]}{"KLMNPQ"[int(place.left // 100_000) % 6]}L'
    # The factor has no divisor in common with the number of names: every name is taken once.
    name = f'{index * 104_729 % MOST:07d}'
    return Location(index, name, place, (latitude, longitude), tile, _visits(index, seed, tile))


def degrees(epsg: int, easting: float, northing: float) -> tuple[float, float]:
    """Longitude and latitude of a point of a UTM zone."""
    (longitude,), (latitude,) = rasterio.warp.transform(f'EPSG:{epsg}', 'EPSG:4326', [easting], [northing])
    return longitude, latitude


def _visits(index: int, seed: int, tile: str) -> tuple[Visit, ...]:
    rng = np.random.default_rng((seed, index, 12))
    start = _FIRST_DAY + datetime.timedelta(int(rng.integers(180)))
    visits = []
    for season in range(TIMES):
        s2_day = start + datetime.timedelta(91 * season + int(rng.integers(30)))
        s1_day = s2_day + datetime.timedelta(int(rng.integers(-12, 13)))
        s1_satellite, hour = ('S1A', 'S1B')[rng.integers(2)], (5, 17)[rng.integers(2)]
        minute, code = int(rng.integers(60)), int(rng.integers(2**16))
        s2_time = datetime.datetime.combine(s2_day, datetime.time(10, minute, 31))
        s1_time = datetime.datetime.combine(s1_day, datetime.time(hour, minute, 2))
        end, orbit = s1_time + datetime.timedelta(seconds=25), 30_000 + 15 * (s1_day - _FIRST_DAY).days
        stamps = f'{s1_time:%Y%m%dT%H%M%S}_{end:%Y%m%dT%H%M%S}'
        visits.append(
            Visit(
                f'{s1_satellite}_IW_GRDH_1SDV_{stamps}_{orbit:06d}_{8 * orbit:06X}_{code:04X}',
                f'{s2_time:%Y%m%dT%H%M%S}_{s2_time:%Y%m%dT%H}5959_T{tile}',
                s1_time,
                s2_time,
            )
        )
    return tuple(visits)
