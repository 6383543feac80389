"""What a GeoTIFF says, alike for `convert`, `doctor` and `encode`: format, ground, numbers, masks, names."""

import http.server
import re
import threading
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from rasterio.crs import CRS

from fusmae_jax.embed.rasters import Raster
from fusmae_jax.embed.settings import SensorFile, check_settings
from fusmae_jax.errors import InputError
from fusmae_jax.geo import UnusableError
from fusmae_jax.geo.grid import Grid, check_grid, common, ground_scale, window_onto
from fusmae_jax.shipped.data.doctor import tiffs
from fusmae_jax.shipped.data.doctor.command import run as doctor
from fusmae_jax.shipped.data.geotiff import place_of
from fusmae_jax.shipped.data.paired_folder.headers import read_headers, values_of
from fusmae_jax.shipped.data.records import RecordError
from tests.support.embed_fixtures import changed
from tests.support.paired_folder_files import S2, archive, optical, put, radar

ROOT = Path(__file__).parents[2]
DB, DN = SensorFile(unit='dB'), SensorFile(unit='DN')


def refusals(file, modality='s1'):
    """What `convert`, `doctor` and `encode` say of a file that none of them takes."""
    settings = archive(file.parent, s2_offset='auto')
    with pytest.raises(RecordError) as convert:
        [values_of(header, modality, settings) for header in read_headers([file], modality, ())]
    with pytest.raises(InputError) as encode:
        Raster(file, modality, DB if modality == 's1' else DN)
    with tiffs.opened(file) as dataset:
        findings = list(tiffs.findings([tiffs.header(file, dataset, modality)], modality))
    return str(convert.value), findings[0].evidence + '; ' + findings[0].remedy, str(encode.value)


# Format


@pytest.fixture
def address():
    """The address of a server that notes what is asked of it, and its notes."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{server.server_address[1]}', asked
        server.shutdown()


def vrt(source, band='', more='', flags=True):
    """The text of a VRT of 48 pixels with two bands from `source`."""
    one = f'<SourceFilename relativeToVRT="0">{source}</SourceFilename><SourceBand>{{0}}</SourceBand>'
    bands = ''.join(
        f'<VRTRasterBand dataType="Float32" band="{i}" {band}><Description>{name}</Description>'
        f'<SimpleSource>{one.format(i)}</SimpleSource></VRTRasterBand>'
        for i, name in enumerate(('VV', 'VH'), 1)
    )
    keys = ''.join(f'<MDI key="INTERNAL_MASK_FLAGS_{i}">2</MDI>' for i in (1, 2))
    mask = f'<Metadata>{keys}</Metadata>' if flags else ''
    return (
        f'<VRTDataset rasterXSize="48" rasterYSize="48"><SRS>EPSG:32632</SRS>'
        f'<GeoTransform>500000, 10, 0, 5000040, 0, -10</GeoTransform>{mask}{bands}{more}</VRTDataset>'
    )


@pytest.mark.parametrize('end', ['', '.msk', '.ovr'])
def test_no_file_makes_a_reader_fetch_or_open_another_format(tmp_path, address, end):
    url, asked = address
    file = tmp_path / 's1.tif'
    put(file, radar(), ('VV', 'VH'))
    Path(f'{file}{end}').write_text(vrt(f'/vsicurl/{url}/x{end}.tif'))
    with pytest.raises(RecordError, match='no GeoTIFF'):
        read_headers([file], 's1', ())
    with pytest.raises(InputError, match='no GeoTIFF'):
        Raster(file, 's1', DB)
    with pytest.raises(OSError, match='no GeoTIFF'):
        tiffs.load(file, 's1')
    with pytest.raises(InputError, match='no GeoTIFF'):
        doctor([str(file)])
    if end == '':
        with pytest.raises(InputError, match='it is no GeoTIFF'):
            Raster(file, 's1', DB, vrt=True)
    assert not asked


RAW = (
    '<VRTRasterBand dataType="Byte" band="3" subClass="VRTRawRasterBand">'
    '<SourceFilename relativeToVRT="0">/etc/passwd</SourceFilename></VRTRasterBand>'
)


@pytest.mark.parametrize(
    ('text', 'part'),
    [
        (lambda url: vrt(f'/vsicurl/{url}/a.tif'), 'is no file on this machine'),
        (lambda url: vrt(f'{url}/b.tif'), 'is no file on this machine'),
        (lambda url: vrt('/vsis3/bucket/c.tif'), 'is no file on this machine'),
        (lambda url: vrt('/etc/passwd'), "its source '/etc/passwd' is no GeoTIFF"),
        (lambda url: vrt('s1.tif', 'subClass="VRTDerivedRasterBand"'), 'VRTDerivedRasterBand'),
        (lambda url: vrt('s1.tif', more=RAW), 'VRTRawRasterBand'),
        (lambda url: vrt('s1.tif', more='<GDALWarpOptions/>'), 'GDALWarpOptions'),
        (lambda url: '<VRTDataset', 'no VRT that can be read'),
    ],
)
def test_a_vrt_is_taken_where_that_is_set_and_holds_nothing_but_local_geotiffs(tmp_path, address, text, part):
    url, asked = address
    put(tmp_path / 's1.tif', radar(), ('VV', 'VH'))
    file = tmp_path / 'm.vrt'
    file.write_text(text(url).replace('"0">s1.tif', '"1">s1.tif'))
    with pytest.raises(InputError, match=re.escape(part)):
        Raster(file, 's1', DB, vrt=True)
    assert not asked
    file.write_text(vrt('s1.tif', flags=False).replace('relativeToVRT="0"', 'relativeToVRT="1"'))
    with pytest.raises(InputError, match='it is no GeoTIFF'):
        Raster(file, 's1', DB)
    raster = Raster(file, 's1', DB, vrt=True)
    np.testing.assert_array_equal(raster.read(['VH'], 0, 0, 48, 48)[..., 0], radar()[1])
    raster.close()


def test_rasters_are_opened_in_one_place():
    """Whatever else calls rasterio writes a file of its own, or changes one."""
    for folder in ('fusmae_jax', 'data', 'configs', 'benchmarks'):
        for file in (ROOT / folder).rglob('*.py'):
            calls = re.findall(r'rasterio\.open\(\s*([^)]*)', file.read_text())
            if file not in (ROOT / 'fusmae_jax/geo/raster.py', ROOT / 'fusmae_jax/geo/stack.py'):
                assert all(re.search(r"'(w|r\+)'", call) for call in calls), file


# Ground


def grid(crs, left, top, step=10.0, pixels=120):
    crs = CRS.from_user_input(crs)
    return Grid(crs.to_epsg(), left, top, step, step, pixels, pixels, crs=crs)


@pytest.mark.parametrize(
    ('crs', 'left', 'top', 'scale'),
    [
        # At latitude 45.0 degrees; EPSG:3857 is of a sphere, so its two directions differ by the flattening.
        ('EPSG:3857', 1_500_000, 5_621_500, (0.7083, 0.7048)),
        ('EPSG:32633', 500_000, 5_000_000, (0.9996**-1,) * 2),
        ('EPSG:3035', 4_321_000, 3_210_000, (1, 1)),
        ('EPSG:3413', 0, 0, ((2 * 0.9698) ** -1 * 2,) * 2),  # the pole itself
        ('EPSG:6933', 1_500_000, 5_200_000, None),  # of equal area: longer one way, shorter the other
    ],
)
def test_the_length_of_a_metre_on_the_ground(crs, left, top, scale):
    right, down, skew = ground_scale(grid(crs, left, top))
    if scale is None:
        assert right * down == pytest.approx(1, abs=2e-3) and abs(right - 1) > 0.1
    else:
        assert (right, down) == pytest.approx(scale, abs=2e-3)
    assert abs(skew) < 1e-3


@pytest.mark.parametrize(
    ('crs', 'left', 'top', 'near'),
    [
        ('EPSG:3857', 1_500_000, 5_621_500, 'EPSG:32633'),
        ('EPSG:6933', 1_500_000, 5_200_000, 'EPSG:32633'),
        ('EPSG:3857', 17_000_000, -4_000_000, 'EPSG:32756'),
        ('+proj=sinu +R=6371007.181 +units=m', 5_000_000, 6_000_000, 'EPSG:326'),  # axes are not square
        ('EPSG:32633', 9e6, 5e6, 'EPSG:'),  # far out of its zone
    ],
)
def test_metres_that_are_none_on_the_ground_are_refused_with_the_zone(crs, left, top, near, tmp_path):
    with pytest.raises(UnusableError, match=r'of ground|does not reach') as error:
        check_grid(grid(crs, left, top))
    assert f'rio warp a.tif OUT.tif --dst-crs {near}' in error.value.advice_for('a.tif')


def test_systems_of_countries_and_continents_pass():
    for crs, left, top in (
        ('EPSG:2154', 700_000, 6_600_000),  # France
        ('EPSG:3035', 2_700_000, 1_900_000),  # Portugal, at the edge of Europe
        ('EPSG:5070', -2_000_000, 2_000_000),  # conterminous United States
        ('EPSG:3413', 1_000_000, -2_500_000),  # Greenland
        ('EPSG:3857', 1_500_000, 600_000),  # near the equator a metre is one
        ('EPSG:32601', 300_000, 5_900_000),
    ):
        check_grid(grid(crs, left, top))


def test_all_three_refuse_web_mercator_in_the_same_words(tmp_path):
    file = tmp_path / 's1' / 'a.tif'
    put(file, radar(), ('VV', 'VH'), epsg=3857, left=1_500_000.0, top=5_621_500.0)
    for text in refusals(file):
        assert 'a metre of EPSG:3857 is 0.708 m of ground' in text
        assert f'rio warp {file} OUT.tif --dst-crs EPSG:32633 --res 10' in text
    with rasterio.open(file) as dataset, pytest.raises(RecordError, match='EPSG:3857, expected a UTM zone'):
        place_of(file, 'B02', dataset, 10.0)


def test_common_ground_of_grids():
    fine = Grid(32633, 0, 1000, 10, 10, 41, 61)
    coarse = Grid(32633, -20, 1020, 20, 20, 30, 30)
    shared = common([fine, coarse])
    assert shared == fine._replace(left=0, top=1000, rows=41, columns=58)
    window = window_onto(coarse, shared)
    assert (window.row_off, window.col_off, window.height, window.width) == (1, 1, 21, 29)
    assert common([fine, fine._replace(left=5000)]) is None
    assert common([fine, fine._replace(epsg=32634)]) is None
    assert common([fine, fine._replace(turned=True)]) is None


# Numbers


TAGS = {'BOA_ADD_OFFSET': '-1000', 'BOA_QUANTIFICATION_VALUE': '10000', 'PROCESSING_BASELINE': '05.09'}


@pytest.mark.parametrize(
    ('tags', 'scales', 'unit', 'expected'),
    [
        (TAGS, (), 'DN', (1.0, -1000.0)),
        ({'PROCESSING_BASELINE': 'N0509'}, (), 'DN', (1.0, -1000.0)),
        ({'PROCESSING_BASELINE': '02.14'}, (), 'DN', (1.0, 0.0)),
        (TAGS, (1e-4, 0.0), 'reflectance', (1e-4, -0.1)),
        ({}, (1e-4, -0.1), 'reflectance', (1e-4, -0.1)),
    ],
)
def test_all_three_read_scale_and_offset_alike(tmp_path, tags, scales, unit, expected):
    file = tmp_path / 's2' / 'a.tif'
    put(file, optical() + np.uint16(1000), S2, tags=tags, scales=scales)
    (header,) = read_headers([file], 's2', ())
    convert = values_of(header, 's2', archive(tmp_path, s2_unit=unit, s2_offset='auto'))
    encode = Raster(file, 's2', SensorFile(unit=unit))
    encode.close()
    declared = tiffs.declared([tiffs.load(file, 's2')[0]], 's2')
    assert (convert.scale, convert.offset) == pytest.approx(expected)
    assert (encode.scale, encode.offset, encode.nodata) == (convert.scale, convert.offset, (0.0,))
    assert (declared.scale['B03'], declared.offset['B03']) == pytest.approx(expected)


@pytest.mark.parametrize('tags', [{}, {'PROCESSING_BASELINE': '99.99'}])
def test_where_nobody_can_know_the_offset_all_three_say_so(tmp_path, tags):
    file = tmp_path / 's2' / 'a.tif'
    put(file, optical(), S2, tags=tags)
    convert, doctor, encode = refusals(file, 's2')
    sentence = 'the metadata do not say whether the 1000 of processing baseline 04.00 are in the numbers'
    assert all(sentence in text for text in (convert, doctor, encode))
    assert 's2_offset=-1000 if they are' in convert and 's2_offset=-1000 if they are' in doctor
    assert 'config.s2.offset=-1000 if they are' in encode
    raster = Raster(file, 's2', SensorFile(unit='DN', offset=0.0))
    assert raster.offset == 0
    raster.close()


@pytest.mark.parametrize(
    ('image', 'tags', 'settings', 'part'),
    [
        (
            optical(),
            TAGS,
            SensorFile(unit='DN', offset=0.0),
            'BOA_ADD_OFFSET says -1000, but config.s2.offset=0',
        ),
        (optical(), TAGS, SensorFile(unit='reflectance', offset=0.0, scale=1e-4), 'says -0.1, but'),
        (
            optical(),
            {},
            SensorFile(unit='reflectance', offset=0.0),
            'whole numbers (uint16) cannot be reflect',
        ),
        (optical(), {}, SensorFile(unit='reflectance', scale=1e-4), 'config.s2.offset=-0.1 if they are'),
        (optical() // 16, {}, SensorFile(unit='DN', offset=0.0, nodata=(-9999.0,)), '-9999 cannot stand in'),
        (optical(), TAGS | {'BOA_QUANTIFICATION_VALUE': '1000'}, DN, '1000, expected 10000'),
    ],
)
def test_encode_refuses_what_convert_refuses(tmp_path, image, tags, settings, part):
    put(tmp_path / 'a.tif', image, S2, tags=tags)
    with pytest.raises(InputError, match=re.escape(part)):
        Raster(tmp_path / 'a.tif', 's2', settings)


def test_nodata_of_file_and_setting_both_count(tmp_path):
    image = optical()
    image[:, 0, 0], image[:, 1, 1], image[:, 2, 2] = 7, 9, 0
    put(tmp_path / 's2' / 'a.tif', image, S2, tags=TAGS, nodata=7)
    settings = SensorFile(unit='DN', nodata=(9.0,))
    raster = Raster(tmp_path / 's2' / 'a.tif', 's2', settings)
    missing = np.isnan(raster.read(['B02'], 0, 0, 48, 48)[..., 0])
    raster.close()
    assert np.argwhere(missing).tolist() == [[0, 0], [1, 1]]
    (header,) = read_headers([tmp_path / 's2' / 'a.tif'], 's2', ())
    assert values_of(header, 's2', archive(tmp_path, s2_nodata=(9.0,), s2_offset='auto')).nodata == (9.0, 7.0)
    with pytest.raises(InputError, match=r's2\.nodata=\(nan,\) must be finite'):
        check_settings(changed(s2=SensorFile(nodata=(float('nan'),))))
