"""Sen1Floods11 from generated chips: values, maps, splits, tiles, and damaged archives."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio

from fusmae_jax.errors import InputError
from fusmae_jax.input import contract
from fusmae_jax.input.source import PIXELS, read_index
from fusmae_jax.shipped.data import sharded
from fusmae_jax.shipped.data.doctor.command import run
from fusmae_jax.shipped.data.generate import sen1floods11
from fusmae_jax.shipped.data.generate.scene import SceneConfig
from fusmae_jax.shipped.data.records import RecordError
from fusmae_jax.shipped.data.sen1floods11 import chips, images, schema
from fusmae_jax.shipped.data.sen1floods11.sen1floods11_dataset_builder import Builder
from tests.support.data_fixtures import read
from tests.support.files import cut, pixels, rewrite

CHIPS, CONFIG = 10, SceneConfig(seed=5, size=512, level='L1C', cloud_share=0)
SPLITS = {'train': 5, 'val': 2, 'test': 2, 'bolivia': 1}


@pytest.fixture(scope='module')
def archive(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('sen1floods11') / 'v1.1'
    assert sen1floods11.write(folder, CHIPS, CONFIG) == {'root': str(folder), 'splits': 'official'}
    return folder


@pytest.fixture(scope='module')
def dataset(archive, tmp_path_factory) -> Path:
    return Path(sharded.convert(source(archive), tmp_path_factory.mktemp('data'))[0])


def source(root, on_error='fail', **settings):
    return chips.source(chips.Archive(str(root), **settings), on_error)


def one(archive, folder, index=0):
    """An archive of one chip, with the same lists."""
    chip = sen1floods11.chip(index)
    shutil.copytree(archive / chips.LIST_FOLDER, folder / chips.LIST_FOLDER)
    for kind in images.KINDS:
        chip.file(folder, kind).parent.mkdir(parents=True)
        shutil.copy(chip.file(archive, kind), chip.file(folder, kind))
    return chip


def test_records_hold_the_files_of_the_lists(archive, dataset):
    seen = set()
    for split, count in SPLITS.items():
        records = list(read(dataset, split))
        assert len(records) == count
        for record in records:
            scene, event = record['scene'].decode(), record['event'].decode()
            assert scene.startswith(f'{event}_') and (split == 'bolivia') == (event == 'Bolivia')
            assert record['official_split'].decode() == split
            for kind in ('s1', 's2'):
                file = archive / images.DATA / images.KINDS[kind] / f'{record[f"{kind}_name"].decode()}.tif'
                np.testing.assert_array_equal(record[kind].transpose(2, 0, 1), pixels(file))
            label = archive / images.DATA / 'LabelHand' / f'{scene}_LabelHand.tif'
            np.testing.assert_array_equal(record['water'], pixels(label)[0])
            with rasterio.open(label) as file:
                corner = [file.transform.c, file.transform.f]
            assert (
                record['epsg'] == 4326
                and np.float32(record['upper_left']).tolist() == np.float32(corner).tolist()
            )
            labelled = record['water'] >= 0
            assert record['labelled_share'] == np.float32(1 - sen1floods11.BORDER / 512)
            assert record['water_share'] == np.float32(record['water'][labelled].mean())
            seen.add(scene)
    assert len(seen) == CHIPS
    made = contract.read(dataset)
    assert made.maps['water'] == contract.LabelMap(('Not water', 'Water'), (0, 1), (-1,), (512, 512), 'int16')
    assert (made.products['s2'].level, made.groups['s2'].dtype) == ('L1C', 'int16')


def test_tiles_are_cut_from_chips_with_their_labels_and_place(archive, tmp_path):
    chip = one(archive, tmp_path / 'v1.1')
    converted, _ = sharded.convert(source(tmp_path / 'v1.1', splits='one', tile=256), tmp_path / 'data')
    whole = {kind: pixels(chip.file(archive, kind)) for kind in images.KINDS}
    tiles = {record['name'].decode(): record for record in read(converted, 'train')}
    assert sorted(tiles) == [f'{chip.scene}_{row}_{column}' for row in (0, 256) for column in (0, 256)]
    tile = tiles[f'{chip.scene}_256_0']
    np.testing.assert_array_equal(tile['s2'].transpose(2, 0, 1), whole['s2'][:, 256:, :256])
    np.testing.assert_array_equal(tile['water'], whole['label'][0, 256:, :256])
    left, top = sen1floods11.place(0)
    np.testing.assert_allclose(tile['upper_left'], [left, top - 256 * schema.STEP], rtol=1e-6)
    assert tile['official_split'] == b'train' and tile['scene'].decode() == chip.scene
    counts = read_index(converted, 'train')[f'{PIXELS}water'].sum(axis=0)
    assert counts.tolist() == [int((whole['label'] == value).sum()) for value in (0, 1)]
    with pytest.raises(InputError, match=r'tile=100 does not divide 512.*128 or 256'):
        source(archive, tile=100)


def test_a_chip_without_a_measurement_or_label_is_a_record(archive, tmp_path):
    """Some chips of the archive have nothing but NaN in Sentinel-1."""
    chip = one(archive, tmp_path / 'v1.1')
    rewrite(chip.file(tmp_path / 'v1.1', 's1'), np.full((2, 512, 512), np.nan, np.float32))
    rewrite(chip.file(tmp_path / 'v1.1', 'label'), np.full((1, 512, 512), -1, np.int16))
    record = images.read_chip(chip, tmp_path / 'v1.1')
    assert np.isnan(record['s1']).all() and np.isnan(record['water_share']) and record['labelled_share'] == 0


@pytest.mark.parametrize(
    ('kind', 'damage', 'message'),
    [
        ('s2', lambda f: rewrite(f, pixels(f).astype(np.uint16)), 's2 dtype: uint16, expected int16'),
        ('s2', lambda f: rewrite(f, pixels(f)[:12]), 's2 number of channels: 12, expected 13'),
        ('s1', lambda f: rewrite(f, 10 ** (pixels(f) / 10)), 'no negative value'),
        ('s1', lambda f: rewrite(f, crs='EPSG:32630'), 's1 CRS: EPSG 32630, expected 4326'),
        (
            'label',
            lambda f: rewrite(f, pixels(f) + np.int16(3)),
            'label: [23] at row .*classes are 0, 1, ignored: -1',
        ),
        ('label', lambda f: cut(f), 'download the chip again|unpack'),
        ('label', lambda f: f.unlink(), 'LabelHand'),
        (
            's2',
            lambda f: rewrite(f, transform=rasterio.Affine(schema.STEP, 0, 1, 0, -schema.STEP, 1)),
            's2 position: longitude, latitude',
        ),
    ],
)
def test_damage_is_one_clear_error(archive, tmp_path, kind, damage, message):
    root = tmp_path / 'v1.1'
    chip = one(archive, root)
    file = chip.file(root, kind)
    damage(file)
    with pytest.raises(RecordError, match=message) as caught:
        images.read_chip(chip, root)
    assert str(file) in str(caught.value)


def test_lists_that_cannot_be_are_refused(archive, tmp_path):
    with pytest.raises(InputError, match=r'give the folder v1\.1.*v1\.1 is such a folder'):
        source(archive.parent)
    root = tmp_path / 'v1.1'
    one(archive, root)
    lists = root / chips.LIST_FOLDER
    train = (lists / 'flood_train_data.csv').read_text()
    cases = {
        'Atlantis_1_S1Hand.tif,Atlantis_1_LabelHand.tif\n': "event: 'Atlantis'",
        'Ghana_1_S1Hand.tif,Ghana_2_LabelHand.tif\n': 'Ghana_1_S1Hand.tif with the label Ghana_2',
        'Ghana_1_S1Hand.tif\n': 'row 6: 1 columns',
        'Ghana_1_S2Hand.tif,Ghana_1_LabelHand.tif\n': 'expected EVENT_NUMBER_S1Hand.tif',
        (lists / 'flood_test_data.csv').read_text(): 'is in train and in test',
    }
    for more, message in cases.items():
        (lists / 'flood_train_data.csv').write_text(train + more)
        with pytest.raises(RecordError, match=message):
            source(root)
    listed = source(root, on_error='skip')
    assert len(listed.skips) == 2 and sum(map(len, listed.splits.values())) == CHIPS
    (lists / 'flood_bolivia_data.csv').unlink()
    with pytest.raises(InputError, match=r"flood_bolivia_data\.csv: no such file.*splits='one'"):
        source(root)
    assert len(source(root, splits='one').splits['train']) == 1


def test_builder_and_published_sizes():
    configs = {config.name: config for config in Builder.BUILDER_CONFIGS}
    assert configs['tiles_256'].settings == {'tile': 256}
    assert sum(schema.PUBLISHED.values()) == 446 and len(schema.EVENTS) == 11
    assert schema.schema(128).groups['s2'] == dataclasses.replace(schema.SCHEMA.groups['s2'], size=(128, 128))


def test_the_doctor_knows_the_layout_and_finds_what_is_wrong(archive, tmp_path, capsys):
    def report(folder):
        code = run([str(folder)], as_json=True)
        (first,) = json.loads(capsys.readouterr().out)
        return code, first, {f['code']: f for f in first['findings'] if f['severity'] in ('warning', 'error')}

    for folder in (archive, archive / images.DATA):
        code, whole, findings = report(folder)
        assert (code, findings) == (0, {}) and whole['kind'] == 'Sen1Floods11, hand-labelled, raw'
        assert (whole['looked_at'], len(whole['bands']['s2'])) == (CHIPS, 13)
    root = tmp_path / 'v1.1'
    chip = one(archive, root)
    rewrite(chip.file(root, 'label'), pixels(chip.file(root, 'label')) + np.int16(3))
    chip.file(root, 's2').unlink()
    _, _, findings = report(root)
    assert {'labels.unknown', 'pair.partner'} <= findings.keys()
