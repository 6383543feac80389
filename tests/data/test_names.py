"""Files and folders whose names are bytes and no text: one sentence, or a listed skip, in every archive."""

import os
import shutil

import pytest

from data import sharded
from data.bigearthnet_mm import pairs as bigearthnet_mm
from data.bigearthnet_v2.names import patch_folder
from data.generate import bigearthnet_mm as made_up
from data.generate import sen12ms, ssl4eo_s12
from data.generate.scene import SceneConfig
from data.paired_folder import pairs
from data.records import RecordError
from data.sen12ms import triplets
from data.ssl4eo_s12 import locations
from data.ssl4eo_s12.patches import FOLDERS
from fusmae_jax.errors import InputError
from tests.support.data_fixtures import read
from tests.support.paired_folder_files import archive, pair

BAD = os.fsdecode(b'\xe9')


def paired_folder(folder):
    for name in ('a', 'b', 'folder/c'):
        pair(folder, name)
    # GDAL writes no such name, but finds it.
    for sensor in ('s1', 's2'):
        (folder / sensor / 'b.tif').rename(folder / sensor / f'b{BAD}.tif')
        (folder / sensor / 'folder').rename(folder / sensor / BAD)
    return lambda on_error: pairs.source(archive(folder), on_error), 4


def bigearthnet(folder):
    settings = made_up.write(folder, 3, SceneConfig())
    root = folder / made_up.S2_ROOT
    shutil.copytree(next(root.iterdir()), root / f'S2A_{BAD}')
    settings = bigearthnet_mm.Archive(**(settings | {'splits': 'one', 'split_lists': ()}))
    return lambda on_error: bigearthnet_mm.source(settings, on_error), 3


def scenes(folder):
    settings = triplets.Archive(**sen12ms.write(folder, 2, SceneConfig(size=256, level='L1C')), val='none')
    file = next(folder.rglob('*s2*_p*.tif'))
    shutil.copy(file, file.with_name(file.name.replace('_p', f'_p{BAD}')))
    return lambda on_error: triplets.source(settings, on_error), 2


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
    image.rename(image.with_name(image.name + BAD))
    source = locations.source(locations.Archive(**settings), 'skip')
    items = [item for split in source.splits.values() for item in split]
    with pytest.raises(RecordError, match=r'xe9.*is not UTF-8') as error:
        [source.read(item) for item in items]
    str(error.value).encode()


def test_a_patch_of_bigearthnet_v2_whose_name_is_no_text_is_said(tmp_path):
    with pytest.raises(RecordError, match=r'xe9.*is not UTF-8') as error:
        patch_folder(tmp_path, f'S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_26_{BAD}')
    str(error.value).encode()
