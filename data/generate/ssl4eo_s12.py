"""SSL4EO-S12 as published: version 1.1 (zarr files of 64 locations each) and 1.0 (a GeoTIFF a band).

The quirks are there too. Version 1.1: 1000 added to Sentinel-2; Sentinel-1 in the order of its names, which
is not that of its dates, while `time_` is in order. Version 1.0: GeoTIFFs in degrees whose corners lie half
a pixel off, so that bands of different resolution differ; Sentinel-1 a pixel and a half off Sentinel-2.
"""

import datetime
import functools
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import rasterio
import rasterio.warp
from rasterio.transform import Affine

from data.generate import ssl4eo_s12_zarr
from data.generate.parallel import each
from data.generate.scene import SceneConfig, scene
from data.geotiff import Place
from data.ssl4eo_s12.patches import FOLDERS
from data.ssl4eo_s12.schema import PUBLISHED, SIZE, TIMES, Version
from fusmae_jax.errors import InputError

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


def write(
    folder: Path,
    pairs: int,
    config: SceneConfig,
    workers: int = 1,
    version: Version = '1.1',
    samples: int = 64,
) -> dict[str, str]:
    """Writes an archive of generated pairs; returns the settings with which its builder reads it.

    A location has four time stamps, visits of one scene; there are as many locations as hold `pairs`, and
    at least two. In version 1.1, one location in ten is in the split val. `workers`: processes to write with;
    `samples`: locations in a zarr file.
    """
    count = max(2, -(-pairs // TIMES))
    if not 0 < pairs <= MOST * TIMES or samples < 1:
        raise InputError(f'pairs={pairs}, samples={samples}: 1 to {MOST * TIMES:,} pairs, 1 sample or more')
    if config.size != SIZE:
        raise InputError(f'size={config.size}: the patches of SSL4EO-S12 have {SIZE} pixels')
    if version == '1.1':
        locations = [location(index, config.seed) for index in range(count)]
        ssl4eo_s12_zarr.write(folder, locations, config, workers, samples)
    else:
        each(functools.partial(_write_patches, folder=folder, config=config), count, workers)
    return {'root': str(folder), 'version': version, 'optical': f'S2{config.level}'}


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


def _write_patches(index: int, folder: Path, config: SceneConfig) -> None:
    """One location of version 1.0."""
    one = location(index, config.seed)
    left, top = degrees(one.place.epsg, one.place.left, one.place.top)
    right, bottom = degrees(one.place.epsg, one.place.left + EXTENT, one.place.top - EXTENT)
    for time, visit in enumerate(one.visits):
        generated = scene(config, index, time)
        for kind, name, images, off in (
            ('S1', visit.s1_name, generated.s1, 1.5),
            (f'S2{config.level}', visit.s2_name, generated.s2, 0.0),
        ):
            patch = folder / FOLDERS[kind] / one.name / name
            patch.mkdir(parents=True)
            for band, image in images.items():
                across, down = (right - left) / len(image), (bottom - top) / len(image)
                shift = off - 0.5
                transform = Affine(across, 0, left + shift * across, 0, down, top + shift * down)
                _write_degrees(patch / f'{band.replace("B0", "B")}.tif', image, transform)
            about = {'type': 'Image', 'properties': {'system:index': name}}
            (patch / 'metadata.json').write_text(json.dumps(about))


def _write_degrees(file: Path, image: np.ndarray, transform: Affine) -> None:
    rows, columns = image.shape
    with rasterio.open(
        file,
        'w',
        driver='GTiff',
        count=1,
        height=rows,
        width=columns,
        dtype=image.dtype,
        crs='+proj=latlong',
        transform=transform,
    ) as dataset:
        dataset.write(image, 1)
