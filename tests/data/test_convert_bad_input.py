"""Damaged archives, and names that are no text: one clear error each, or a listed skip, never half a set."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from fusmae_jax.errors import InputError
from fusmae_jax.shipped.data import sharded
from fusmae_jax.shipped.data.bigearthnet_mm import pairs
from fusmae_jax.shipped.data.bigearthnet_v2.names import patch_folder
from fusmae_jax.shipped.data.generate import bigearthnet_mm as made_up
from fusmae_jax.shipped.data.generate import sen12ms, ssl4eo_s12
from fusmae_jax.shipped.data.generate.scene import SceneConfig
from fusmae_jax.shipped.data.paired_folder import pairs as paired_folders
from fusmae_jax.shipped.data.records import RecordError
from fusmae_jax.shipped.data.sen12ms import triplets
from fusmae_jax.shipped.data.ssl4eo_s12 import locations
from fusmae_jax.shipped.data.ssl4eo_s12.patches import FOLDERS
from tests.support.data_fixtures import Folders, assert_same_records, by_name, metadata, read
from tests.support.files import cut, pixels, rewrite, shift
from tests.support.paired_folder_files import archive, pair


def band(archive: Folders, name: str) -> Path:
    patch = archive.patch('s1' if name.startswith('V') else 's2')
    return patch / f'{patch.name}_{name}.tif'


def change_json(archive: Folders, sensor: str, **changes):
    file, values = metadata(archive.patch(sensor))
    values = {**values, **changes}
    file.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


def remove_patch(archive: Folders, sensor: str):
    for file in archive.patch(sensor).iterdir():
        file.unlink()
    archive.patch(sensor).rmdir()


def linear(archive: Folders):
    for name in ('VV', 'VH'):
        rewrite(band(archive, name), 10 ** (pixels(band(archive, name)) / 10))


def filled(archive: Folders):
    values = pixels(band(archive, 'VH'))
    values[:, :, :30] = -9999
    rewrite(band(archive, 'VH'), values)


BAD = {
    'missing_band': (lambda a: band(a, 'B8A').unlink(), r'_B8A\.tif: B8A: the file is missing'),
    'truncated': (lambda a: cut(band(a, 'B04'), 20_000), r'_B04\.tif: B04: cannot be read in full'),
    'one_byte_short': (lambda a: cut(band(a, 'VH'), 58_023), r'_VH\.tif: VH: cannot be read in full'),
    'empty_file': (lambda a: cut(band(a, 'VV'), 0), r'_VV\.tif: VV: cannot be read in full \(0 bytes\)'),
    'size': (
        lambda a: rewrite(band(a, 'B05'), np.ones((1, 120, 120), np.uint16)),
        r'_B05\.tif: B05 size: \(120, 120\), expected \(60, 60\)',
    ),
    'dtype': (
        lambda a: rewrite(band(a, 'VV'), np.round(pixels(band(a, 'VV'))).astype(np.int16)),
        r'_VV\.tif: VV dtype: int16, expected float32',
    ),
    'count': (
        lambda a: rewrite(band(a, 'B01'), np.ones((2, 20, 20), np.uint16)),
        r'_B01\.tif: B01 number of channels: 2, expected 1',
    ),
    'position_of_a_band': (lambda a: shift(band(a, 'B03'), 1), r'_B03\.tif: B03 position: .* but B02 has'),
    'position_of_a_sensor': (
        lambda a: [shift(band(a, name), 1) for name in ('VV', 'VH')],
        r's2_10m position: .* but the Sentinel-1 patch has',
    ),
    'crs': (
        lambda a: rewrite(band(a, 'B12'), crs='EPSG:32634'),
        r'_B12\.tif: B12 position: EPSG, left, top = \(32634',
    ),
    'box': (
        lambda a: change_json(a, 's2', coordinates={'ulx': 1, 'uly': 2, 'lrx': 3, 'lry': 4}),
        r'_labels_metadata\.json: coordinates: ',
    ),
    'no_labels': (lambda a: change_json(a, 's2', labels=None), r'_metadata\.json: labels: no such key'),
    'empty_labels': (lambda a: change_json(a, 's1', labels=[]), r'_metadata\.json: labels: \[\], expected'),
    'unknown_label': (
        lambda a: change_json(a, 's2', labels=['Pasture']),
        r"labels: 'Pasture' is not one of the 43 classes; did you mean 'Pastures'\?",
    ),
    'labels_differ': (
        lambda a: change_json(a, 's1', labels=['Pastures']),
        r'labels: .* but the Sentinel-2 patch has',
    ),
    'broken_json': (
        lambda a: cut(metadata(a.patch('s1'))[0], 50),
        r'_metadata\.json: metadata: not valid JSON',
    ),
    'no_json': (
        lambda a: metadata(a.patch('s2'))[0].unlink(),
        r'_metadata\.json: metadata: the JSON file is missing',
    ),
    'bad_time': (
        lambda a: change_json(a, 's1', acquisition_time='noon'),
        r"acquisition_time: 'noon' is not a time",
    ),
    'other_partner': (
        lambda a: change_json(a, 's1', corresponding_s2_patch='S2A_MSIL2A_20170617T113321_4_55'),
        r'corresponding_s2_patch: S2A_MSIL2A_20170617T113321_4_55, but the published table',
    ),
    'no_s2_partner': (lambda a: remove_patch(a, 's2'), r'S2A_\w+: folder: missing, the partner of S1A_'),
    'no_s1_partner': (lambda a: remove_patch(a, 's1'), r'S1A_\w+: folder: missing, the partner of S2A_'),
    'fill': (filled, r's1 VH: 25\.0% of the pixels .* -9999; a fill value'),
    'linear_power': (linear, r's1 \(VV, VH\): no negative value .* linear power'),
}


THROUGH_BEAM = ('missing_band', 'no_s1_partner')


@pytest.mark.parametrize('case', BAD)
def test_bad_input(case, example_archive, example_dataset, tmp_path, request):
    if case not in THROUGH_BEAM:
        request.getfixturevalue('in_a_loop')
    archive = example_archive.copy(tmp_path)
    damage, message = BAD[case]
    damage(archive)
    output = tmp_path / 'fail'
    with pytest.raises(InputError, match=message) as caught:
        sharded.convert(archive.source(), output)
    assert '\n' not in str(caught.value)
    assert ';' in str(caught.value)  # what to do
    assert not (output / 'bigearthnet_mm' / '1.0.0').exists()
    assert not list(output.rglob('dataset_info.json'))

    folder, report = sharded.convert(archive.source(on_error='skip'), tmp_path / 'skip', on_error='skip')
    (skip,) = report['skips']
    assert skip.keys() == {'record', 'file', 'field', 'reason'}
    left = by_name(read(folder))
    assert report['records'] == len(left) == 5
    assert_same_records(left.values(), [r for n, r in by_name(read(example_dataset)).items() if n in left])


@pytest.mark.usefixtures('in_a_loop')
def test_nan_in_sentinel_1_is_kept_and_counted(example_archive, tmp_path):
    archive = example_archive.copy(tmp_path)
    values = pixels(band(archive, 'VV'))
    values[0, :3, :5], values[0, 9, 9] = np.nan, -np.inf
    rewrite(band(archive, 'VV'), values)
    folder, report = sharded.convert(archive.source(), tmp_path / 'out')
    train = report['splits']['train']
    assert report['skips'] == []
    assert train['statistics']['s1']['VV']['invalid'] == 16
    assert train['statistics']['s1']['VH']['invalid'] == 0
    assert train['records_with_invalid_pixels']['s1'] == 1
    assert np.isfinite(train['statistics']['s1']['VV']['minimum'])
    name = archive.patch('s1').name.encode()
    (record,) = [r for r in read(folder) if r['s1_name'] == name]
    assert (~np.isfinite(record['s1'])).sum(axis=(0, 1)).tolist() == [16, 0]


def test_too_many_skips_stop_the_conversion(example_archive, tmp_path):
    archive = example_archive.copy(tmp_path)
    for index in range(3):
        metadata(archive.patch('s2', index))[0].unlink()
    with pytest.raises(InputError, match='3 records cannot be used, more than max_skips=2'):
        sharded.convert(archive.source(), tmp_path / 'out', on_error='skip', max_skips=2)
    assert not (tmp_path / 'out' / 'bigearthnet_mm' / '1.0.0').exists()


def test_wrong_folders(tmp_path, example_archive):
    with pytest.raises(InputError, match='nowhere: s1_root: no such folder'):
        pairs.source(pairs.Archive(str(tmp_path / 'nowhere'), str(example_archive.s2)))
    with pytest.raises(InputError, match='s1_root: no folder here has a name starting with S1'):
        pairs.find(example_archive.s2, example_archive.s2)


NO_TEXT = os.fsdecode(b'\xe9')


def paired_folder(folder):
    for name in ('a', 'b', 'folder/c'):
        pair(folder, name)
    # GDAL writes no such name, but finds it.
    for sensor in ('s1', 's2'):
        (folder / sensor / 'b.tif').rename(folder / sensor / f'b{NO_TEXT}.tif')
        (folder / sensor / 'folder').rename(folder / sensor / NO_TEXT)
    return lambda on_error: paired_folders.source(archive(folder), on_error), 4


def bigearthnet(folder):
    settings = made_up.write(folder, 3, SceneConfig())
    root = folder / made_up.S2_ROOT
    shutil.copytree(next(root.iterdir()), root / f'S2A_{NO_TEXT}')
    settings = pairs.Archive(**(settings | {'splits': 'one', 'split_lists': ()}))
    return lambda on_error: pairs.source(settings, on_error), 3


def scenes(folder):
    settings = triplets.Archive(**sen12ms.write(folder, 2, SceneConfig(size=256, level='L1C')), val='none')
    file = next(folder.rglob('*s2*_p*.tif'))
    shutil.copy(file, file.with_name(file.name.replace('_p', f'_p{NO_TEXT}')))
    return lambda on_error: triplets.source(settings, on_error), 2


@pytest.mark.usefixtures('in_a_loop')
@pytest.mark.parametrize('make', [paired_folder, bigearthnet, scenes])
def test_a_name_that_is_no_text_is_said_or_skipped(make, tmp_path):
    source, records = make(tmp_path / 'raw')
    with pytest.raises(InputError) as error:
        source('fail')
    str(error.value).encode()  # raises for half of a surrogate pair
    assert '\\xe9' in str(error.value)
    folder, report = sharded.convert(source('skip'), tmp_path / 'out', on_error='skip')
    assert len(read(folder, '+'.join(report['splits']))) == records
    assert any('\\xe9' in skip['record'] for skip in report['skips'])


def test_an_image_of_ssl4eo_s12_whose_name_is_no_text_leaves_its_location_out(tmp_path):
    settings = ssl4eo_s12.write(tmp_path / 'raw', 8, SceneConfig(size=264), version='1.0')
    image = next(path for path in (tmp_path / 'raw' / FOLDERS['S1']).glob('*/*') if path.is_dir())
    image.rename(image.with_name(image.name + NO_TEXT))
    source = locations.source(locations.Archive(**settings), 'skip')
    items = [item for split in source.splits.values() for item in split]
    with pytest.raises(RecordError, match=r'xe9.*is not UTF-8') as error:
        [source.read(item) for item in items]
    str(error.value).encode()


def test_a_patch_of_bigearthnet_v2_whose_name_is_no_text_is_said(tmp_path):
    with pytest.raises(RecordError, match=r'xe9.*is not UTF-8') as error:
        patch_folder(tmp_path, f'S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_26_{NO_TEXT}')
    str(error.value).encode()
