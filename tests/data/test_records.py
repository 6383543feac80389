"""What all archives share: schemas, records and their statistics, and the settings of the TFDS builders."""

import dataclasses
import json
import pickle

import numpy as np
import pytest
import tensorflow_datasets as tfds

from fusmae_jax.config.build import to_dict
from fusmae_jax.errors import InputError
from fusmae_jax.input import contract
from fusmae_jax.input.contract import Group, Targets, fingerprint
from fusmae_jax.input.statistics import Moments
from fusmae_jax.shipped.data import records
from fusmae_jax.shipped.data.bigearthnet_mm.bigearthnet_mm_dataset_builder import Builder
from fusmae_jax.shipped.data.bigearthnet_mm.lists import EXAMPLES
from fusmae_jax.shipped.data.bigearthnet_mm.schema import SCHEMA
from fusmae_jax.shipped.data.statistics import Tally
from fusmae_jax.shipped.data.tfds_builder import ArchiveConfig
from tests.support.data_fixtures import assert_same_records, by_name, read

FLOATS = Group('s1', ('VV', 'VH'), (7, 5), 'float32', 'dB')
NUMBERS = Group('s2', ('B02', 'B03', 'B04'), (6, 4), 'uint16', 'DN', nodata=(0.0,))


def test_features_follow_the_schema():
    features = records.features(SCHEMA)
    assert features['s2_20m'].shape == (60, 60, 6)
    assert features['s2_20m'].np_dtype == np.uint16
    assert features['upper_left'].np_dtype == np.float64
    assert set(features.keys()) == {*SCHEMA.groups, *SCHEMA.fields}


def test_a_schema_that_says_nothing_new_has_the_digest_of_conversions_that_are_there():
    """Of before there were numbers to predict: a rerun of such a conversion goes on, or finds it complete."""
    assert fingerprint(to_dict(SCHEMA)) == '59d46ff376f05170'
    numbers = dataclasses.replace(SCHEMA, targets={'height': Targets(('height',), ('m',))})
    assert fingerprint(to_dict(numbers)) != '59d46ff376f05170'


def test_a_name_used_twice_is_an_error():
    schema = dataclasses.replace(SCHEMA, fields={'s1': records.Field('uint8', 'twice')})
    with pytest.raises(InputError, match='s1: both an image group and a field'):
        records.features(schema)


def test_record_error_survives_pickling():
    error = records.RecordError('a/b.tif', 'B02 size', '(3, 3)', 'unpack it again')
    copy = pickle.loads(pickle.dumps(error))
    assert str(copy) == str(error) == 'a/b.tif: B02 size: (3, 3); unpack it again'
    assert copy.skip('b') == {'record': 'b', 'file': 'a/b.tif', 'field': 'B02 size', 'reason': '(3, 3)'}


@pytest.mark.parametrize('group', [FLOATS, NUMBERS], ids=['float32', 'uint16'])
def test_moments_are_those_of_the_valid_pixels(group):
    rng = np.random.default_rng(0)
    images = rng.normal(500, 200, (9, *group.size, len(group.bands))).clip(1).astype(group.dtype)
    images[2, :3, :2, 1] = 0 if group.nodata else np.nan
    images[4, ..., 0] = 0 if group.nodata else np.inf
    halves = [Moments(len(group.bands)), Moments(len(group.bands))]
    for index, image in enumerate(images):
        halves[index % 2].add(image, group)
    halves[0].merge(halves[1])
    statistics = halves[0].result()
    for band in range(len(group.bands)):
        pixels = images[..., band].astype(np.float64)
        pixels = pixels[np.isfinite(pixels) & (pixels != 0)]
        assert statistics.valid[band] == pixels.size
        assert statistics.invalid[band] == images[..., band].size - pixels.size
        np.testing.assert_allclose(statistics.mean[band], pixels.mean(), rtol=1e-12)
        np.testing.assert_allclose(statistics.std[band], pixels.std(), rtol=1e-12)
        assert (statistics.minimum[band], statistics.maximum[band]) == (pixels.min(), pixels.max())


def test_moments_of_nothing_are_zero():
    moments = Moments(2)
    moments.add(np.full((7, 5, 2), np.nan, np.float32), FLOATS)
    assert moments.result() == contract.Statistics(
        mean=(0.0, 0.0),
        std=(0.0, 0.0),
        minimum=(0.0, 0.0),
        maximum=(0.0, 0.0),
        valid=(0, 0),
        invalid=(35, 35),
    )


def test_a_tally_survives_json():
    rng = np.random.default_rng(1)
    record = {
        name: rng.uniform(1, 99, (*group.size, len(group.bands))).astype(group.dtype)
        for name, group in SCHEMA.groups.items()
    }
    record |= {
        name: rng.integers(0, 2, len(names)).astype(np.uint8) for name, names in SCHEMA.classes.items()
    }
    tally = Tally(SCHEMA)
    tally.add(record)
    text = json.dumps(tally.to_json())
    assert json.dumps(Tally.from_json(SCHEMA, json.loads(text)).to_json()) == text


def test_a_contract_survives_json(tmp_path):
    statistics = {'s1': contract.Statistics(mean=(0.1, 0.2), valid=(3, 4))}
    made = records.contract(SCHEMA, statistics, 'train', 'abc')
    (tmp_path / contract.FILE).write_text(made.to_json())
    assert contract.read(tmp_path) == made
    assert made.modality_bands('s2')['B8A'] == 's2_20m'
    assert made.fields['s1_time'] == 'Sentinel-1 acquisition, Unix seconds, UTC'


PATHS = {'s1_root': EXAMPLES['s1'], 's2_root': EXAMPLES['s2']}


def build(settings, folder, manual_dir):
    config = ArchiveConfig(name='mine', paths=PATHS, settings=settings)
    builder = Builder(config=config, data_dir=folder, file_format='array_record')
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=manual_dir))
    return builder


def test_settings_of_the_archive_by_name(example_archive, example_dataset, tmp_path):
    settings = {'splits': 'one', 'leave_out': ('snow',)}
    builder = build(settings, tmp_path, example_archive.s1.parent)
    clear = [record for record in by_name(read(example_dataset)).values() if not record['snow']]
    assert 0 < len(clear) < 6
    assert_same_records(builder.as_data_source(split='train'), clear)


def test_an_unknown_setting_names_the_nearest(tmp_path):
    with pytest.raises(
        InputError, match=r"bigearthnet_mm/mine.split is not a setting; did you mean 'splits'"
    ):
        Builder(config=ArchiveConfig(name='mine', settings={'split': 'one'}), data_dir=tmp_path)


def test_an_empty_split_is_an_error(example_archive, tmp_path):
    with pytest.raises(InputError, match=r'split \w+: no record here belongs to it'):
        build({'splits': 'official'}, tmp_path, example_archive.s1.parent)
    assert not list(tmp_path.rglob('*.array_record*'))
