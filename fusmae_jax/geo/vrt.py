"""VRTs that are mosaics or stacks of local GeoTIFFs, such as `gdalbuildvrt` writes.

A VRT can name any path and any address, read raw bytes of any file and run code. Here it is read as XML, each
part that is known to be harmless is copied into a new VRT, anything else is refused, and GDAL sees only that.
"""

import os
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

from fusmae_jax.geo import UnusableError

LARGEST = 16 * 2**20  # bytes; a mosaic of 10,000 files takes half
# Element -> what may stand in it; of the attributes all but these are left out.
_PARTS = {
    'VRTDataset': {'SRS', 'GeoTransform', 'Metadata', 'VRTRasterBand', 'MaskBand'},
    'MaskBand': {'VRTRasterBand'},
    'VRTRasterBand': {
        *('Description', 'Metadata', 'NoDataValue', 'ColorInterp', 'Scale', 'Offset', 'UnitType'),
        *('SimpleSource', 'ComplexSource'),
    },
    'Metadata': {'MDI'},
    'SimpleSource': {'SourceFilename', 'SourceBand', 'SourceProperties', 'SrcRect', 'DstRect'},
    'ComplexSource': {
        *('SourceFilename', 'SourceBand', 'SourceProperties', 'SrcRect', 'DstRect'),
        *('NODATA', 'ScaleOffset', 'ScaleRatio', 'UseMaskBand'),
    },
}
_ATTRIBUTES = {
    *('rasterXSize', 'rasterYSize', 'dataType', 'band', 'key', 'RasterXSize', 'RasterYSize', 'DataType'),
    *('BlockXSize', 'BlockYSize', 'xOff', 'yOff', 'xSize', 'ySize', 'dataAxisToSRSAxisMapping'),
}
# Without a meaning for pixels: left out.
_IDLE = {'OverviewList', 'Histograms', 'CategoryNames', 'ColorTable', 'BlockXSize', 'BlockYSize', 'Overview'}


def checked_vrt(file: Path, check_source: Callable[[Path], None]) -> str:
    """The text of a VRT with nothing but local GeoTIFFs in it, by absolute path.

    `check_source` raises UnusableError for a file that is no GeoTIFF. Raises UnusableError for whatever
    is no mosaic or stack of them.
    """
    if file.stat().st_size > LARGEST:
        raise UnusableError('', f'a VRT of {file.stat().st_size:,} bytes', f'at most {LARGEST:,} are read')
    try:
        root = ET.fromstring(file.read_bytes())
    except (ET.ParseError, ValueError, LookupError) as error:
        raise UnusableError(
            '', f'no VRT that can be read: {error}', 'write it again: gdalbuildvrt'
        ) from error
    if root.tag != 'VRTDataset' or 'subClass' in root.attrib:
        raise _foreign(root)
    return ET.tostring(_copy(root, file.parent, check_source), encoding='unicode')


def _copy(element: ET.Element, folder: Path, check_source: Callable[[Path], None]) -> ET.Element:
    result = ET.Element(element.tag, {k: v for k, v in element.attrib.items() if k in _ATTRIBUTES})
    result.text = element.text
    if element.tag == 'SourceFilename':
        result.text = _source(element, folder, check_source)
        # The copy is text and lies in no folder, so its sources are named in full.
        result.set('relativeToVRT', '0')
    for part in element:
        if part.tag in _IDLE or (part.tag == 'Metadata' and 'domain' in part.attrib):
            continue
        if part.tag not in _PARTS.get(element.tag, ()) or 'subClass' in part.attrib:
            raise _foreign(part)
        result.append(_copy(part, folder, check_source))
    return result


def _source(element: ET.Element, folder: Path, check_source: Callable[[Path], None]) -> str:
    name = element.text or ''
    path = Path(os.path.abspath(folder / name if element.get('relativeToVRT') == '1' else name))
    if not path.is_file():
        raise UnusableError(
            '', f'its source {name!r} is no file on this machine', 'a VRT may name local GeoTIFFs'
        )
    try:
        check_source(path)
    except UnusableError as error:
        raise UnusableError(
            '', f'its source {name!r} {error.found}', 'a VRT may name local GeoTIFFs'
        ) from error
    return str(path)


def _foreign(element: ET.Element) -> UnusableError:
    kind = f'{element.tag} {element.get("subClass", "")}'.strip()
    advice = 'only mosaics and stacks of GeoTIFFs are: write it as a GeoTIFF where you trust it (rio convert)'
    return UnusableError('', f'a VRT with a part that is not read ({kind})', advice)
