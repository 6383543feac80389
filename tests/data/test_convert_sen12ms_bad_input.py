"""Damaged SEN12MS archives: one clear error each, or a listed skip, and never a half-written data set."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from data import sharded
from data.sen12ms.schema import PUBLISHED
from fusmae_jax.errors import InputError
from tests.support.data_fixtures import assert_same_records, read
from tests.support.sen12ms_fixtures import (
    TRIPLETS,
    archive,
    assert_holds_the_files,
    dataset,
    files,
    pixels,
    rewrite,
    shift,
    source,
)

__all__ = ['archive', 'dataset']  # fixtures


def cut(file: Path, size: int):
    file.write_bytes(file.read_bytes()[:size])


def escape(file: Path):
    """The file lies outside the archive, and a link leads there."""
    outside = file.parents[3] / 'outside.tif'
    file.rename(outside)
    file.symlink_to(outside)


DAMAGE = {
    's1_missing': (
        lambda f: f['s1'].unlink(),
        r's1_\d+_p\d+\.tif: s1: missing, though \w+_s2_\w+\.tif is there',
    ),
    'only_s1': (lambda f: (f['s2'].unlink(), f['lc'].unlink()), r's2_\d+_p\d+\.tif: s2 and lc: missing'),
    's1_dtype': (
        lambda f: rewrite(f['s1'], pixels(f['s1']).round().astype(np.int16)),
        r's1 dtype: int16, expected float32',
    ),
    's1_power': (
        lambda f: rewrite(f['s1'], 10 ** (pixels(f['s1']) / 10)),
        r's1 \(VV, VH\): no negative value',
    ),
    's2_without_b10': (
        lambda f: rewrite(f['s2'], np.delete(pixels(f['s2']), 10, 0)),
        r's2 number of channels: 12, expected 13',
    ),
    's2_size': (lambda f: rewrite(f['s2'], pixels(f['s2'])[:, 1:]), r's2 size: \(255, 256\), expected'),
    's2_cut': (lambda f: cut(f['s2'], 900_000), r's2_\w+\.tif: s2: cannot be read in full \(900,000 bytes\)'),
    's2_elsewhere': (lambda f: shift(f['s2'], 10), r's2 position: .* but the Sentinel-1 image has'),
    'lc_elsewhere': (lambda f: shift(f['lc'], -0.2), r'lc position: .* but the Sentinel-1 image has'),
    'lc_zone': (lambda f: rewrite(f['lc'], crs='EPSG:32760'), r'lc position: EPSG, left, top = \(32760'),
    'lc_layers': (lambda f: rewrite(f['lc'], pixels(f['lc'])[:1]), r'lc number of layers: 1, expected 4'),
    'lc_dtype': (
        lambda f: rewrite(f['lc'], pixels(f['lc']).astype(np.float32)),
        r'lc dtype: float32, expected uint8 or uint16',
    ),
    'lc_order': (lambda f: rewrite(f['lc'], 100 + pixels(f['lc'])), r'lc_\w+\.tif: IGBP layer: values 1\d\d'),
    'name': (lambda f: f['lc'].rename(f['lc'].with_name('patch.tif')), r'patch\.tif: name: expected ROIs'),
    'link': (lambda f: escape(f['s2']), r"file: 'ROIs\w+/s2_\d+/ROIs\w+\.tif' leads out of"),
}


def read_all(root: Path):
    listed = source(root, splits='one')
    return [listed.read(item) for item in listed.splits['train']]


@pytest.mark.parametrize('case', DAMAGE)
def test_damage_is_one_clear_error(case, archive, tmp_path):
    root = tmp_path / 'SEN12MS'
    for kind, file in files(archive, 0).items():
        target = files(root, 0)[kind]
        target.parent.mkdir(parents=True)
        shutil.copyfile(file, target)
    damage, message = DAMAGE[case]
    damage(files(root, 0))
    with pytest.raises(InputError, match=message) as caught:
        read_all(root)
    assert '\n' not in str(caught.value)
    assert ';' in str(caught.value)  # what to do


def test_damaged_triplets_are_left_out_and_reported(archive, dataset, tmp_path):
    root = Path(shutil.copytree(archive, tmp_path / 'SEN12MS'))
    for index, (damage, _) in enumerate(DAMAGE.values()):
        damage(files(root, index))
    with pytest.raises(InputError, match=r'; '):
        sharded.convert(source(root, splits='one'), tmp_path / 'fail')
    assert not list(tmp_path.glob('fail/sen12ms/1.0.0'))

    folder, report = sharded.convert(source(root, 'skip', splits='one'), tmp_path / 'skip', on_error='skip')
    damaged = {files(root, index)['s2'].stem for index in range(len(DAMAGE))}
    skipped = {skip['record'] for skip in report['skips']}
    assert skipped >= damaged
    assert skipped - damaged == {'patch'}  # the name that is none
    whole = {r['s2_name']: r for split in PUBLISHED for r in read(dataset, split)}
    left = [record for name, record in whole.items() if name.decode() not in damaged]
    assert report['records'] == len(left) == TRIPLETS - len(DAMAGE)
    assert_same_records(read(folder), left)


def test_a_scene_folder_must_lie_in_the_archive(archive, tmp_path):
    root = Path(shutil.copytree(archive, tmp_path / 'SEN12MS'))
    inside = files(root, 0)['lc'].parent
    inside.rename(tmp_path / 'elsewhere')
    inside.symlink_to(tmp_path / 'elsewhere')
    with pytest.raises(InputError, match=r"scene folder: 'ROIs\w+/lc_\d+' leads out of"):
        source(root)


def test_oddities_that_are_no_damage(archive, tmp_path):
    root = Path(shutil.copytree(archive, tmp_path / 'SEN12MS'))
    nan, wide = files(root, 0), files(root, 3)
    values = pixels(nan['s1'])
    values[0, :2, :3], values[1, 9, 9] = np.nan, -np.inf
    rewrite(nan['s1'], values)
    rewrite(wide['lc'], pixels(wide['lc']).astype(np.uint16))
    shift(wide['lc'], 1e-9)  # rounding
    (nan['s2'].parent / '._hidden.tif').touch()
    (root / 'ROIs1158_spring_s1.tar.gz').touch()
    folder, report = sharded.convert(source(root, splits='one'), tmp_path / 'out')
    assert report['records'] == TRIPLETS and report['skips'] == []
    by_band = report['splits']['train']['statistics']['s1']
    assert [by_band[band]['invalid'] for band in ('VV', 'VH')] == [6, 1]
    assert report['splits']['train']['records_with_invalid_pixels']['s1'] == 1
    for record in read(folder):
        assert_holds_the_files(record, root)
