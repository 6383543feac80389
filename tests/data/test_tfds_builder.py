"""What the TFDS builders share, on six real pairs: settings by name, and errors instead of empty splits."""

import pytest
import tensorflow_datasets as tfds

from data.bigearthnet_mm.bigearthnet_mm_dataset_builder import Builder
from data.bigearthnet_mm.lists import EXAMPLES
from data.tfds_builder import ArchiveConfig
from fusmae_jax.errors import InputError
from tests.support.data_fixtures import assert_same_records, by_name, read

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
