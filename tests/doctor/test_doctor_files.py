"""The doctor on files: raw archives, converted sets, GeoTIFFs of any size, and what `convert` refuses."""

import json
import re
import shutil

import numpy as np
import pytest
import rasterio
from rasterio.transform import Affine

from fusmae_jax.errors import InputError
from fusmae_jax.shipped.data import geotiff, sharded
from fusmae_jax.shipped.data.bigearthnet_mm import pairs
from fusmae_jax.shipped.data.doctor import names
from fusmae_jax.shipped.data.doctor.command import run
from fusmae_jax.shipped.data.doctor.opening import open_paths
from fusmae_jax.shipped.data.generate import (
    bigearthnet_mm,
    bigearthnet_v2,
    paired_folder,
    sen12ms,
    ssl4eo_s12,
)
from fusmae_jax.shipped.data.generate.geotiff import write_bands
from fusmae_jax.shipped.data.generate.scene import SceneConfig, resampled, scene
from tests.support.data_fixtures import metadata
from tests.support.paired_folder_files import put

ONE = scene(SceneConfig(seed=21, size=96), 0)
S1, S2 = ONE.s1, resampled(ONE)


def radar(file, **more):
    put(file, **({'array': np.stack([S1['VV'], S1['VH']]), 'bands': ('VV', 'VH')} | more))


def optical(file, plus=0, **more):
    pixels = np.stack(list(S2.values())) + np.uint16(plus)
    put(file, **({'array': pixels, 'bands': tuple(S2), 'tags': {'BOA_ADD_OFFSET': str(-plus)}} | more))


def findings_of(capsys, *paths):
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
    findings, _ = findings_of(capsys, file)
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
    findings, _ = findings_of(capsys, tmp_path / 's1' / 'a.tif')
    assert 's1.mask_refused' in above_a_note(findings) and 's1.fill' not in findings
    assert 'rio calc' in findings['s1.mask_refused']['remedy']
    assert 's1.fill' not in findings_of(capsys, tmp_path / 's2' / 'a.tif')[0]


def test_no_place_is_not_the_same_as_not_north_up(tmp_path, capsys):
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning):
        radar(tmp_path / 's1.tif', epsg=0, transform=None)
    findings, _ = findings_of(capsys, tmp_path / 's1.tif')
    assert findings['pair.place']['severity'] == 'warning' and 'pair.grid' not in findings
    radar(tmp_path / 's1_up.tif', transform=Affine(10, 0, 5e5, 0, 10, 5e6))
    findings, _ = findings_of(capsys, tmp_path / 's1_up.tif')
    assert 'pair.grid' in findings and 'pair.place' not in findings


def test_a_wrong_geotransform_is_said_and_nothing_to_be_warped(tmp_path, capsys):
    radar(tmp_path / 's1.tif')
    optical(tmp_path / 's2.tif', step=60.0)
    findings, _ = findings_of(capsys, tmp_path / 's1.tif', tmp_path / 's2.tif')
    assert above_a_note(findings) == {'pair.geotransform'}
    remedy = findings['pair.geotransform']['remedy']
    assert 'rio edit-info --transform' in remedy and 'rio warp' not in remedy
    radar(tmp_path / 's1.tif', left=500_300.0)
    findings, _ = findings_of(capsys, tmp_path / 's1.tif', tmp_path / 's2.tif')
    assert 'pair.extent' not in findings
    optical(tmp_path / 's2.tif')
    findings, _ = findings_of(capsys, tmp_path / 's1.tif', tmp_path / 's2.tif')
    assert 'rio warp' in findings['pair.extent']['remedy']


def test_folders_of_products_with_geotiffs(tmp_path, capsys):
    """Sets for models of several sensors: a folder a product, one name for the files of a place."""
    for name in ('1_2.tif', '1_3.tif'):
        for product in ('S1RTC', 'S1GRD'):
            radar(tmp_path / product / name)
        optical(tmp_path / 'S2L2A' / name)
        put(tmp_path / 'DEM' / name, np.full((1, 96, 96), 300.0, np.float32), (None,))
    findings, one = findings_of(capsys, tmp_path)
    assert one['kind'] == 'a folder of GeoTIFFs' and one['looked_at'] == one['total'] == 2
    assert above_a_note(findings) == set()
    assert len(one['bands']['s1']) == 2 and len(one['bands']['s2']) == 12
    assert 'DEM' in findings['file.sensor']['evidence']
    assert 'S1GRD' in findings['file.products']['evidence']


def test_a_stack_of_both_sensors_is_a_pair(tmp_path, capsys):
    pixels = np.stack([*S1.values(), np.full((96, 96), 38.0), *S2.values()]).astype(np.float32)
    put(tmp_path / 'stack.tif', pixels, ('VV', 'VH', 'angle', *S2))
    findings, one = findings_of(capsys, tmp_path / 'stack.tif')
    assert above_a_note(findings) == set()
    assert [row['band'] for row in one['bands']['s1']] == ['VV', 'VH']
    assert [row['band'] for row in one['bands']['s2']] == [*S2]
    assert "s1_bands=\"('VV', 'VH', '-', '-'," in findings['s1.stack']['remedy']
    assert 'angle' in findings['s1.stack']['evidence']


def test_files_of_one_set_must_be_alike(tmp_path, capsys):
    for name, more in (('a', {}), ('b', {'nodata': -9999}), ('c', {'step': 20.0})):
        radar(tmp_path / 's1' / f'{name}.tif', **more)
    findings, _ = findings_of(capsys, tmp_path / 's1')
    assert 's1.unlike' in above_a_note(findings)
    for name, plus in (('a', 0), ('b', 1000)):
        optical(tmp_path / 's2' / f'{name}.tif', plus)
    findings, _ = findings_of(capsys, tmp_path / 's2')
    assert findings['s2.offset_tags']['severity'] == 'error'
    assert 's2.offset_twice' not in findings


def test_a_polarisation_anywhere_in_the_name(tmp_path, capsys):
    for band in ('vv', 'vh'):
        radar(tmp_path / f's1a-iw-{band}-20200101-x.tif', array=S1[band.upper()][None], bands=(None,))
    findings, one = findings_of(capsys, tmp_path)
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


PLACE = geotiff.Place(32633, 300000, 5900040)
ARCHIVES = {
    'bigearthnet_mm': (bigearthnet_mm.write, SceneConfig(seed=11), {}, 'BigEarthNet-MM v1'),
    'bigearthnet_v2': (bigearthnet_v2.write, SceneConfig(seed=11), {}, 'BigEarthNet v2'),
    'sen12ms': (sen12ms.write, SceneConfig(seed=11, size=256, level='L1C'), {}, 'SEN12MS'),
    'ssl4eo_s12_1.1': (ssl4eo_s12.write, SceneConfig(seed=11, size=264), {'samples': 2}, 'SSL4EO-S12 v1.1'),
    'ssl4eo_s12_1.0': (
        ssl4eo_s12.write,
        SceneConfig(seed=11, size=264),
        {'version': '1.0'},
        'SSL4EO-S12 v1.0',
    ),
    'paired_folder': (paired_folder.write, SceneConfig(seed=11), {}, 'a folder of GeoTIFFs'),
}


def report(capsys, *paths, **options):
    """Exit code and the findings above a note, by code, of the first thing looked at."""
    code = run([str(path) for path in paths], as_json=True, **options)
    (first, *_) = json.loads(capsys.readouterr().out)
    serious = {f['code']: f for f in first['findings'] if f['severity'] in ('warning', 'error')}
    return code, serious, first


@pytest.fixture(scope='module')
def archives(tmp_path_factory):
    """Layout -> its generated archive, of four pairs or a little more."""
    folders = {}
    for layout, (write, config, more, _) in ARCHIVES.items():
        folders[layout] = tmp_path_factory.mktemp(layout)
        write(folders[layout], 4, config, **more)
    return folders


@pytest.mark.parametrize('layout', ARCHIVES)
def test_every_layout_is_recognised_and_nothing_is_wrong_with_it(archives, layout, capsys):
    code, findings, whole = report(capsys, archives[layout])
    assert code == 0 and findings == {}
    assert whole['kind'].startswith(ARCHIVES[layout][3])
    assert whole['looked_at'] >= 2
    assert len(whole['bands']['s1']) == 2 and len(whole['bands']['s2']) in (12, 13)
    (evidence,) = open_paths([str(archives[layout])])
    for sensor in evidence.sensors.values():
        assert all(image and all(x.ndim == 2 for x in image.values()) for image in sensor.images)
        assert all(grids for grids in sensor.grids)


def test_nothing_is_wrong_with_the_six_real_pairs(example_archive, example_dataset, capsys):
    for paths in ([example_archive.s1.parent], list(example_archive), [example_dataset]):
        code, findings, whole = report(capsys, *paths)
        assert code == 0 and findings == {} and whole['looked_at'] == 6
    assert run([str(example_archive.s1.parent)]) == 0
    text = capsys.readouterr().out
    assert '0 errors, 0 warnings' in text and 'CANNOT TELL' in text and 'B8A' in text


def copied(archives, layout, folder):
    return shutil.copytree(archives[layout], folder / layout)


def rewrite(file, change, **profile):
    """A GeoTIFF with other values (bands, rows, columns) or another profile."""
    with rasterio.open(file) as dataset:
        pixels, about, texts = dataset.read(), dataset.profile, dataset.descriptions
    pixels = change(pixels)
    about.update(dtype=pixels.dtype, **profile)
    with rasterio.open(file, 'w', **about) as dataset:
        dataset.write(pixels)
        dataset.descriptions = texts


def s1_files(folder):
    return sorted(f for f in folder.rglob('*.tif') if re.search(r'_V[VH]\.tif|_s1_|/s1/', str(f)))


@pytest.mark.parametrize('layout', ['bigearthnet_mm', 'bigearthnet_v2', 'sen12ms', 'paired_folder'])
def test_linear_power_in_files(archives, layout, tmp_path, capsys):
    folder = copied(archives, layout, tmp_path)
    for file in s1_files(folder):
        rewrite(file, lambda x: (10 ** (x / 10)).astype(np.float32))
    code, findings, _ = report(capsys, folder)
    assert findings.keys() == {'s1.unit'} and 'linear power' in findings['s1.unit']['what']
    # A layout says that its values are dB; a user's files say nothing.
    assert code == (3 if layout == 'paired_folder' else 4)


def test_damaged_archive(archives, tmp_path, capsys):
    """One fault each in four patches; all are told, with the names of the files."""
    folder = copied(archives, 'bigearthnet_mm', tmp_path)
    s2 = sorted((folder / bigearthnet_mm.S2_ROOT).iterdir())
    s1 = sorted((folder / bigearthnet_mm.S1_ROOT).iterdir())
    cut = s2[0] / f'{s2[0].name}_B02.tif'
    cut.write_bytes(cut.read_bytes()[:2000])
    (s2[1] / f'{s2[1].name}_B05.tif').unlink()
    file, values = metadata(s1[2])
    file.write_text(json.dumps({**values, 'labels': ['Coniferous Forrest']}))
    rewrite(s1[3] / f'{s1[3].name}_VV.tif', lambda x: x, crs='EPSG:32601')
    code, findings, _ = report(capsys, folder)
    assert code == 4
    assert {'file.unreadable', 's2.absent', 'labels.unknown', 'pair.crs'} <= findings.keys()
    assert cut.name in findings['file.unreadable']['evidence']
    assert "'Coniferous Forrest'" in findings['labels.unknown']['evidence']
    assert '32601' in findings['pair.crs']['evidence']


def test_patches_without_partner(archives, tmp_path, capsys):
    folder = copied(archives, 'bigearthnet_mm', tmp_path)
    shutil.rmtree(sorted((folder / bigearthnet_mm.S2_ROOT).iterdir())[0])
    code, findings, whole = report(capsys, folder)
    assert code == 3 and findings.keys() == {'pair.partner'} and whole['looked_at'] == 3


def test_names_in_metadata_cannot_lead_out_of_the_archive(archives, tmp_path, capsys):
    folder = copied(archives, 'bigearthnet_mm', tmp_path)
    outside = shutil.move(sorted((folder / bigearthnet_mm.S2_ROOT).iterdir())[0], tmp_path / 'outside')
    for patch in (folder / bigearthnet_mm.S1_ROOT).iterdir():
        file, values = metadata(patch)
        file.write_text(json.dumps({**values, 'corresponding_s2_patch': str(outside)}))
    _, findings, whole = report(capsys, folder)
    assert 'pair.partner' in findings and whole['looked_at'] == 0


def test_converted_set_with_faults(archives, tmp_path, capsys):
    folder = copied(archives, 'bigearthnet_mm', tmp_path)
    for patch in (folder / bigearthnet_mm.S1_ROOT).iterdir():
        rewrite(patch / f'{patch.name}_VV.tif', lambda x: np.rint(x))
        rewrite(patch / f'{patch.name}_VH.tif', lambda x: np.rint(x))
    archive = pairs.Archive(
        str(folder / bigearthnet_mm.S1_ROOT), str(folder / bigearthnet_mm.S2_ROOT), splits='one'
    )
    path, _ = sharded.convert(pairs.source(archive), tmp_path / 'set')
    code, findings, whole = report(capsys, path)
    assert code == 4 and findings.keys() == {'s1.integer'}
    assert whole['kind'].startswith('converted data set bigearthnet_mm') and whole['splits'] == {'train': 4}
    # Without its index the images are still looked at.
    (path / 'index-train.npz').unlink()
    assert {'s1.integer', 'split.index'} == report(capsys, path)[1].keys()


@pytest.fixture(scope='module')
def large_pair(tmp_path_factory):
    """A pair of 1,100 px a side on one grid, with names of bands."""
    folder = tmp_path_factory.mktemp('large')
    one = scene(SceneConfig(seed=12, size=1100), 0)
    for sensor, images in (('s1', one.s1), ('s2', resampled(one))):
        write_bands(folder / f'{sensor}.tif', np.stack(list(images.values())), PLACE, 10)
        with rasterio.open(folder / f'{sensor}.tif', 'r+') as dataset:
            dataset.descriptions = tuple(images)
    return folder / 's1.tif', folder / 's2.tif'


def test_large_pair_is_looked_at_in_windows(large_pair, tmp_path, capsys):
    code, findings, whole = report(capsys, *large_pair)
    assert code == 0 and findings == {} and whole['looked_at'] == 64
    # The same file, said to lie 120 m further east: the ground of the two is wrong, and so are the edges.
    moved = shutil.copy(large_pair[1], tmp_path / 's2.tif')
    rewrite(moved, lambda x: x, transform=rasterio.Affine(10, 0, PLACE.left + 120, 0, -10, PLACE.top))
    code, findings, _ = report(capsys, large_pair[0], moved)
    assert code == 4 and findings.keys() == {'pair.extent', 'pair.shift'}
    assert '+12.0 px right' in findings['pair.shift']['evidence']


def test_images_without_common_ground_are_looked_at_one_by_one(tmp_path, capsys):
    one = scene(SceneConfig(seed=13, size=520), 0)
    for sensor, images, zone in (('s1', one.s1, 32633), ('s2', resampled(one), 32601)):
        place = PLACE._replace(epsg=zone)
        write_bands(tmp_path / f'{sensor}.tif', np.stack(list(images.values())), place, 10)
    code, findings, whole = report(capsys, tmp_path / 's1.tif', tmp_path / 's2.tif')
    assert code == 4 and findings.keys() == {'pair.crs'} and whole['looked_at'] == 2 * 16


def test_one_file(large_pair, tmp_path, capsys):
    code, findings, whole = report(capsys, large_pair[1])
    assert code == 0 and findings == {} and whole['bands'].keys() == {'s2'}
    swapped = shutil.copy(large_pair[0], tmp_path / 'image_s1.tif')
    rewrite(swapped, lambda x: x[::-1])
    code, findings, _ = report(capsys, swapped)
    assert code == 4 and findings.keys() == {'s1.order'}


def test_processing_baseline_in_names(tmp_path, capsys):
    """A few patches cannot decide about the offset; the name of the product can warn."""
    one = scene(SceneConfig(seed=3, size=120, offset=1000), 0)
    file = tmp_path / 'S2B_MSIL2A_20230517T103629_N0509_R008_T32UPU_clip.tif'
    write_bands(file, np.stack(list(resampled(one).values())), PLACE, 10)
    code, findings, _ = report(capsys, file)
    assert code == 3 and findings.keys() == {'s2.offset'} and '05.09' in findings['s2.offset']['evidence']


def test_html_report_stands_alone(archives, tmp_path, capsys):
    page = tmp_path / 'report.html'
    assert run([str(archives['bigearthnet_mm'])], html=str(page)) == 0
    text = page.read_text()
    assert text.count('data:image/png;base64,') == 2 + 2 * 4  # histograms, and two pictures a pair
    assert not re.search(r'(?:src|href)="(?!data:)', text) and '<script' not in text
    assert 'Sentinel-1' in text and 'Sentinel-2' in text and 'class="finding note"' in text
    assert list(tmp_path.iterdir()) == [page]


def test_paths_that_hold_nothing(archives, tmp_path, large_pair):
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'notes.txt').write_text('none')
    for paths, words in (
        ([tmp_path / 'missing'], 'no such file or folder'),
        ([tmp_path / 'empty'], 'nothing here that is known'),
        ([tmp_path / 'notes.txt'], 'no GeoTIFF'),
        ([], '0 paths'),
        ([large_pair[0], large_pair[0]], 'of the same sensor'),
    ):
        with pytest.raises(InputError, match=words):
            run([str(path) for path in paths])
    with pytest.raises(InputError, match='no such option'):
        run([str(archives['sen12ms'])], colour=True)
    with pytest.raises(InputError, match='create it first'):
        run([str(archives['sen12ms'])], html=str(tmp_path / 'no' / 'report.html'))
