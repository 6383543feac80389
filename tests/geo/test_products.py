"""Products of several files: SAFE folders and items of STAC, read as what they say they are."""

import json
import re
from contextlib import ExitStack

import numpy as np
import pytest

from fusmae_jax.embed.ground import align, open_rasters
from fusmae_jax.embed.settings import SensorFile
from fusmae_jax.errors import InputError
from fusmae_jax.geo import stack
from fusmae_jax.geo.stack import has_jp2
from tests.support.embed_fixtures import changed, write
from tests.support.products import item_s2, safe_s1, safe_s2, write_jp2

pytestmark = pytest.mark.skipif(not has_jp2(), reason='this GDAL cannot write JPEG 2000')
CONFIG = changed(s2=SensorFile(unit='DN'))


@pytest.fixture
def opened():
    with ExitStack() as stack:
        yield lambda config=CONFIG, **files: open_rasters(
            config, {name: str(file) for name, file in files.items()}, stack
        )


def refusal(opened, **files):
    with pytest.raises(InputError) as error:
        opened(**files)
    return str(error.value)


def test_a_product_of_sentinel_2_has_a_raster_for_each_pixel_size(tmp_path, opened):
    folder, bands = safe_s2(tmp_path)
    rasters = opened(s2=folder)
    assert {name: raster.extent.resolution for name, raster in rasters.items()} == {
        's2_10m': 10,
        's2_20m': 20,
        's2_60m': 60,
    }
    assert sorted(band for raster in rasters.values() for band in raster.bands) == sorted(bands)
    align(rasters)
    for raster in rasters.values():
        assert (raster.scale, raster.offset, raster.nodata, raster.dtype) == (1, -1000, (0,), 'uint16')
        for band in raster.bands:
            rows, columns = bands[band].shape
            np.testing.assert_array_equal(raster.read([band], 0, 0, rows, columns)[..., 0], bands[band])
    assert rasters['s2_10m'].tags()['PRODUCT_START_TIME'].startswith('2022-08-01')


@pytest.mark.parametrize(
    ('baseline', 'offset', 'level', 'there'),
    [('02.09', None, '2A', 0), ('04.00', -1000, '1C', -1000), ('05.11', -1000, '2A', -1000)],
)
def test_the_offset_is_that_of_the_metadata(baseline, offset, level, there, tmp_path, opened):
    folder, _bands = safe_s2(tmp_path, 60, baseline, offset, level)
    rasters = opened(s2=folder)
    assert {raster.offset for raster in rasters.values()} == {there}
    assert ('B10' in rasters['s2_60m'].bands) == (level == '1C')


def test_coarse_copies_of_a_band_are_not_read(tmp_path, opened):
    folder, _bands = safe_s2(tmp_path, 60)
    place = next(folder.glob('GRANULE/*/IMG_DATA/R20m'))
    write_jp2(place / 'T33UVR_20220801T100611_B02_20m.jp2', np.ones((30, 30), np.uint16), 20.0)
    write_jp2(place / 'T33UVR_20220801T100611_SCL_20m.jp2', np.ones((30, 30), np.uint16), 20.0)
    rasters = opened(s2=folder)
    assert 'B02' in rasters['s2_10m'].bands and len(rasters['s2_20m'].bands) == 6


def test_a_setting_that_contradicts_the_product_is_refused(tmp_path, opened):
    folder, _ = safe_s2(tmp_path, 60)
    config = changed(s2=SensorFile(unit='DN', offset=0.0))
    with pytest.raises(InputError, match=r'BOA_ADD_OFFSET_0 says -1000, but config.s2.offset=0'):
        opened(config, s2=folder)


def test_faults_of_a_product_are_one_sentence(tmp_path, opened):
    folder, _ = safe_s2(tmp_path, 60)
    assert 'a product of Sentinel-2; give it as Sentinel-2' in refusal(opened, s1=folder)
    band = next(folder.rglob('*_B8A_20m.jp2'))
    band.write_bytes(b'<VRTDataset/>' * 10)
    assert 'B8A_20m.jp2 in it is no JPEG 2000; download the product again' in refusal(opened, s2=folder)
    band.unlink()
    (folder / 'touched').touch()
    assert 'B8A' not in opened(s2=folder)['s2_20m'].bands
    metadata = folder / 'MTD_MSIL2A.xml'
    metadata.write_text('<!DOCTYPE a [<!ENTITY b SYSTEM "/etc/passwd">]>' + metadata.read_text()[38:])
    (folder / 'again').touch()
    assert 'MTD_MSIL2A.xml cannot be read: too large, or with entities' in refusal(opened, s2=folder)
    (folder / 'MTD_MSIL2A.xml').unlink()
    assert 'there is no MTD_MSIL1C.xml or MTD_MSIL2A.xml' in refusal(opened, s2=folder)
    assert 'is a folder; give a GeoTIFF' in refusal(opened, s2=tmp_path)


def test_a_single_jp2_is_refused_as_before(tmp_path, opened):
    write_jp2(tmp_path / 'a.jp2', np.ones((60, 60), np.uint16), 10.0)
    assert 'it is no GeoTIFF; make it one: rio convert' in refusal(opened, s2=tmp_path / 'a.jp2')


def test_grd_names_the_commands_of_snap(tmp_path, opened):
    folder = safe_s1(tmp_path)
    message = refusal(opened, s1=folder)
    assert message.count('\n') == 0 and 'digital numbers in the geometry of the radar' in message
    steps = re.findall(r'gpt ([\w-]+)', message)
    assert steps == ['Apply-Orbit-File', 'ThermalNoiseRemoval', 'Calibration', 'Terrain-Correction']
    # The middle of the footprint is at 14.6 degrees east.
    assert f'-Ssource={folder}/manifest.safe' in message and '-PmapProjection=EPSG:32633' in message
    assert "unit='linear'" in message
    inside = refusal(opened, s1=next(folder.glob('measurement/*')))
    assert (
        'digital numbers in the geometry of the radar' in inside and str(folder / 'manifest.safe') in inside
    )


@pytest.mark.parametrize('version', ['1.0.0', '1.1.0'])
def test_an_item_is_read_by_the_names_of_its_bands(version, tmp_path, opened):
    file, bands = item_s2(tmp_path, version, scale=0.0001, offset=-0.1)
    rasters = opened(changed(s2=SensorFile(unit='reflectance', offset=-0.1)), s2=file)
    assert {name: sorted(r.bands) for name, r in rasters.items()} == {
        's2_10m': ['B04', 'B08'],
        's2_20m': ['B11', 'B12'],
    }
    for raster in rasters.values():
        assert (raster.scale, raster.offset, raster.nodata) == (0.0001, -0.1, (0,))
        for band in raster.bands:
            rows, columns = bands[band].shape
            np.testing.assert_array_equal(raster.read([band], 0, 0, rows, columns)[..., 0], bands[band])


def test_an_item_without_numbers_goes_by_its_properties(tmp_path, opened):
    file, _ = item_s2(tmp_path)
    assert {r.offset for r in opened(s2=file).values()} == {0}
    values = json.loads(file.read_text())
    values['properties']['s2:processing_baseline'] = '05.09'
    file.write_text(json.dumps(values))
    assert {r.offset for r in opened(s2=file).values()} == {-1000}
    values['properties']['earthsearch:boa_offset_applied'] = True
    file.write_text(json.dumps(values))
    assert {r.offset for r in opened(s2=file).values()} == {0}


def test_bands_that_a_catalogue_calls_by_colour(tmp_path, opened):
    pixels = {name: np.full((24, 24, 1), 500 + i, np.uint16) for i, name in enumerate(('red', 'nir08'))}
    assets = {name: {'href': f'{name}.tif', 'type': 'image/tiff'} for name in pixels}
    assets |= {f'{name}-jp2': {'href': f'{name}.jp2', 'type': 'image/jp2'} for name in pixels}
    for name in pixels:
        write(tmp_path / f'{name}.tif', pixels[name])
    item = {'type': 'Feature', 'stac_version': '1.0.0', 'properties': {}, 'assets': assets}
    (tmp_path / 'a.json').write_text(json.dumps(item))
    config = changed(s2=SensorFile(unit='DN', offset=0.0))
    (raster,) = opened(config, s2=tmp_path / 'a.json').values()
    assert raster.read(['B8A', 'B04'], 0, 0, 1, 1).tolist() == [[[501, 500]]]


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'href': 'https://example.org/B04.tif'}, 'nothing is fetched'),
        ({'href': '../B04.tif'}, 'nothing is fetched'),
        ({'href': 'item.json'}, 'is no GeoTIFF'),
        ({'bands': [{'name': 'B04', 'raster:scale': 'x'}]}, "'x' is no number"),
    ],
)
def test_faults_of_an_item_are_one_sentence(change, message, tmp_path, opened):
    (tmp_path / 'in').mkdir()
    file, _ = item_s2(tmp_path / 'in')
    write(tmp_path / 'B04.tif', np.ones((4, 4, 1), np.uint16))
    values = json.loads(file.read_text())
    values['assets']['image-B04'] |= change
    file.write_text(json.dumps(values))
    text = refusal(opened, s2=file)
    assert message in text and '\n' not in text


def test_an_item_that_contradicts_its_files_or_is_none(tmp_path, opened):
    file, _ = item_s2(tmp_path, scale=0.5)
    write(tmp_path / 'B04.tif', np.ones((240, 240, 1), np.uint16), scales=([0.1], [0.0]), nodata=0)
    assert 's2 scale: the metadata say 0.5 of B04.tif, its tag 0.1' in refusal(opened, s2=file)
    assert 'no asset is a band of s1 as a GeoTIFF on this disk (assets: image-B04' in refusal(opened, s1=file)
    file.write_text('{"type": "Feature"}')
    assert 'is no item of STAC (KeyError' in refusal(opened, s2=file)


def test_a_gdal_without_jpeg_2000_says_so(tmp_path, opened, monkeypatch):
    folder, _ = safe_s2(tmp_path, 60)
    monkeypatch.setattr(stack, 'has_jp2', lambda: False)
    assert 'this GDAL cannot read JPEG 2000 (JP2OpenJPEG); make GeoTIFFs' in refusal(opened, s2=folder)
