"""The doctor on files: raw archives of every layout, converted sets, GeoTIFFs of any size."""

import json
import re
import shutil

import numpy as np
import pytest
import rasterio

from data import sharded
from data.bigearthnet_mm import pairs
from data.doctor.command import run
from data.doctor.opening import open_paths
from data.generate import bigearthnet_mm, bigearthnet_v2, paired_folder, sen12ms, ssl4eo_s12
from data.generate.geotiff import write_bands
from data.generate.scene import SceneConfig, resampled, scene
from data.geotiff import Place
from fusmae_jax.errors import InputError
from tests.support.data_fixtures import metadata

PLACE = Place(32633, 300000, 5900040)
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
    found = {f['code']: f for f in first['findings'] if f['severity'] in ('warning', 'error')}
    return code, found, first


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
    code, found, whole = report(capsys, archives[layout])
    assert code == 0 and found == {}
    assert whole['kind'].startswith(ARCHIVES[layout][3])
    assert whole['looked_at'] >= 2
    assert len(whole['bands']['s1']) == 2 and len(whole['bands']['s2']) in (12, 13)
    (evidence,) = open_paths([str(archives[layout])])
    for sensor in evidence.sensors.values():
        assert all(image and all(x.ndim == 2 for x in image.values()) for image in sensor.images)
        assert all(grids for grids in sensor.grids)


def test_nothing_is_wrong_with_the_six_real_pairs(example_archive, example_dataset, capsys):
    for paths in ([example_archive.s1.parent], list(example_archive), [example_dataset]):
        code, found, whole = report(capsys, *paths)
        assert code == 0 and found == {} and whole['looked_at'] == 6
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
    code, found, _ = report(capsys, folder)
    assert found.keys() == {'s1.unit'} and 'linear power' in found['s1.unit']['what']
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
    code, found, _ = report(capsys, folder)
    assert code == 4
    assert {'file.unreadable', 's2.absent', 'labels.unknown', 'pair.crs'} <= found.keys()
    assert cut.name in found['file.unreadable']['evidence']
    assert "'Coniferous Forrest'" in found['labels.unknown']['evidence']
    assert '32601' in found['pair.crs']['evidence']


def test_patches_without_partner(archives, tmp_path, capsys):
    folder = copied(archives, 'bigearthnet_mm', tmp_path)
    shutil.rmtree(sorted((folder / bigearthnet_mm.S2_ROOT).iterdir())[0])
    code, found, whole = report(capsys, folder)
    assert code == 3 and found.keys() == {'pair.partner'} and whole['looked_at'] == 3


def test_names_in_metadata_cannot_lead_out_of_the_archive(archives, tmp_path, capsys):
    folder = copied(archives, 'bigearthnet_mm', tmp_path)
    outside = shutil.move(sorted((folder / bigearthnet_mm.S2_ROOT).iterdir())[0], tmp_path / 'outside')
    for patch in (folder / bigearthnet_mm.S1_ROOT).iterdir():
        file, values = metadata(patch)
        file.write_text(json.dumps({**values, 'corresponding_s2_patch': str(outside)}))
    _, found, whole = report(capsys, folder)
    assert 'pair.partner' in found and whole['looked_at'] == 0


def test_converted_set_with_faults(archives, tmp_path, capsys):
    folder = copied(archives, 'bigearthnet_mm', tmp_path)
    for patch in (folder / bigearthnet_mm.S1_ROOT).iterdir():
        rewrite(patch / f'{patch.name}_VV.tif', lambda x: np.rint(x))
        rewrite(patch / f'{patch.name}_VH.tif', lambda x: np.rint(x))
    archive = pairs.Archive(
        str(folder / bigearthnet_mm.S1_ROOT), str(folder / bigearthnet_mm.S2_ROOT), splits='one'
    )
    path, _ = sharded.convert(pairs.source(archive), tmp_path / 'set')
    code, found, whole = report(capsys, path)
    assert code == 4 and found.keys() == {'s1.integer'}
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
    code, found, whole = report(capsys, *large_pair)
    assert code == 0 and found == {} and whole['looked_at'] == 64
    # The same file, said to lie 120 m further east: the ground of the two is wrong, and so are the edges.
    moved = shutil.copy(large_pair[1], tmp_path / 's2.tif')
    rewrite(moved, lambda x: x, transform=rasterio.Affine(10, 0, PLACE.left + 120, 0, -10, PLACE.top))
    code, found, _ = report(capsys, large_pair[0], moved)
    assert code == 4 and found.keys() == {'pair.extent', 'pair.shift'}
    assert '+12.0 px right' in found['pair.shift']['evidence']


def test_images_without_common_ground_are_looked_at_one_by_one(tmp_path, capsys):
    one = scene(SceneConfig(seed=13, size=520), 0)
    for sensor, images, zone in (('s1', one.s1, 32633), ('s2', resampled(one), 32601)):
        place = PLACE._replace(epsg=zone)
        write_bands(tmp_path / f'{sensor}.tif', np.stack(list(images.values())), place, 10)
    code, found, whole = report(capsys, tmp_path / 's1.tif', tmp_path / 's2.tif')
    assert code == 4 and found.keys() == {'pair.crs'} and whole['looked_at'] == 2 * 16


def test_one_file(large_pair, tmp_path, capsys):
    code, found, whole = report(capsys, large_pair[1])
    assert code == 0 and found == {} and whole['bands'].keys() == {'s2'}
    swapped = shutil.copy(large_pair[0], tmp_path / 'image_s1.tif')
    rewrite(swapped, lambda x: x[::-1])
    code, found, _ = report(capsys, swapped)
    assert code == 4 and found.keys() == {'s1.order'}


def test_processing_baseline_in_names(tmp_path, capsys):
    """A few patches cannot decide about the offset; the name of the product can warn."""
    one = scene(SceneConfig(seed=3, size=120, offset=1000), 0)
    file = tmp_path / 'S2B_MSIL2A_20230517T103629_N0509_R008_T32UPU_clip.tif'
    write_bands(file, np.stack(list(resampled(one).values())), PLACE, 10)
    code, found, _ = report(capsys, file)
    assert code == 3 and found.keys() == {'s2.offset'} and '05.09' in found['s2.offset']['evidence']


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
