"""Small products of Sentinel as their services deliver them: SAFE folders and items of STAC."""

import json
from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import Affine

from fusmae_jax.geo.safe import NATIVE
from tests.support.embed_fixtures import BANDS, LEFT, TOP, image, write

L2A = """<?xml version="1.0" encoding="UTF-8"?>
<n1:Level-2A_User_Product xmlns:n1="https://psd-14.sentinel2.eo.esa.int/PSD/User_Product_Level-2A.xsd">
<n1:General_Info><Product_Info>
<PRODUCT_START_TIME>2022-08-01T10:06:11.024Z</PRODUCT_START_TIME>
<PROCESSING_BASELINE>{baseline}</PROCESSING_BASELINE><PRODUCT_TYPE>S2MSI{level}</PRODUCT_TYPE>
</Product_Info><Product_Image_Characteristics>
<QUANTIFICATION_VALUES_LIST><{value} unit="none">10000</{value}></QUANTIFICATION_VALUES_LIST>
{offsets}
</Product_Image_Characteristics></n1:General_Info></n1:Level-2A_User_Product>
"""


def write_jp2(file: Path, pixels: np.ndarray, resolution: float) -> None:
    """One band (rows, columns) without loss."""
    profile = {'driver': 'JP2OpenJPEG', 'QUALITY': '100', 'REVERSIBLE': 'YES', 'crs': 'EPSG:32633'}
    shape = {'height': pixels.shape[0], 'width': pixels.shape[1], 'count': 1, 'dtype': 'uint16'}
    transform = Affine(resolution, 0, LEFT, 0, -resolution, TOP)
    with rasterio.open(file, 'w', transform=transform, **profile, **shape) as dataset:
        dataset.write(pixels, 1)
    Path(f'{file}.aux.xml').unlink(missing_ok=True)


def safe_s2(
    folder: Path, side: int = 240, baseline: str = '04.00', offset: int | None = -1000, level: str = '2A'
) -> tuple[Path, dict[str, np.ndarray]]:
    """A product of one tile of `side` pixels of 10 m, and its bands; `offset` None states none."""
    root = folder / f'S2A_MSIL{level}_20220801T100611_N0400_R022_T33UVR_20220801T150000.SAFE'
    granule = root / 'GRANULE' / 'L2A_T33UVR' / 'IMG_DATA'
    names = {
        '2A': ('BOA_ADD_OFFSET', 'BOA_QUANTIFICATION_VALUE'),
        '1C': ('RADIO_ADD_OFFSET', 'QUANTIFICATION_VALUE'),
    }
    tag, value = names[level]
    offsets = '' if offset is None else ''.join(f'<{tag} band_id="{i}">{offset}</{tag}>' for i in range(13))
    fine, bands = image('s2', side, side), {}
    for size, there in NATIVE.items():
        step = int(size[:-1]) // 10
        place = granule / f'R{size}' if level == '2A' else granule
        place.mkdir(parents=True, exist_ok=True)
        for band in there:
            if band == 'B10' and level == '2A':
                continue
            pixels = fine[::step, ::step, BANDS['s2'].index(band) if band in BANDS['s2'] else 0]
            bands[band] = np.ascontiguousarray(pixels).astype(np.int32) - (offset or 0)
            ending = f'_{size}' if level == '2A' else ''
            write_jp2(
                place / f'T33UVR_20220801T100611_{band}{ending}.jp2',
                bands[band].astype(np.uint16),
                10.0 * step,
            )
    text = L2A.format(baseline=baseline, level=level, offsets=offsets, value=value)
    (root / f'MTD_MSIL{level}.xml').write_text(text)
    return root, bands


def safe_s1(folder: Path) -> Path:
    """What there is of a GRD product before a pixel is read."""
    root = folder / 'S1A_IW_GRDH_1SDV_20220801T052000_20220801T052025_044300_054950_ABCD.SAFE'
    (root / 'measurement').mkdir(parents=True)
    (root / 'measurement' / 's1a-iw-grd-vv.tiff').touch()
    corners = '51.0,13.0 51.4,16.6 52.9,16.2 52.5,12.5'
    (root / 'manifest.safe').write_text(
        f'<xfdu xmlns:gml="http://www.opengis.net/gml"><gml:coordinates>{corners}</gml:coordinates></xfdu>'
    )
    return root


def item_s2(folder: Path, version: str = '1.1.0', **numbers) -> tuple[Path, dict[str, np.ndarray]]:
    """An item with a file for each of four bands, two pixel sizes, in the manner of public catalogues."""
    sizes = {'B04': 1, 'B08': 1, 'B11': 2, 'B12': 2}
    fine = image('s2', 240, 240)
    bands = {b: fine[::step, ::step, [BANDS['s2'].index(b)]] for b, step in sizes.items()}
    assets = {}
    for band, pixels in bands.items():
        write(folder / f'{band}.tif', pixels, resolution=10.0 * sizes[band], nodata=0)
        asset = {'href': f'./{band}.tif', 'type': 'image/tiff; application=geotiff; profile=cloud-optimized'}
        if version == '1.1.0':
            asset['bands'] = [{'name': band, **{f'raster:{key}': value for key, value in numbers.items()}}]
        else:
            asset |= {'eo:bands': [{'name': band}], 'raster:bands': [numbers]}
        assets[f'image-{band}'] = asset
    assets['thumbnail'] = {'href': 'https://example.org/x.png', 'type': 'image/png'}
    assets['visual'] = assets['image-B04'] | {'bands': [{'name': 'R'}, {'name': 'G'}], 'eo:bands': [{}, {}]}
    values = {
        'type': 'Feature',
        'stac_version': version,
        'id': 'x',
        'properties': {'datetime': '2022-08-01T10:06:11Z', 's2:processing_baseline': '03.01'},
        'assets': assets,
    }
    file = folder / 'item.json'
    file.write_text(json.dumps(values))
    return file, {band: pixels[..., 0] for band, pixels in bands.items()}
