"""Band files of one grid as one raster, described by a VRT that is made here and names nothing else.

What reads rasters then finds bands by description, scale, offset, nodata and tags, as in a GeoTIFF.
"""

import functools
import os
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import rasterio
from rasterio.enums import ColorInterp, MaskFlags

from fusmae_jax.geo import UnusableError, rio
from fusmae_jax.geo.formats import check_jp2, check_source
from fusmae_jax.geo.grid import grid_of

_TYPES = {
    'uint8': 'Byte',
    'int8': 'Int8',
    'uint16': 'UInt16',
    'int16': 'Int16',
    'uint32': 'UInt32',
    'int32': 'Int32',
    'float32': 'Float32',
    'float64': 'Float64',
}


class Channel(NamedTuple):
    """One band: where it lies, and what its product says of the numbers."""

    band: str
    file: Path
    number: int = 1  # channel of the file
    scale: float | None = None  # None: as the file says; another one than that of the file is refused
    offset: float | None = None
    nodata: float | None = None


class Stack(NamedTuple):
    """The channels of one pixel size of a product."""

    name: str  # such as '10m'
    channels: tuple[Channel, ...]
    tags: Mapping[str, str]
    jp2: bool = False  # JPEG 2000 files and no GeoTIFFs


def open_stack(stack: Stack) -> rasterio.DatasetReader:
    """The channels as one open raster; raises UnusableError where they have no common grid or type."""
    root, first = ET.Element('VRTDataset'), None
    for channel in stack.channels:
        (check_jp2 if stack.jp2 else check_source)(channel.file)
        with open_file(channel.file, stack.jp2) as dataset:
            here = grid_of(dataset), dataset.dtypes[channel.number - 1]
            if first is None:
                first = here
                _head(root, dataset, stack.tags)
            if here != first:
                message = f'{channel.file.name} has another grid or type than {stack.channels[0].file.name}'
                raise UnusableError('bands', message, 'the files of one pixel size must be alike')
            _band(root, channel, dataset)
    return rasterio.open(ET.tostring(root, encoding='unicode'), driver='VRT')


def open_file(file: Path, jp2: bool) -> rasterio.DatasetReader:
    """One open file, as the one format that it must have."""
    if jp2 and not has_jp2():
        advice = (
            'make GeoTIFFs of its bands elsewhere, or install rasterio from its wheel: pip install rasterio'
        )
        raise UnusableError('', 'this GDAL cannot read JPEG 2000 (JP2OpenJPEG)', advice)
    return rasterio.open(os.path.abspath(file), driver='JP2OpenJPEG' if jp2 else 'GTiff')


@functools.lru_cache(maxsize=1)
def has_jp2() -> bool:
    """Whether this GDAL reads JPEG 2000; that of rasterio's wheels does."""
    with rasterio.Env() as env:
        return 'JP2OpenJPEG' in env.drivers()


def _head(root: ET.Element, dataset: rasterio.DatasetReader, tags: Mapping[str, str]) -> None:
    root.attrib |= {'rasterXSize': str(dataset.width), 'rasterYSize': str(dataset.height)}
    if dataset.crs:
        ET.SubElement(root, 'SRS', dataAxisToSRSAxisMapping='1,2').text = dataset.crs.to_wkt()
        numbers = dataset.transform.to_gdal()
        ET.SubElement(root, 'GeoTransform').text = ', '.join(map(repr, map(float, numbers)))
    metadata = ET.SubElement(root, 'Metadata')
    for key, value in tags.items():
        ET.SubElement(metadata, 'MDI', key=key).text = value


def _band(root: ET.Element, channel: Channel, dataset: rasterio.DatasetReader) -> None:
    index, name = channel.number - 1, channel.file.name
    if dataset.count <= index:
        raise UnusableError('bands', f'{name} has {dataset.count} channels', f'it has no {channel.number}')
    dtype = dataset.dtypes[index]
    if dtype not in _TYPES:
        raise UnusableError('dtype', f'{name}: {dtype}', 'give real numbers')
    if (flags := {*dataset.mask_flag_enums[index]}) & {MaskFlags.per_dataset, MaskFlags.alpha}:
        alpha = 1 + dataset.colorinterp.index(ColorInterp.alpha) if MaskFlags.alpha in flags else 0
        remedy = rio.mask_into_pixels(dtype, channel.file, alpha)
        raise UnusableError('mask', f'{name} has a mask of its own', remedy)
    number = str(len(root.findall('VRTRasterBand')) + 1)
    band = ET.SubElement(root, 'VRTRasterBand', dataType=_TYPES[dtype], band=number)
    ET.SubElement(band, 'Description').text = channel.band
    nodata = _one(name, 'nodata', channel.nodata, dataset.nodatavals[index], None)
    scale = _one(name, 'scale', channel.scale, dataset.scales[index], 1.0)
    offset = _one(name, 'offset', channel.offset, dataset.offsets[index], 0.0)
    for tag, value in (('NoDataValue', nodata), ('Offset', offset), ('Scale', scale)):
        if value is not None:
            ET.SubElement(band, tag).text = repr(float(value))
    source = ET.SubElement(band, 'SimpleSource')
    ET.SubElement(source, 'SourceFilename', relativeToVRT='0').text = os.path.abspath(channel.file)
    ET.SubElement(source, 'SourceBand').text = str(channel.number)
    whole = {'xOff': '0', 'yOff': '0', 'xSize': str(dataset.width), 'ySize': str(dataset.height)}
    ET.SubElement(source, 'SrcRect', whole)
    ET.SubElement(source, 'DstRect', whole)


def _one(
    file: str, what: str, stated: float | None, tagged: float | None, none: float | None
) -> float | None:
    """What the product states, or else the file; raises UnusableError where they contradict each other."""
    if stated is None or tagged in (none, stated) or (stated != stated and tagged != tagged):
        return tagged if stated is None else stated
    message = f'the metadata say {stated:g} of {file}, its tag {tagged:g}'
    raise UnusableError(what, message, 'correct the one that is wrong')
