"""Products as the Copernicus services deliver them: folders NAME.SAFE.

Of Sentinel-2 each band is read at its own pixel size, with the offset and the nodata value that the metadata
state. Of Sentinel-1 GRD nothing is: it is in the geometry of the radar, and whoever calibrated its numbers
without correcting the terrain would put them beside their place by hundreds of metres in mountains.
"""

import functools
import re
import shlex
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

from fusmae_jax.geo import UnusableError
from fusmae_jax.geo.bands import BANDS
from fusmae_jax.geo.stack import Channel, Stack

LARGEST = 16 * 2**20  # bytes of metadata; a product has less than one MiB
# Metres a pixel -> the bands that are measured so. Coarser copies of them, as L2A has, are not read.
NATIVE = {
    '10m': ('B02', 'B03', 'B04', 'B08'),
    '20m': ('B05', 'B06', 'B07', 'B8A', 'B11', 'B12'),
    '60m': ('B01', 'B09', 'B10'),
}
# T33UVR_20220801T100611_B02_10m.jp2 of L2A, T33UVR_20220801T100611_B02.jp2 of L1C.
_FILE = re.compile(r'.*_(B\d[\dA])(?:_(\d\dm))?\.jp2', re.IGNORECASE)
_LEVELS = {'MTD_MSIL1C.xml': 'L1C', 'MTD_MSIL2A.xml': 'L2A'}
# Names in the metadata -> tags as `values.py` reads them; the offsets come with the number of their band.
_OFFSETS = {'L1C': 'RADIO_ADD_OFFSET', 'L2A': 'BOA_ADD_OFFSET'}
_QUANTIFICATION = {'L1C': 'QUANTIFICATION_VALUE', 'L2A': 'BOA_QUANTIFICATION_VALUE'}
_PLAIN = ('PROCESSING_BASELINE', 'PRODUCT_START_TIME', 'PRODUCT_TYPE')


def is_safe(path: Path) -> bool:
    """Whether a path is a folder that is called like a product."""
    return path.suffix.upper() == '.SAFE' and path.is_dir()


def stacks(folder: Path) -> tuple[Stack, ...]:
    """The bands of a product of Sentinel-2, one stack for each pixel size, the finest first.

    Raises UnusableError for a product of another kind, an incomplete one, or one of several tiles.
    """
    return _stacks(folder, folder.stat().st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _stacks(folder: Path, _changed: int) -> tuple[Stack, ...]:
    metadata = [file for file in map(folder.joinpath, _LEVELS) if file.is_file()]
    if not metadata:
        raise _other(folder)
    granules = sorted(path for path in folder.glob('GRANULE/*') if (path / 'IMG_DATA').is_dir())
    if len(granules) != 1:
        advice = 'give a product of one tile, as they are since December 2016'
        raise UnusableError('GRANULE', f'{len(granules)} tiles with IMG_DATA', advice)
    tags = _tags(metadata[0], _LEVELS[metadata[0].name])
    files = {
        (match[1].upper(), (match[2] or '').lower()): file
        for file in sorted((granules[0] / 'IMG_DATA').rglob('*'))
        if (match := _FILE.fullmatch(file.name)) and file.is_file()
    }
    result = []
    for size, bands in NATIVE.items():
        there = [(band, files.get((band, size)) or files.get((band, ''))) for band in bands]
        channels = tuple(Channel(band, file, nodata=0.0) for band, file in there if file)
        if channels:
            result.append(Stack(size, channels, tags, jp2=True))
    if not result:
        raise UnusableError('bands', 'no file of a band in GRANULE/*/IMG_DATA', 'download the product again')
    return tuple(result)


def _tags(file: Path, level: str) -> dict[str, str]:
    """What the metadata of a product say of its numbers and its making."""
    tags, number = {}, 0
    for element in parsed(file).iter():
        name, text = element.tag.rpartition('}')[2], (element.text or '').strip()
        if name == _OFFSETS[level]:
            tags[f'{name}_{element.get("band_id", number)}'] = text
            number += 1
        elif name in (*_PLAIN, _QUANTIFICATION[level]):
            tags.setdefault(name, text)
    return tags


def parsed(file: Path) -> ET.Element:
    """XML without entities, of a bounded size; raises UnusableError for other files."""
    try:
        content = file.read_bytes() if file.stat().st_size <= LARGEST else b'<!DOCTYPE'
        # Entities can name other files, and grow without end.
        if b'<!DOCTYPE' in content or b'<!ENTITY' in content:
            raise ValueError('too large, or with entities')
        return ET.fromstring(content)
    except (OSError, ET.ParseError, ValueError, LookupError) as error:
        message = f'{file.name} cannot be read: {error}'
        raise UnusableError('metadata', message, 'download the product again') from error


def _other(folder: Path) -> UnusableError:
    """What is said of a folder that is no product of Sentinel-2."""
    if not (folder / 'manifest.safe').is_file() or not list(folder.glob('measurement/*')):
        advice = 'give a product of Sentinel-2, L1C or L2A, with its MTD_MSIL*.xml, or GeoTIFFs'
        return UnusableError(
            '', 'no product that is known: there is no MTD_MSIL1C.xml or MTD_MSIL2A.xml', advice
        )
    if '_SLC_' in folder.name or '_RAW_' in folder.name or '_OCN_' in folder.name:
        return UnusableError(
            '', 'a Sentinel-1 product that is not GRD', 'give a GRD product, terrain corrected'
        )
    message = (
        'a Sentinel-1 GRD product: digital numbers in the geometry of the radar, without a place for each '
    )
    return UnusableError('', message + 'pixel', snap_recipe(folder))


def snap_recipe(folder: Path) -> str:
    """The commands of SNAP that make a usable GeoTIFF of a GRD product, and the settings that go with it."""
    source, out = shlex.quote(str(folder / 'manifest.safe')), shlex.quote(f'{folder.stem}.tif')
    steps = [
        f'gpt Apply-Orbit-File -Ssource={source} -PcontinueOnFail=true -t 1.dim',
        'gpt ThermalNoiseRemoval -Ssource=1.dim -t 2.dim',
        'gpt Calibration -Ssource=2.dim -PoutputSigmaBand=true -t 3.dim',
        "gpt Terrain-Correction -Ssource=3.dim -PdemName='Copernicus 30m Global DEM' "
        f'-PpixelSpacingInMeter=10 -PmapProjection={_zone(folder)} -PnodataValueAtSea=false '
        f'-f GeoTIFF -t {out}',
    ]
    advice = f'calibrate it and correct its terrain with SNAP: {" && ".join(steps)}'
    return f"{advice}; the result is linear sigma0 (unit='linear'), 0 where it has nothing (nodata 0)"


def _zone(folder: Path) -> str:
    """The UTM zone around the middle of the footprint in the manifest; EPSG:326NN where that is not known."""
    try:
        corners = [c for text in _coordinates(folder / 'manifest.safe') for c in text.split()]
        places = [tuple(map(float, corner.split(','))) for corner in corners]
        latitude, longitude = (sum(side) / len(places) for side in zip(*places))
    except (UnusableError, ValueError, ZeroDivisionError):
        return 'EPSG:326NN (with the UTM zone for NN)'
    return f'EPSG:{(32600 if latitude >= 0 else 32700) + int((longitude + 180) // 6) % 60 + 1}'


def _coordinates(file: Path) -> Iterator[str]:
    for element in parsed(file).iter():
        if element.tag.rpartition('}')[2] == 'coordinates':
            yield element.text or ''


def level_of(tags: Mapping[str, str]) -> Literal['', 'L1C', 'L2A']:
    """L1C or L2A by the type of the product, '' where nothing says it."""
    kind = tags.get('PRODUCT_TYPE', '').upper()
    if kind == 'S2MSI1C':
        return 'L1C'
    return 'L2A' if kind == 'S2MSI2A' else ''


assert {band for bands in NATIVE.values() for band in bands} == set(BANDS['s2'])
