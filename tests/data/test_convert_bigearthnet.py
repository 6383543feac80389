"""The conversion of BigEarthNet-MM on the six real pairs: records, lists, both builders, the command."""

import datetime
import json

import numpy as np
import pytest
import rasterio
import tensorflow_datasets as tfds

from fusmae_jax.errors import InputError
from fusmae_jax.input import contract
from fusmae_jax.shipped.configs.convert_bigearthnet_mm import get_config
from fusmae_jax.shipped.data import convert, sharded
from fusmae_jax.shipped.data.bigearthnet_mm import lists
from fusmae_jax.shipped.data.bigearthnet_mm.bigearthnet_mm_dataset_builder import Builder
from fusmae_jax.shipped.data.bigearthnet_mm.labels import CLASSES_19, CLASSES_43, multi_hot
from fusmae_jax.shipped.data.bigearthnet_mm.lists import parse_name, parse_time
from fusmae_jax.shipped.data.bigearthnet_mm.schema import GROUPS, PUBLISHED
from tests.support.data_fixtures import assert_same_records, by_name, read


def test_records_keep_what_the_satellite_gave(example_archive, example_dataset):
    examples = by_name(read(example_dataset))
    assert len(examples) == 6
    for record in examples.values():
        for field, group in GROUPS.items():
            root = example_archive.s1 if group.modality == 's1' else example_archive.s2
            name = record[f'{group.modality}_name'].decode()
            assert record[field].dtype == group.dtype
            for index, band in enumerate(group.bands):
                with rasterio.open(root / name / f'{name}_{band}.tif') as file:
                    np.testing.assert_array_equal(record[field][..., index], file.read(1))
        # VV is brighter than VH over land, and dB are no whole numbers: order and type are right.
        assert record['s1'][..., 0].mean() > record['s1'][..., 1].mean()
        assert (record['s1'] != np.round(record['s1'])).mean() > 0.99


def test_place_time_and_labels(example_dataset):
    record = by_name(read(example_dataset))[b'S2B_MSIL2A_20180204T94161_57_38']
    utc = datetime.UTC
    assert record['s1_name'] == b'S1A_IW_GRDH_1SDV_20180204T043253_35VPK_57_38'
    assert record['s1_time'] == datetime.datetime(2018, 2, 4, 4, 32, 53, tzinfo=utc).timestamp()
    assert record['s2_time'] == datetime.datetime(2018, 2, 4, 9, 41, 56, tzinfo=utc).timestamp()
    assert (record['epsg'], record['tile'], *record['grid_cell']) == (32635, b'35VPK', 57, 38)
    np.testing.assert_array_equal(record['upper_left'], [668400.0, 6954420.0])
    assert (record['country'], record['season'], record['snow'], record['cloud']) == (
        b'Finland',
        b'Winter',
        1,
        0,
    )
    assert record['official_split'] == b'rest'
    assert [CLASSES_43[i] for i in np.flatnonzero(record['labels'])] == [
        'Non-irrigated arable land',
        'Coniferous forest',
        'Mixed forest',
    ]
    assert [CLASSES_19[i] for i in np.flatnonzero(record['labels_19'])] == [
        'Arable land',
        'Coniferous forest',
        'Mixed forest',
    ]


def test_contract_and_report_beside_the_shards(example_dataset):
    made = contract.read(example_dataset)
    report = json.loads((example_dataset / 'conversion_report.json').read_text())
    assert made.groups == GROUPS
    assert made.statistics_split == 'train'
    assert made.fingerprint == report['fingerprint'] != ''
    assert made.split_aliases == {}  # there is no `rest` where every record is in train
    assert made.classes['labels_19'] == CLASSES_19
    examples = read(example_dataset)
    for field in GROUPS:
        pixels = np.stack([example[field] for example in examples]).astype(np.float64)
        np.testing.assert_allclose(made.statistics[field].mean, pixels.mean((0, 1, 2)), rtol=1e-12)
        np.testing.assert_allclose(made.statistics[field].std, pixels.std((0, 1, 2)), rtol=1e-12)
    labels = np.sum([example['labels'] for example in examples], axis=0)
    assert list(report['splits']['train']['labels']['labels'].values()) == labels.tolist()
    assert report['records'] == 6
    assert report['skips'] == []


def test_official_splits_add_up():
    published = {name: lists.listed(name) for name in lists.LISTS}
    sizes = {name: len(names) for name, names in published.items()}
    assert {name: sizes[name] for name in lists.OFFICIAL} == {
        name: PUBLISHED[name] for name in lists.OFFICIAL
    }
    left_out = published['snow'] | published['cloud'] | published['no_19_class']
    assert len(left_out) == PUBLISHED['rest']
    union = left_out | published['train'] | published['val'] | published['test']
    assert len(union) == sum(PUBLISHED.values()) == sum(len(s) for s in (left_out,)) + 519_284
    assert len(union) - sizes['val'] - sizes['test'] == 340_737 == 590_326 - 123_723 - 125_866


def test_class_tables_are_those_of_the_archive():
    from bigearthnet_common import constants

    assert constants.OLD_LABELS_ORIGINAL_ORDER == CLASSES_43
    assert constants.NEW_LABELS_ORIGINAL_ORDER == CLASSES_19
    for old, new in constants.OLD2NEW_LABELS_DICT.items():
        expected = [] if new is None else [CLASSES_19.index(new)]
        assert np.flatnonzero(multi_hot([old])[1]).tolist() == expected


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('20170613T101031', (2017, 6, 13, 10, 10, 31)),
        ('20170924T93020', (2017, 9, 24, 9, 30, 20)),  # the hour has lost its zero
        ('20180204T94161', (2018, 2, 4, 9, 42, 1)),  # 61 seconds
        ('2017-06-13T16:50:43', (2017, 6, 13, 16, 50, 43)),  # Sentinel-1 JSON
        ('2017-06-13 10:10:31', (2017, 6, 13, 10, 10, 31)),  # Sentinel-2 JSON
    ],
)
def test_times(text, expected):
    assert parse_time(text) == datetime.datetime(*expected, tzinfo=datetime.UTC).timestamp()


def test_names():
    assert parse_name('S1A_IW_GRDH_1SDV_20170613T165043_33UUP_87_48')[1:] == ('33UUP', (87, 48))
    assert parse_name('S2B_MSIL2A_20170924T93020_69_24')[1:] == ('', (69, 24))
    for wrong in ('S2B_MSIL1C_20170924T93020_69_24', 'S2A_MSIL2A_20170613T101031_87', '20170613'):
        with pytest.raises(ValueError, match='not'):
            parse_name(wrong)
    with pytest.raises(ValueError, match='yesterday'):
        parse_time('yesterday')


def test_the_tfds_builder_gives_the_same_records(example_archive, example_dataset, tmp_path):
    builder = Builder(config='example', data_dir=tmp_path, file_format='array_record')
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(manual_dir=example_archive.s1.parent)
    )
    assert_same_records(builder.as_data_source(split='train'), read(example_dataset))
    assert builder.info.features.keys() == tfds.builder_from_directory(example_dataset).info.features.keys()


def test_official_splits_of_a_part_of_the_archive(example_archive, example_dataset, tmp_path):
    source = example_archive.source(splits='official', on_error='skip')
    folder, report = sharded.convert(source, tmp_path, on_error='skip')
    counts = {name: split['records'] for name, split in report['splits'].items()}
    assert sum(counts.values()) == 6
    assert {'train', 'rest'} <= counts.keys()
    assert report['splits']['train']['published'] == 269_695
    assert report['published_but_absent'] == [name for name in PUBLISHED if name not in counts]
    alias = contract.read(folder).split_aliases['all_minus_val_test']
    assert alias == 'train+rest'
    assert_same_records(read(folder, '+'.join(counts)), read(example_dataset))
    expected = {
        n: r for n, r in by_name(read(example_dataset)).items() if r['official_split'] in (b'train', b'rest')
    }
    assert_same_records(read(folder, alias), expected.values())


def test_an_empty_split_is_an_error(example_archive, tmp_path):
    with pytest.raises(InputError, match=r"split '\w+' is empty: .*on_error='skip'"):
        sharded.convert(example_archive.source(splits='official'), tmp_path)
    assert not list(tmp_path.rglob('*'))


def test_the_example_configuration(tmp_path, capsys):
    config = get_config('example')
    assert config.output == 'runs/demo/data'
    config.output = ''
    assert convert.run(config, tmp_path) == 0
    folder = tmp_path / 'bigearthnet_mm' / '1.0.0'
    assert str(folder) in capsys.readouterr().out
    assert len(read(folder)) == 6


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'builder': 'bigearthnet_m'}, "did you mean 'bigearthnet_mm'"),
        ({'archive': {'s1_rot': 'x'}}, "s1_rot is not a setting; did you mean 's1_root'"),
        ({'beam': {'num_workers': 2}}, "did you mean 'direct_num_workers'"),
        ({'archive': {'s2_root': 'b'}}, 'config.archive.s1_root'),
        ({'output': ''}, 'config.output'),
        ({'archive': {'splits': 'all'}}, 'config.archive.splits'),
    ],
)
def test_wrong_settings(changes, message, tmp_path):
    values = {'archive': {'s1_root': 'a', 's2_root': 'b'}, 'output': str(tmp_path), **changes}
    with pytest.raises(InputError, match=message):
        convert.run(values)


def test_an_unknown_variant_names_the_nearest():
    with pytest.raises(InputError, match="did you mean 'example'"):
        get_config('exmple')
