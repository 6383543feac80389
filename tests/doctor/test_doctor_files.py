"""The doctor on a user's own files: what `convert` refuses, what names and folders say, stacks."""

import json

import numpy as np
import pytest
import rasterio
from rasterio.transform import Affine

from data.doctor import names
from data.doctor.command import run
from data.generate.scene import SceneConfig, resampled, scene
from tests.support.paired_folder_files import put

ONE = scene(SceneConfig(seed=21, size=96), 0)
S1, S2 = ONE.s1, resampled(ONE)


def radar(file, **more):
    put(file, **({'array': np.stack([S1['VV'], S1['VH']]), 'bands': ('VV', 'VH')} | more))


def optical(file, plus=0, **more):
    pixels = np.stack(list(S2.values())) + np.uint16(plus)
    put(file, **({'array': pixels, 'bands': tuple(S2), 'tags': {'BOA_ADD_OFFSET': str(-plus)}} | more))


def report(capsys, *paths):
    """The findings by code."""
    run([str(path) for path in paths], as_json=True)
    (one,) = json.loads(capsys.readouterr().out)
    return {finding['code']: finding for finding in one['findings']}, one


def above_a_note(findings):
    return {code for code, f in findings.items() if f['severity'] in ('warning', 'error')}


REFUSED = {
    'degrees': ('crs', 'degree', {'epsg': 4326, 'step': 1e-4, 'left': 10.0, 'top': 47.0}),
    'float64': ('dtype', 'float64', {'array': np.stack([S1['VV'], S1['VH']]).astype(np.float64)}),
    'complex': ('dtype', 'complex64', {'array': np.stack([S1['VV'], S1['VH']]).astype(np.complex64)}),
    'not square': ('pixel_size', 'not square', {'transform': Affine(10, 0, 5e5, 0, -20, 5e6)}),
    'scales': ('scale', '[1.0, 2.0]', {'scales': ()}),
}


@pytest.mark.parametrize('case', REFUSED)
def test_what_convert_refuses_is_found(case, tmp_path, capsys):
    field, words, profile = REFUSED[case]
    file = tmp_path / 's1.tif'
    radar(file, **profile)
    if case == 'scales':
        with rasterio.open(file, 'r+') as dataset:
            dataset.scales = (1.0, 2.0)
    findings, _ = report(capsys, file)
    assert words in findings[f's1.{field}_refused']['evidence']
    assert f's1.{field}_refused' in above_a_note(findings)
    assert 'gdal' not in json.dumps(findings)


@pytest.mark.parametrize('internal', [True, False])
def test_a_mask_counts_and_is_found(internal, tmp_path, capsys):
    pixels = np.stack([S1['VV'], S1['VH']])
    pixels[:, :40] = -9999
    for folder, more in (('s1', {}), ('s2', {'array': pixels.astype(np.int16), 'bands': ('VV', 'VH')})):
        file = tmp_path / folder / 'a.tif'
        radar(file, **({'array': pixels} | more))
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=internal), rasterio.open(file, 'r+') as dataset:
            dataset.write_mask(np.arange(96 * 96).reshape(96, 96) >= 40 * 96)
    findings, _ = report(capsys, tmp_path / 's1' / 'a.tif')
    assert 's1.mask_refused' in above_a_note(findings) and 's1.fill' not in findings
    assert 'rio warp' in findings['s1.mask_refused']['remedy']
    assert 's1.fill' not in report(capsys, tmp_path / 's2' / 'a.tif')[0]


def test_no_place_is_not_the_same_as_not_north_up(tmp_path, capsys):
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning):
        radar(tmp_path / 's1.tif', epsg=0, transform=None)
    findings, _ = report(capsys, tmp_path / 's1.tif')
    assert findings['pair.place']['severity'] == 'warning' and 'pair.grid' not in findings
    radar(tmp_path / 's1_up.tif', transform=Affine(10, 0, 5e5, 0, 10, 5e6))
    findings, _ = report(capsys, tmp_path / 's1_up.tif')
    assert 'pair.grid' in findings and 'pair.place' not in findings


def test_a_wrong_geotransform_is_said_and_nothing_to_be_warped(tmp_path, capsys):
    radar(tmp_path / 's1.tif')
    optical(tmp_path / 's2.tif', step=60.0)
    findings, _ = report(capsys, tmp_path / 's1.tif', tmp_path / 's2.tif')
    assert above_a_note(findings) == {'pair.geotransform'}
    remedy = findings['pair.geotransform']['remedy']
    assert 'rio edit-info --transform' in remedy and 'rio warp' not in remedy
    radar(tmp_path / 's1.tif', left=500_300.0)
    findings, _ = report(capsys, tmp_path / 's1.tif', tmp_path / 's2.tif')
    assert 'pair.extent' not in findings
    optical(tmp_path / 's2.tif')
    findings, _ = report(capsys, tmp_path / 's1.tif', tmp_path / 's2.tif')
    assert 'rio warp' in findings['pair.extent']['remedy']


def test_folders_of_products_with_geotiffs(tmp_path, capsys):
    """Sets for models of several sensors: a folder a product, one name for the files of a place."""
    for name in ('1_2.tif', '1_3.tif'):
        for product in ('S1RTC', 'S1GRD'):
            radar(tmp_path / product / name)
        optical(tmp_path / 'S2L2A' / name)
        put(tmp_path / 'DEM' / name, np.full((1, 96, 96), 300.0, np.float32), (None,))
    findings, one = report(capsys, tmp_path)
    assert one['kind'] == 'a folder of GeoTIFFs' and one['looked_at'] == one['total'] == 2
    assert above_a_note(findings) == set()
    assert len(one['bands']['s1']) == 2 and len(one['bands']['s2']) == 12
    assert 'DEM' in findings['file.sensor']['evidence']
    assert 'S1GRD' in findings['file.products']['evidence']


def test_a_stack_of_both_sensors_is_a_pair(tmp_path, capsys):
    pixels = np.stack([*S1.values(), np.full((96, 96), 38.0), *S2.values()]).astype(np.float32)
    put(tmp_path / 'stack.tif', pixels, ('VV', 'VH', 'angle', *S2))
    findings, one = report(capsys, tmp_path / 'stack.tif')
    assert above_a_note(findings) == set()
    assert [row['band'] for row in one['bands']['s1']] == ['VV', 'VH']
    assert [row['band'] for row in one['bands']['s2']] == [*S2]
    assert "s1_bands=\"('VV', 'VH', '-', '-'," in findings['s1.stack']['remedy']
    assert 'angle' in findings['s1.stack']['evidence']


def test_files_of_one_set_must_be_alike(tmp_path, capsys):
    for name, more in (('a', {}), ('b', {'nodata': -9999}), ('c', {'step': 20.0})):
        radar(tmp_path / 's1' / f'{name}.tif', **more)
    findings, _ = report(capsys, tmp_path / 's1')
    assert 's1.unlike' in above_a_note(findings)
    for name, plus in (('a', 0), ('b', 1000)):
        optical(tmp_path / 's2' / f'{name}.tif', plus)
    findings, _ = report(capsys, tmp_path / 's2')
    assert findings['s2.offset_tags']['severity'] == 'error'
    assert 's2.offset_twice' not in findings


def test_a_polarisation_anywhere_in_the_name(tmp_path, capsys):
    for band in ('vv', 'vh'):
        radar(tmp_path / f's1a-iw-{band}-20200101-x.tif', array=S1[band.upper()][None], bands=(None,))
    findings, one = report(capsys, tmp_path)
    assert one['looked_at'] == 1 and above_a_note(findings) == set()
    assert {row['band'] for row in one['bands']['s1']} == {'VV', 'VH'}


def test_names_of_sensors_and_bands(tmp_path):
    sensors = {
        's1': ('S1RTC', 'S1GRD', 's1_grdh', 'S1A', 'sentinel-1', 'sen1', 'x_S1'),
        's2': ('S2L2A', 'S2L1C', 'S2_L2A', 's2_63', 'S2B_MSIL2A', 'Sentinel2'),
        '': ('s12', 'dems1', 's2x', 'DEM', 'classes', 's1rt'),
    }
    for sensor, folders in sensors.items():
        assert {names.sensor_in(name) for name in folders} == {sensor}, sensor
    bands = {
        'S1_VV_20200101.tif': 'VV',
        'x-vh-mosaic.tif': 'VH',
        'S1_VV_VH.tif': 'VH',
        'VV_VH_stack.tif': '',
        'T32UPU_20200101_B02_10m.tif': 'B02',
        'b2_run.tif': '',
        'above.tif': '',
    }
    assert {name: names.band_in(tmp_path / name) for name in bands} == bands
    stems = {names.stem(tmp_path / f'T32_20200101_{band}m.tif') for band in ('B02_10', 'B05_20', 'B09_60')}
    assert stems == {'t32_20200101'}
    assert names.stem(tmp_path / 's1a_vv_x.tif') == names.stem(tmp_path / 's1a_vh_x.tif') == 'x'
