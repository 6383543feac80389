"""The channels of a GeoTIFF: masks, the band called alpha, stacks of sensors, names."""

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from rasterio.enums import ColorInterp

from fusmae_jax.embed.rasters import Raster
from fusmae_jax.embed.settings import SensorFile, check_settings
from fusmae_jax.errors import InputError
from fusmae_jax.geo.bands import by_description
from fusmae_jax.geo.raster import read_header
from fusmae_jax.shipped.data.doctor import tiffs
from fusmae_jax.shipped.data.doctor.command import run as doctor
from fusmae_jax.shipped.data.paired_folder.headers import read_headers
from fusmae_jax.shipped.data.records import RecordError
from tests.support.embed_fixtures import changed
from tests.support.paired_folder_files import S2, optical, put, radar

DB, DN = SensorFile(unit='dB'), SensorFile(unit='DN')


def masked(file, kind):
    """Sentinel-1 of 48 pixels whose first ten rows are invalid and hold -9999."""
    pixels = radar()
    pixels[:, :10] = -9999
    mask = np.full((48, 48), 255, np.uint8)
    mask[:10] = 0
    if kind == 'alpha':
        put(file, np.concatenate([pixels, mask[None].astype(np.float32)]), ('VV', 'VH', None))
        with rasterio.open(file, 'r+') as dataset:
            dataset.colorinterp = [ColorInterp.gray, ColorInterp.undefined, ColorInterp.alpha]
        return
    put(file, pixels, ('VV', 'VH'))
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=kind == 'internal'), rasterio.open(file, 'r+') as dataset:
        dataset.write_mask(mask)


@pytest.mark.parametrize('kind', ['internal', 'beside', 'alpha'])
def test_masks_are_honoured_by_doctor_and_encode_and_refused_by_convert(tmp_path, kind, capsys):
    file = tmp_path / 's1' / 's1.tif'
    masked(file, kind)
    assert Path(f'{file}.msk').exists() == (kind == 'beside')
    names = ('VV', 'VH', '-') if kind == 'alpha' else ('VV', 'VH')
    with pytest.raises(RecordError, match=r's1 mask: validity lies in a mask, .*; .* rio calc '):
        read_headers([file], 's1', names)
    raster = Raster(file, 's1', SensorFile(unit='dB', bands=names))
    pixels = raster.read(['VV', 'VH'], 0, 0, 48, 48)
    raster.close()
    head, images = tiffs.load(file, 's1', names)
    for image in (pixels[..., 0], pixels[..., 1], images['VV'], images['VH']):
        np.testing.assert_array_equal(np.isnan(image), np.arange(48)[:, None].repeat(48, 1) < 10)
    assert any('validity lies in a mask' in f.evidence for f in tiffs.findings([head], 's1'))
    if kind != 'alpha':
        doctor([str(file)], as_json=True)
        (report,) = json.loads(capsys.readouterr().out)
        codes = {finding['code'] for finding in report['findings']}
        assert {'s1.nan', 's1.mask_refused'} <= codes and 's1.fill' not in codes


def test_a_fourth_channel_called_alpha_is_a_band_where_it_is_named(tmp_path):
    image = (optical() // 16).astype(np.uint8)
    image[3, :5] = 0
    put(tmp_path / 'a.tif', image, S2, photometric='RGB', ALPHA='YES')
    with rasterio.open(tmp_path / 'a.tif') as dataset:
        assert dataset.colorinterp[3] == ColorInterp.alpha
        # To another sensor it is none either.
        assert not read_header(tmp_path / 'a.tif', dataset, ('B02', '', '', '')).masked
    raster = Raster(tmp_path / 'a.tif', 's2', SensorFile(unit='DN', scale=16.0, offset=0.0, nodata=(255.0,)))
    assert np.isfinite(raster.read(['B02'], 0, 0, 5, 48)).all()
    raster.close()


STACK = ('VV', 'VH', 'B1', 'B2', 'B8A', 'B12')


def test_a_stack_of_sensors_is_read_by_the_names_of_its_bands(tmp_path):
    pixels = np.concatenate([radar(), optical().astype(np.float32)])
    file = tmp_path / 's1' / 'stack.tif'
    put(file, pixels, STACK)
    for modality, bands, settings in (
        ('s1', ('VV', 'VH'), DB),
        ('s2', ('B01', 'B02', 'B8A', 'B12'), SensorFile(unit='DN', offset=0.0)),
    ):
        (header,) = read_headers([file], modality, ())
        assert tuple(band for band in header.bands if band) == bands
        raster = Raster(file, modality, settings)
        assert raster.bands == bands
        np.testing.assert_array_equal(
            raster.read([bands[1]], 0, 0, 48, 48)[..., 0], pixels[1 if modality == 's1' else 3]
        )
        raster.close()
        head, images = tiffs.load(file, modality)
        assert head.bands == bands and head.named and tuple(images) == bands
        np.testing.assert_array_equal(images[bands[0]], pixels[0 if modality == 's1' else 2])


def test_any_number_of_channels_may_be_left_out(tmp_path):
    put(tmp_path / 'stack.tif', np.concatenate([radar(), optical().astype(np.float32)]), STACK)
    names = ('VV', 'VH', '-', '-', '-', '-')
    check_settings(changed(s1=SensorFile(unit='dB', bands=names)))
    raster = Raster(tmp_path / 'stack.tif', 's1', SensorFile(unit='dB', bands=names))
    assert raster.bands == ('VV', 'VH')
    raster.close()
    with pytest.raises(InputError, match='VV stands there twice'):
        check_settings(changed(s1=SensorFile(bands=('VV', 'VV', '-', '-', '-', '-'))))


def test_descriptions_are_never_guessed():
    assert by_description(('vv', 'B8A', 'angle', ''), 's1') == ('VV', '', None, None)
