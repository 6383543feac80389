"""SSL4EO-S12 as published: version 1.1 (zarr files of 64 locations each) and 1.0 (a GeoTIFF a band).

The quirks are there too. Version 1.1: 1000 added to Sentinel-2; Sentinel-1 in the order of its names, which
is not that of its dates, while `time_` is in order. Version 1.0: GeoTIFFs in degrees whose corners lie half
a pixel off, so that bands of different resolution differ; Sentinel-1 a pixel and a half off Sentinel-2.
"""

import functools
import json
from pathlib import Path

import numpy as np
import rasterio
import rasterio.warp
from rasterio.transform import Affine

from fusmae_jax.errors import InputError

from ..ssl4eo_s12.patches import FOLDERS
from ..ssl4eo_s12.schema import SIZE, TIMES, Version
from . import ssl4eo_s12_zarr
from .parallel import each
from .scene import SceneConfig, scene
from .ssl4eo_s12_places import EXTENT, MOST, degrees, location


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


def _write_patches(index: int, folder: Path, config: SceneConfig) -> None:
    """One location of version 1.0."""
    site = location(index, config.seed)
    left, top = degrees(site.place.epsg, site.place.left, site.place.top)
    right, bottom = degrees(site.place.epsg, site.place.left + EXTENT, site.place.top - EXTENT)
    for time, visit in enumerate(site.visits):
        generated = scene(config, index, time)
        for kind, name, images, off in (
            ('S1', visit.s1_name, generated.s1, 1.5),
            (f'S2{config.level}', visit.s2_name, generated.s2, 0.0),
        ):
            patch = folder / FOLDERS[kind] / site.name / name
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
