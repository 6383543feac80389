"""Items of STAC on a local disk: which of their assets hold which bands, and what the numbers mean.

Nothing is fetched: an asset is a GeoTIFF below the folder of its item. Scale, offset and nodata come from
`raster:bands` (STAC 1.0) or `bands` (1.1), held against the tags of the files.
"""

import functools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import rasterio.errors

from fusmae_jax.geo import UnusableError
from fusmae_jax.geo.bands import BANDS, band_of
from fusmae_jax.geo.formats import check_source
from fusmae_jax.geo.grid import grid_of
from fusmae_jax.geo.stack import Channel, Stack, open_file

LARGEST = 16 * 2**20  # bytes; items have a few kB
# Names of assets in catalogues that call bands by their colour; of Sentinel-2 each is one band.
COLOURS = {
    'coastal': 'B01',
    'blue': 'B02',
    'green': 'B03',
    'red': 'B04',
    'rededge1': 'B05',
    'rededge2': 'B06',
    'rededge3': 'B07',
    'nir': 'B08',
    'nir08': 'B8A',
    'nir09': 'B09',
    'cirrus': 'B10',
    'swir16': 'B11',
    'swir22': 'B12',
}
# Property -> tag as `values.py` and `embed/stac.py` read it.
_TAGS = {
    's2:processing_baseline': 'PROCESSING_BASELINE',
    'datetime': 'ACQUISITIONDATETIME',
    's2:product_type': 'PRODUCT_TYPE',
}


def is_item(path: Path) -> bool:
    """Whether a path is a file that is called like an item."""
    return path.suffix.lower() in ('.json', '.geojson') and path.is_file()


def stacks(file: Path, modality: str) -> tuple[Stack, ...]:
    """The bands of one sensor, one stack for each pixel size, the finest first.

    Raises UnusableError for what is no item, or has no band of the sensor on this disk.
    """
    return _stacks(file, modality, file.stat().st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _stacks(file: Path, modality: str, _changed: int) -> tuple[Stack, ...]:
    item = _item(file)
    chosen: dict[str, tuple[float, Channel]] = {}
    for channel in _channels(file, item, modality):
        size = _pixel(channel.file)
        # Of copies of one band the finest.
        if channel.band not in chosen or size < chosen[channel.band][0]:
            chosen[channel.band] = size, channel
    if not chosen:
        names = ', '.join(sorted(item['assets'])) or 'none'
        message = f'no asset is a band of {modality} as a GeoTIFF on this disk (assets: {names})'
        raise UnusableError(
            'assets', message, 'name assets or their bands B02, B8A, vv, ..., by relative href'
        )
    tags = _tags(item['properties'])
    sizes = sorted({size for size, _ in chosen.values()})
    return tuple(
        Stack(f'{size:g}m', tuple(c for at, c in chosen.values() if at == size), tags) for size in sizes
    )


def _item(file: Path) -> Mapping[str, Any]:
    try:
        if file.stat().st_size > LARGEST:
            raise ValueError(f'{file.stat().st_size:,} bytes')
        item = json.loads(file.read_bytes())
        if item['type'] != 'Feature' or not item['stac_version']:
            raise ValueError('another type')
        if not isinstance(item['assets'], dict) or not isinstance(item['properties'], dict):
            raise ValueError('assets or properties are none')
    except (OSError, ValueError, KeyError, TypeError) as error:
        message = f'is no item of STAC ({type(error).__name__}: {error})'
        raise UnusableError('', message, 'give an item, or a GeoTIFF') from error
    return item


def _channels(file: Path, item: Mapping[str, Any], modality: str) -> Iterator[Channel]:
    for key, asset in item['assets'].items():
        if not isinstance(asset, dict):
            continue
        named = asset.get('bands') or asset.get('eo:bands') or [{}]
        # Of fewer entries than bands nothing is said of the last ones.
        raster = [*(asset.get('raster:bands') or ()), *([{}] * len(named))]
        for index, (about, numbers) in enumerate(zip(named, raster), 1):
            # An asset of one band may be called like it; the name of the band itself comes first.
            texts = [str(about.get('name', '')), *([key] if len(named) == 1 else [])]
            if band := next((b for text in texts if (b := _band(text, modality))), ''):
                if not _is_tiff(asset):
                    continue
                stated = _numbers(key, asset, about, numbers)
                yield Channel(band, _path(file, key, asset), index, **stated)


def _band(text: str, modality: str) -> str:
    if modality not in BANDS:
        # Any asset could be a band of a sensor whose bands nobody has named.
        return ''
    known = band_of(text, modality)
    return known or (COLOURS.get(text.lower(), '') if modality == 's2' else '')


def _is_tiff(asset: Mapping[str, Any]) -> bool:
    """Whether an asset is not plainly something else, such as the JPEG 2000 copy of the same band."""
    kind, name = str(asset.get('type', '')), str(asset.get('href', ''))
    return 'tiff' in kind or (not kind and name.lower().endswith(('.tif', '.tiff')))


def _numbers(key: str, asset: Mapping[str, Any], *about: Mapping[str, Any]) -> dict[str, float | None]:
    """Scale, offset and nodata as the item states them; None for what it does not."""
    result: dict[str, float | None] = {}
    for name in ('scale', 'offset', 'nodata'):
        stated = [
            source[spelling]
            for source in (*about, asset)
            for spelling in (name, f'raster:{name}')
            if source.get(spelling) is not None
        ]
        try:
            result[name] = float(stated[0]) if stated else None
        except (TypeError, ValueError):
            message = f'asset {key!r}: {stated[0]!r} is no number'
            raise UnusableError(name, message, 'correct the item') from None
    return result


def _path(file: Path, key: str, asset: Mapping[str, Any]) -> Path:
    """The file of an asset; raises UnusableError unless it is one below the folder of the item."""
    href = str(asset.get('href', ''))
    folder = file.resolve().parent
    path = (folder / href).resolve()
    if '://' in href or not path.is_relative_to(folder) or not path.is_file():
        message = f'asset {key!r}: {href!r} is no file below {folder}'
        raise UnusableError(
            'assets', message, 'nothing is fetched: download it there, and write a relative href'
        )
    return path


def _pixel(file: Path) -> float:
    check_source(file)
    try:
        with open_file(file, jp2=False) as dataset:
            return round(grid_of(dataset).step_x, 9)
    except rasterio.errors.RasterioError as error:
        raise UnusableError('', f'{file.name}: {error}', 'download it again') from error


def _tags(properties: Mapping[str, Any]) -> dict[str, str]:
    tags = {tag: str(properties[name]) for name, tag in _TAGS.items() if properties.get(name)}
    if properties.get('earthsearch:boa_offset_applied') is True:
        # Whatever the baseline, the 1000 are off.
        tags |= {'BOA_ADD_OFFSET': '0'}
    return tags
