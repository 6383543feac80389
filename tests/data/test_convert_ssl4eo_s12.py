"""The conversion of SSL4EO-S12, both versions, on generated archives."""

import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds

from fusmae_jax.errors import InputError
from fusmae_jax.input import contract
from fusmae_jax.input.normalise import statistics
from fusmae_jax.input.prepare import make_prepare, unpatchify
from fusmae_jax.shipped.configs.convert_ssl4eo_s12 import VARIANTS, get_config
from fusmae_jax.shipped.data import convert, sharded
from fusmae_jax.shipped.data.generate import ssl4eo_s12_places
from fusmae_jax.shipped.data.generate.scene import resampled, scene
from fusmae_jax.shipped.data.ssl4eo_s12 import cubes, locations, zarr_files
from fusmae_jax.shipped.data.ssl4eo_s12.names import pair, parse_name
from fusmae_jax.shipped.data.ssl4eo_s12.schema import OFFSET
from fusmae_jax.shipped.data.ssl4eo_s12.ssl4eo_s12_dataset_builder import Builder
from tests.support import ssl4eo_s12_archives as archives
from tests.support.data_fixtures import read
from tests.support.tiny import tiny_config, tiny_model

KINDS = {'1.1': ('1.1', 'L2A', 16), '1.0': ('1.0', 'L1C', 8)}


@pytest.fixture(scope='module', params=KINDS)
def made(request, tmp_path_factory):
    """An archive and the data set that it became."""
    version, level, pairs = KINDS[request.param]
    archive = archives.write(tmp_path_factory.mktemp('raw'), version, level, pairs)
    folder, _ = sharded.convert(locations.source(archive), tmp_path_factory.mktemp('data'))
    return archive, Path(folder)


@pytest.fixture(scope='module')
def cubes_made(tmp_path_factory):
    """The same for version 1.1 alone, a location to a file."""
    archive = archives.write(tmp_path_factory.mktemp('raw'), pairs=12, samples=1)
    folder, _ = sharded.convert(locations.source(archive), tmp_path_factory.mktemp('data'))
    return archive, Path(folder)


def all_records(folder: Path) -> list:
    splits = tfds.builder_from_directory(folder).info.splits
    return [record for split in splits for record in read(folder, split)]


def test_records_keep_what_the_files_hold(made):
    archive, folder = made
    for record in all_records(folder):
        for field, group in contract.read(folder).groups.items():
            image, expected = record[field], archives.raw(archive, record, field)
            assert image.dtype == group.dtype == expected.dtype
            assert image.shape == (*group.size, len(group.bands))
            assert np.moveaxis(image, -1, 0).tobytes() == expected.tobytes()


def test_values_are_those_of_the_generated_scenes(cubes_made):
    """From the scene over zip, zarr and ArrayRecord to the record, with nothing of the builder in between."""
    _, folder = cubes_made
    group = contract.read(folder).groups['s2']
    records = {record['sample_id'].decode(): record for record in all_records(folder)}
    for index in range(3):
        place = ssl4eo_s12_places.location(index, archives.CONFIG.seed)
        for time in range(4):
            record = records[f'{place.name}_{time}']
            made = scene(archives.CONFIG, index, time)
            expected = np.stack([resampled(made)[band] for band in group.bands], axis=-1)
            np.testing.assert_array_equal(record['s2'] + group.offset, expected)
            s1 = np.stack([made.s1['VV'], made.s1['VH']], axis=-1)
            np.testing.assert_array_equal(record['s1'], s1.astype(np.float16))
            assert record['epsg'] == place.place.epsg
            np.testing.assert_array_equal(record['upper_left'], place.place[1:])
            np.testing.assert_allclose(record['center'], place.center)
            assert record['tile'].decode() == place.tile
            np.testing.assert_allclose(record['cloud_share'], made.cloud, atol=1e-4)
            assert record['cloud'] == (made.cloud >= 0.1)
            np.testing.assert_allclose(record['mask_share'].sum(), 1, atol=1e-6)
            assert record['snow'] <= made.snow


def test_sensors_are_paired_by_date_not_by_index(made):
    _, folder = made
    by_scene: dict = {}
    for record in all_records(folder):
        by_scene.setdefault(record['scene'], []).append(record)
    misordered = 0
    for records in by_scene.values():
        records.sort(key=lambda record: record['s2_time'])
        assert [record['time_index'] for record in records] == [0, 1, 2, 3]
        s1, s2 = (np.array([record[f's{n}_time'] for record in records]) for n in (1, 2))
        np.testing.assert_array_equal(np.abs(s1[:, None] - s2).argmin(0), np.arange(4))
        names = [record['s1_name'] for record in records]
        assert [parse_name(name.decode()).time for name in names] == s1.tolist()
        misordered += names != sorted(names)
    assert misordered  # else this test could not fail


def test_splits_and_counts(made):
    archive, folder = made
    counts = {name: split['records'] for name, split in archives.report(folder)['splits'].items()}
    published = {name: split['published'] for name, split in archives.report(folder)['splits'].items()}
    if archive.version == '1.0':
        assert counts == {'train': 8}
        assert published == {'train': 1_004_316}
    else:
        assert counts == {'train': 12, 'val': 4}
        assert published == {'train': 975_872, 'val': 8_704}
        scenes = [{record['scene'] for record in read(folder, split)} for split in counts]
        assert not set.intersection(*scenes)
    keys = [record['sample_id'] for record in all_records(folder)]
    assert len(set(keys)) == sum(counts.values())


def test_one_split_of_an_archive(cubes_made, tmp_path):
    archive, _ = cubes_made
    source = locations.source(dataclasses.replace(archive, splits=('val',)))
    assert {name: len(items) for name, items in source.splits.items()} == {'val': 4}
    with pytest.raises(InputError, match="has no split 'val'"):
        locations.source(dataclasses.replace(archive, version='1.0', splits=('val',)))


def test_prepare_takes_half_floats_and_signed_integers_with_their_offset(cubes_made):
    _, folder = cubes_made
    made, config = contract.read(folder), tiny_config(model=tiny_model(image_size=(24, 24)))
    batch = {field: jnp.asarray(read(folder)[0][field])[None, :24, :24] for field in ('s1', 's2')}
    batch['s1'] = batch['s1'].at[0, 0, 0].set(0)  # what Earth Engine fills with
    patches = make_prepare(config, made, None)(batch, None)
    for name, offset in (('s1', 0), ('s2', OFFSET)):
        modality = config.model.modalities[name]
        mean, std = statistics(modality)
        index = [made.groups[name].bands.index(band) for band in modality.bands]
        stored = np.asarray(batch[name][0], np.float32)[..., index]
        expected = np.clip((stored - offset - mean) / std, -config.data.clip, config.data.clip)
        values, valid = (np.asarray(unpatchify(np.asarray(x), (3, 3), 8))[0] for x in patches[name])
        assert (~valid).sum() == len(index) * (name == 's1')
        np.testing.assert_allclose(values[valid], expected[valid], rtol=1e-4, atol=1e-4)


def test_records_read_together_decode_each_chunk_once(cubes_made):
    archive, _ = cubes_made
    source = locations.source(archive)
    items = [item for items in source.splits.values() for item in items]
    order = np.random.default_rng(0).permutation(len(items))
    shuffled = [items[i] for i in order]
    chunks = len({cubes.together(item) for item in items}) * 3  # Sentinel-1, Sentinel-2 and the mask

    def decoded(items):
        zarr_files._chunk.cache_clear()
        for item in items:
            source.read(item)
        return zarr_files._chunk.cache_info().misses

    assert decoded(sorted(shuffled, key=cubes.together)) == chunks


def test_a_mask_is_optional_and_bands_go_by_name(cubes_made, tmp_path):
    archive, _ = cubes_made
    root = Path(shutil.copytree(archive.root, tmp_path / 'copy'))
    copy = dataclasses.replace(archive, root=str(root), splits=('val',))
    before = [locations.source(copy).read(item) for item in locations.source(copy).splits['val']]

    def change(group):
        names, images = group['band'][:], group['bands'][:]
        del group['cloud_mask']
        group['band'][:], group['bands'][:] = names[::-1], images[:, :, ::-1]

    archives.rewrite(archives.zips(copy, 'S2L2A', 'val')[0], change)
    after = [locations.source(copy).read(item) for item in locations.source(copy).splits['val']]
    for old, new in zip(before, after):
        np.testing.assert_array_equal(old['s2'], new['s2'])
        assert np.isfinite(old['mask_share']).all() and np.isnan(new['mask_share']).all()
        assert np.isnan(new['cloud_share']) and new['cloud'] == new['snow'] == 0


def test_corners_of_pixels_are_told_from_centres(cubes_made, tmp_path):
    archive, _ = cubes_made
    copy = dataclasses.replace(
        archive, root=str(shutil.copytree(archive.root, tmp_path / 'c')), splits=('val',)
    )
    before = [locations.source(copy).read(item) for item in locations.source(copy).splits['val']]

    def change(group):
        group['x_'][:], group['y_'][:] = group['x_'][:] - 5, group['y_'][:] + 5

    for kind in ('S1GRD', 'S2L2A'):
        archives.rewrite(archives.zips(copy, kind, 'val')[0], change)
    after = [locations.source(copy).read(item) for item in locations.source(copy).splits['val']]
    np.testing.assert_array_equal(*([r['upper_left'] for r in records] for records in (before, after)))


def test_top_of_atmosphere_of_version_1_1(tmp_path):
    archive = archives.write(tmp_path, level='L1C', pairs=5)
    source = locations.source(archive)
    assert source.schema.name == 'ssl4eo_s12_l1c'
    record = source.read(source.splits['val'][2])
    bands = source.schema.groups['s2'].bands
    assert bands[10] == 'B10' and len(bands) == 13
    raw = archives.raw(archive, {key: record[key].encode() for key in ('scene', 's2_name')}, 's2')
    np.testing.assert_array_equal(np.moveaxis(record['s2'], -1, 0), raw)


def test_corners_of_version_1_0_are_those_of_the_ground(tmp_path):
    archive = archives.write(tmp_path, '1.0', pairs=5)
    item = locations.source(archive).splits['train'][0]
    record = locations.source(archive).read(item)
    names = [ssl4eo_s12_places.location(index, archives.CONFIG.seed).name for index in range(2)]
    place = ssl4eo_s12_places.location(names.index(record['scene']), archives.CONFIG.seed).place
    corner = ssl4eo_s12_places.degrees(*place)
    np.testing.assert_allclose(record['upper_left'], corner, atol=1e-9)
    off = (record['s1_upper_left'] - record['upper_left']) / record['pixel_size']
    np.testing.assert_allclose(off, [1.5, -1.5], atol=1e-5)


def test_the_contract_says_what_the_values_are(made):
    archive, folder = made
    stored = contract.read(folder)
    groups = [group for group in stored.groups.values() if group.modality == 's2']
    assert {group.offset for group in groups} == {-1000.0 if archive.version == '1.1' else 0.0}
    assert stored.products['s2'].level == archive.optical.removeprefix('S2')
    assert stored.products['s1'].calibration == 'sigma0'
    assert 'B10' in stored.modality_bands('s2') or archive.optical == 'S2L2A'


def test_the_tfds_builder_gives_the_same_records(made, tmp_path):
    archive, folder = made
    name = f'v{archive.version.replace(".", "_")}_{archive.optical[2:].lower()}'
    (tmp_path / 'SSL4EO-S12').symlink_to(archive.root)
    (tmp_path / 'SSL4EO-S12-v1.1').symlink_to(archive.root)
    builder = Builder(config=name, data_dir=tmp_path / 'tfds', file_format='array_record')
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=tmp_path))
    left, right = ({r['sample_id']: r for r in all_records(Path(x))} for x in (builder.data_dir, folder))
    assert left.keys() == right.keys()
    for key, record in left.items():
        np.testing.assert_equal(record, right[key])


@pytest.mark.parametrize('variant', VARIANTS)
def test_the_configurations(variant, tmp_path):
    config = get_config(variant)
    version, optical = VARIANTS[variant]
    assert (config.archive.version, config.archive.optical) == (version, optical)
    with pytest.raises(InputError, match="root=''"):
        convert.run(config, tmp_path)


def test_the_command_and_a_wrong_variant(cubes_made, tmp_path, capsys):
    config = get_config()
    config.archive.root, config.archive.splits = cubes_made[0].root, ('val',)
    assert convert.run(config, tmp_path) == 0
    assert 'ssl4eo_s12_l2a 1.1.0: 4 records' in capsys.readouterr().out
    with pytest.raises(InputError, match="did you mean 'v1_l1c'"):
        get_config('v1_l1')


def test_names_and_partners():
    s1 = 'S1B_IW_GRDH_1SDV_20200627T001449_20200627T001514_022212_02A27E_2A09'
    assert parse_name(s1) == (1593216889, '')
    s2 = '20200621T162901_20200621T164746_T15QXA'
    assert parse_name(s2) == (1592756941, '15QXA')
    for wrong in ('', s2[:15], s1[:-1], s1.replace('IW', 'EW'), s2.replace('20200621', '20209921')):
        with pytest.raises(ValueError, match=r'not the name|does not match'):
            parse_name(wrong)
    later = s1.replace('20200627', '20200927').replace('S1B', 'S1A')
    both = [s2, s2.replace('20200621', '20200921')]
    for index, expected in enumerate([(1, 0), (0, 1)]):
        assert pair('f', 'x', [later, s1], both, index)[:2] == expected
    two_days = [s1, s1.replace('0627', '0628')]
    for images, message in (([s1], '1 images'), ([s1, s1], 'same time'), (two_days, '86 days')):
        with pytest.raises(InputError, match=f'dates of location x: .*{message}'):
            pair('f', 'x', images, both, 1)


def test_listing_needs_neither_zarr_nor_tensorflow_to_be_imported():
    code = 'import sys, data.ssl4eo_s12.locations; print({"zarr", "tensorflow"} & sys.modules.keys())'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == 'set()'


@pytest.mark.slow
@pytest.mark.parametrize('version', ['1.1', '1.0'])
def test_two_thousand_pairs(version, tmp_path):
    archive = archives.write(tmp_path / 'raw', version, pairs=2000)
    folder, report = sharded.convert(locations.source(archive), tmp_path / 'data')
    assert report['records'] == 2000
    assert not report['skips']
    records = read(Path(folder))
    for index in np.random.default_rng(0).choice(len(records), 30, replace=False):
        record = records[int(index)]
        for field in contract.read(folder).groups:
            expected = archives.raw(archive, record, field)
            assert np.moveaxis(record[field], -1, 0).tobytes() == expected.tobytes()
