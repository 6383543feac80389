"""Pairs of the Sentinel downloader beside those of OMBRIA: which they are, their levels, what is refused."""

import warnings

import numpy as np
import pytest
import rasterio
from rasterio.errors import NotGeoreferencedWarning

from benchmarks import ombria_more_pairs, ombria_set
from fusmae_jax.errors import InputError
from fusmae_jax.input import contract
from tests.support.data_fixtures import read

NAMES = {
    'zone_9_a_Apr_00': ('sen1/zone_9_a/image_VV_187_Apr_patch_0', 'sen2/zone_9_a/image_RGB_315_Apr_patch_0'),
    'zone_9_b_Aug_11': (
        'sen1/zone_9_b/image_VV_188_Aug_patch_11',
        'sen2/zone_9_b/image_RGB_318_Aug_patch_11',
    ),
}


@pytest.fixture(scope='module')
def npz(tmp_path_factory):
    """Ten regions, before and after."""
    rng, file = np.random.default_rng(0), tmp_path_factory.mktemp('ombria') / 'a.npz'
    arrays = {
        's1': rng.integers(20, 200, (20, 128, 128, 1), dtype=np.uint8),
        's2': rng.integers(0, 120, (20, 128, 128, 3), dtype=np.uint8),
        'flood': np.zeros((20, 128, 16), np.uint8),
        'region': np.repeat(np.arange(10, dtype=np.int32), 2),
        'after': np.tile([False, True], 10),
    }
    np.savez(file, **arrays)
    return str(file)


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(1)
    for radar, optical in NAMES.values():
        write(tmp_path / f'{radar}.tif', rng.normal(-15, 6, (1, 256, 256)))
        write(tmp_path / f'{optical}.tif', rng.integers(900, 3000, (3, 256, 256), dtype=np.uint16))
        write(tmp_path / f'{optical.replace("RGB", "CM")}.tif', np.zeros((1, 256, 256), np.uint16))
    return tmp_path


def write(file, pixels):
    file.parent.mkdir(parents=True, exist_ok=True)
    about = {'count': len(pixels), 'height': pixels.shape[1], 'width': pixels.shape[2], 'dtype': pixels.dtype}
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', NotGeoreferencedWarning)
        with rasterio.open(file, 'w', driver='GTiff', **about) as out:
            out.write(pixels)


def test_pairs_go_into_training_in_four_parts_at_the_levels_of_ombria(npz, folder, tmp_path):
    assert list(ombria_more_pairs.listed(str(folder))) == list(NAMES)
    made = ombria_more_pairs.write(npz, str(folder), tmp_path / 'data')
    before = ombria_set.items(npz)
    records = {one['name'].decode(): one for one in read(made, 'train')}
    added = {name: x for name, x in records.items() if name.startswith('zone')}
    assert len(added) == 8 and len(records) == 8 + len(before['train'])
    for split in ('val', 'test'):
        assert {one['name'].decode() for one in read(made, split)} == {item.key for item in before[split]}
    wanted = ombria_more_pairs.ombria_levels(npz)
    for sensor in ('s1', 's2'):
        pixels = np.concatenate([one[sensor].reshape(-1, one[sensor].shape[-1]) for one in added.values()])
        np.testing.assert_allclose(pixels.mean(0), wanted[sensor].mean, atol=1.5)
        np.testing.assert_allclose(pixels.std(0), wanted[sensor].std, rtol=0.05)
    # The lower right part of an image, in step with its radar image.
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', NotGeoreferencedWarning)
        stored = [rasterio.open(folder / f'{name}.tif').read() for name in NAMES['zone_9_b_Aug_11']]
    part = added['zone_9_b_Aug_11_128_128']
    for sensor, whole in zip(('s1', 's2'), stored):
        cut = np.moveaxis(whole, 0, -1)[128:, 128:, 0]
        assert np.corrcoef(cut.ravel(), part[sensor][..., 0].ravel())[0, 1] > 0.99
    assert contract.read(made).groups['s1'].unit == ombria_set.UNIT


def test_folders_that_are_none(npz, folder, tmp_path_factory):
    with pytest.raises(InputError, match='give the folder dataset_sample'):
        ombria_more_pairs.listed(str(tmp_path_factory.mktemp('empty')))
    small = folder / f'{NAMES["zone_9_a_Apr_00"][0]}.tif'
    write(small, np.zeros((1, 64, 64)))
    with pytest.raises(InputError, match=r's1: \(64, 64, 1\), .* expected \(256, 256, 1\)'):
        ombria_more_pairs.write(npz, str(folder), folder / 'data')
    (folder / f'{NAMES["zone_9_b_Aug_11"][0]}.tif').unlink()
    with pytest.raises(InputError, match='zone_9_b_Aug_11 has no image of s1'):
        ombria_more_pairs.listed(str(folder))
