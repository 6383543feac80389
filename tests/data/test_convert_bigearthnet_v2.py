"""The conversion of BigEarthNet v2 on generated archives: records, tables, both builders, and damage."""

import functools
import random
import shutil
import time
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import rasterio
import tensorflow_datasets as tfds

from fusmae_jax.errors import InputError
from fusmae_jax.input import contract
from fusmae_jax.input.source import read_index
from fusmae_jax.shipped.configs.convert_bigearthnet_v2 import get_config
from fusmae_jax.shipped.data import convert, sharded
from fusmae_jax.shipped.data.bigearthnet_mm.labels import CLASSES_19
from fusmae_jax.shipped.data.bigearthnet_mm.lists import parse_name, parse_time
from fusmae_jax.shipped.data.bigearthnet_v2 import pairs, published
from fusmae_jax.shipped.data.bigearthnet_v2.bigearthnet_v2_dataset_builder import Builder
from fusmae_jax.shipped.data.bigearthnet_v2.labels import CODES, NONE, classes_of_map
from fusmae_jax.shipped.data.bigearthnet_v2.names import parse_patch_id
from fusmae_jax.shipped.data.bigearthnet_v2.schema import GROUPS
from fusmae_jax.shipped.data.generate import bigearthnet_mm as generate_v1
from fusmae_jax.shipped.data.generate import bigearthnet_v2 as generate
from fusmae_jax.shipped.data.generate.scene import SceneConfig, scene
from fusmae_jax.shipped.data.records import RecordError
from tests.support.bigearthnet_v2_raw import (
    EVERYTHING,
    PAIRS,
    SCENE,
    Raw,
    assert_as_in_the_files,
    pixels,
    write,
)
from tests.support.data_fixtures import assert_same_records, by_name, read
from tests.support.files import rewrite, shift


@pytest.fixture(scope='module')
def raw(tmp_path_factory) -> Raw:
    """Sixteen pairs as they lie on disk; read-only."""
    return write(tmp_path_factory.mktemp('raw'), PAIRS, SCENE)


@pytest.fixture(scope='module')
def dataset(raw, tmp_path_factory):
    """All of them converted, with reference maps, and the report; read-only."""
    return sharded.convert(raw.source(**EVERYTHING), tmp_path_factory.mktemp('data'))


def test_records_keep_what_the_satellite_gave(raw, dataset):
    records = by_name(read(dataset[0], 'train+val+test'))
    assert len(records) == PAIRS
    for name, record in records.items():
        assert_as_in_the_files(record, raw)
        np.testing.assert_array_equal(record['reference_map'], pixels(raw.map(name.decode())), strict=True)
    assert any((record['reference_map'] == 999).any() for record in records.values())


def test_fields_follow_the_tables_the_names_and_the_scenes(raw, dataset):
    records = by_name(read(dataset[0], 'train+val+test'))
    splits = {'train': b'train', 'validation': b'val', 'test': b'test'}
    for row in raw.rows() + raw.rows(pairs.SNOW_CLOUD):
        record = records.pop(row['patch_id'].encode())
        assert record['s1_name'].decode() == row['s1_name']
        assert record['s2v1_name'].decode() == row['s2v1_name']
        assert record['country'].decode() == row['country']
        assert record['official_split'] == splits[row['split']]
        assert (record['snow'], record['cloud']) == (
            row['contains_seasonal_snow'],
            row['contains_cloud_or_shadow'],
        )
        assert [CLASSES_19[i] for i in np.flatnonzero(record['labels_19'])] == sorted(
            row['labels'], key=CLASSES_19.index
        )
        # The names and the version 1 twin tell of one place; times in version 1 are up to 8 s off.
        twin, s1 = parse_name(row['s2v1_name']), parse_name(row['s1_name'])
        assert tuple(record['grid_cell']) == twin.cell == s1.cell
        assert record['tile'].decode() == s1.tile
        assert record['s1_time'] == s1.time and abs(record['s2_time'] - twin.time) <= 8
        assert record['s2_time'] == parse_time(row['patch_id'].split('_')[2])
        assert row['patch_id'].startswith(record['scene'].decode())
        with rasterio.open(raw.file(row['patch_id'], 'B02')) as file:
            assert record['epsg'] == file.crs.to_epsg()
            assert tuple(record['upper_left']) == (file.transform.c, file.transform.f)
    assert not records


def test_labels_follow_from_the_generated_scene(raw):
    for index in range(PAIRS):
        generated = scene(SCENE, index)
        name = generate.patch_id(generate_v1.patch(index, generated.season))
        row = next(r for r in raw.rows() + raw.rows(pairs.SNOW_CLOUD) if r['patch_id'] == name)
        shares = np.bincount(classes_of_map(pixels(raw.map(name))).ravel(), minlength=256) / 14_400
        large = {CLASSES_19[i] for i in np.flatnonzero(shares[:19] > 0.2)}
        assert large <= set(row['labels'])
        np.testing.assert_array_equal(pixels(raw.file(name, 'B08')), generated.s2['B08'])


def test_splits_contract_and_report(raw, dataset):
    folder, report = dataset
    rows = raw.rows() + raw.rows(pairs.SNOW_CLOUD)
    for ours, theirs in (('train', 'train'), ('val', 'validation'), ('test', 'test')):
        mine = [row for row in rows if row['split'] == theirs]
        split = report['splits'][ours]
        assert len(read(folder, ours)) == split['records'] == len(mine) > 0
        for name, count in split['labels']['labels_19'].items():
            assert count == sum(name in row['labels'] for row in mine)
        assert split['published'] == published.sizes(True)[ours]
        assert split['published_labels']['labels_19']['Marine waters'] > 0
    made = contract.read(folder)
    assert made.split_aliases == {'validation': 'val'}
    assert made.products['s2'].level == 'L2A' and made.groups['s2_10m'].offset == 0
    assert made.classes == {'labels_19': CLASSES_19}
    index = read_index(folder, 'train')
    assert 'reference_map' not in index and {'s2v1_name', 'tile', 'grid_cell', 'scene'} <= index.keys()


def test_snow_cloud_and_maps_are_left_out_by_default(raw, dataset, tmp_path):
    assert raw.rows(pairs.SNOW_CLOUD)
    folder, report = sharded.convert(raw.source(), tmp_path)
    clear = {
        n: r for n, r in by_name(read(dataset[0], 'train+val+test')).items() if not r['snow'] | r['cloud']
    }
    for record in clear.values():
        del record['reference_map']
    assert len(clear) == len(raw.rows())
    assert_same_records(read(folder, 'train+val+test'), clear.values())
    assert report['splits']['train']['published'] == 237_871


def test_flagged_rows_of_a_joined_table_are_left_out_and_counted(raw, tmp_path):
    both = raw.rows() + raw.rows(pairs.SNOW_CLOUD)
    copy = Raw(tmp_path, raw.settings | {'metadata': str(tmp_path / 'joined.parquet')})
    copy.write_rows(both, 'joined.parquet', pyarrow.parquet.read_schema(raw.settings['metadata']))
    source = copy.source(splits='one')
    assert len(source.splits['train']) == len(raw.rows())
    assert source.inputs['left_out'] == f'{len(both) - len(raw.rows())} with snow or cloud'
    assert source.published == source.published_labels == {}


def test_published_counts_add_up():
    assert sum(published.sizes(False).values()) == 480_038
    assert sum(published.sizes(True).values()) == 549_488 == 480_038 + 60_773 + 8_677
    assert [published.sizes(True)[s] - published.sizes(False)[s] for s in published.SPLITS] == [
        34_673,
        17_235,
        17_542,
    ]
    labels = published.labels(False)
    totals = {name: sum(labels[s]['labels_19'][name] for s in published.SPLITS) for name in CLASSES_19}
    assert round(sum(totals.values()) / 480_038, 3) == 2.949
    largest_first = sorted(totals, key=totals.__getitem__, reverse=True)
    assert largest_first[:3] == ['Arable land', 'Mixed forest', 'Coniferous forest']
    assert [totals[name] for name in largest_first] == [
        *(188_025, 165_780, 154_941, 141_150, 135_928, 122_709, 99_598, 95_605, 63_758, 63_212),
        *(61_832, 33_181, 29_588, 20_919, 13_894, 11_882, 11_142, 1_397, 1_316),
    ]


def test_corine_codes():
    classes = {
        **{111: 0, 112: 0, 121: 1, 211: 2, 212: 2, 213: 2, 221: 3, 222: 3, 223: 3, 241: 3, 231: 4, 242: 5},
        **{243: 6, 244: 7, 311: 8, 312: 9, 313: 10, 321: 11, 333: 11, 322: 12, 323: 12, 324: 13, 331: 14},
        **{411: 15, 412: 15, 421: 16, 422: 16, 511: 17, 512: 17, 521: 18, 522: 18, 523: 18},
    }
    codes = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    mapped = classes_of_map(codes)
    assert mapped.dtype == np.uint8
    assert {int(c): int(v) for c, v in zip(codes[mapped != NONE], mapped[mapped != NONE])} == classes
    assert len(CODES) == 46 and set(classes) < set(CODES)


def test_names():
    parsed = parse_patch_id('S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_26_07')
    assert parsed == (parse_name('S2A_MSIL2A_20170613T101031_26_7').time, '33UUP', (26, 7))
    for wrong in ('S2A_MSIL2A_20170613T101031_26_57', 'S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP'):
        with pytest.raises(ValueError, match='not the name of a BigEarthNet v2 patch'):
            parse_patch_id(wrong)


def test_both_ways_of_building_give_the_same_records(raw, dataset, tmp_path, capsys):
    builder = Builder(config='everything', data_dir=tmp_path / 'tfds', file_format='array_record')
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=raw.folder))
    for split in published.SPLITS:
        assert_same_records(builder.as_data_source(split=split), read(dataset[0], split))
    config = get_config()
    config.archive.update(raw.settings | EVERYTHING)
    assert convert.run(config, tmp_path) == 0
    assert 'published: 272,544' in capsys.readouterr().out
    for split in published.SPLITS:
        assert_same_records(read(tmp_path / 'bigearthnet_v2' / '1.0.0', split), read(dataset[0], split))


@pytest.mark.slow
def test_two_thousand_pairs_at_more_than_half_the_rate_of_bare_reads(tmp_path):
    raw = write(tmp_path / 'raw', 2000, SceneConfig(seed=11), workers=2)
    source = raw.source(with_snow_cloud=True)
    items = [item for split in source.splits.values() for item in split]
    files = [
        raw.file(item.values[group.modality == 's1'], band)
        for item in items
        for group in GROUPS.values()
        for band in group.bands
    ]
    for file in files:
        file.read_bytes()  # into the page cache, for both alike
    start = time.process_time()
    for file in files:
        pixels(file)
    bare = time.process_time() - start
    start = time.process_time()
    folder, report = sharded.convert(source, tmp_path / 'out')
    ours = time.process_time() - start
    print(f'{2000 / bare:.0f} pairs/s bare, {2000 / ours:.0f} converted, per second of processor')
    assert report['records'] == 2000 and report['skips'] == []
    for split in published.SPLITS:
        examples = read(folder, split)
        assert len(examples) == len(source.splits[split])
        for index in random.Random(2).sample(range(len(examples)), 40):
            assert_as_in_the_files(examples[index], raw)
    assert ours < bare / 0.6


def change(raw: Raw, **values):
    rows = raw.rows()
    rows[0] |= values
    raw.write_rows(rows)


ROWS = {
    'class': ({'labels': ['Pasture']}, r"labels: row 0: 'Pasture' is not .* did you mean 'Pastures'"),
    'no_class': ({'labels': []}, r'labels: row 0: no class'),
    'null': ({'s1_name': None}, r's1_name: row 0: None, expected str'),
    'split': ({'split': 'val'}, r"split: row 0: 'val' is none of train, validation, test"),
    'version_1': ({'patch_id': 'S2A_MSIL2A_20170613T101031_26_57'}, r'row 0: .* of a BigEarthNet v2 patch'),
    'escapes': ({'patch_id': '../../etc/passwd'}, r"row 0: '../../etc/passwd' is not the name"),
    'absolute': ({'s1_name': '/etc/passwd'}, r"row 0: '/etc/passwd' is not the name"),
    'not_radar': ({'s1_name': 'S2A_MSIL2A_20170613T101031_26_57'}, r'not the name of a Sentinel-1 patch'),
    'other_cell': (
        {'s1_name': 'S1A_IW_GRDH_1SDV_20170613T165043_33UUP_87_48'},
        r'row 0: S1A_.*_87_48 is of another tile or cell than S2',
    ),
}


@pytest.mark.parametrize('case', ROWS)
def test_rows_that_cannot_be_used(case, raw, tmp_path):
    values, message = ROWS[case]
    copy = Raw(tmp_path, raw.settings | {'metadata': str(tmp_path / generate.METADATA)})
    copy.write_rows(raw.rows(), schema=pyarrow.parquet.read_schema(raw.settings['metadata']))
    change(copy, **values)
    with pytest.raises(RecordError, match=message) as caught:
        copy.source()
    assert str(caught.value).startswith(copy.settings['metadata'])
    assert '\n' not in str(caught.value)
    source = copy.source(on_error='skip')
    (skip,) = source.skips
    assert skip['file'] == copy.settings['metadata']
    assert sum(map(len, source.splits.values())) == len(raw.rows()) - 1


def test_a_pair_that_is_listed_twice(raw, tmp_path):
    copy = Raw(tmp_path, raw.settings | {'metadata': str(tmp_path / generate.METADATA)})
    rows = raw.rows()
    copy.write_rows([*rows, rows[1]], schema=pyarrow.parquet.read_schema(raw.settings['metadata']))
    with pytest.raises(RecordError, match=f'{rows[1]["patch_id"]} is listed before; remove one'):
        copy.source()
    assert len(copy.source(on_error='skip').skips) == 1


def test_wrong_tables_and_folders(raw, tmp_path):
    with pytest.raises(InputError, match=r'config.archive.metadata'):
        raw.source(metadata='')
    with pytest.raises(InputError, match=r'nowhere: the metadata table is missing'):
        raw.source(metadata=str(tmp_path / 'nowhere'))
    (tmp_path / 'text').write_text('patch_id')
    with pytest.raises(InputError, match=r'text: cannot be read as a Parquet table'):
        raw.source(metadata=str(tmp_path / 'text'))
    other = tmp_path / 'other.parquet'
    pyarrow.parquet.write_table(pyarrow.table({'patch_id': ['a'], 'labels': [['b']]}), other)
    with pytest.raises(InputError, match=r'no column split, country, .*found: patch_id, labels\); give'):
        raw.source(metadata=str(other))
    with pytest.raises(InputError, match=r'snow_cloud_metadata=.* only read together with with_snow_cloud'):
        raw.source(snow_cloud_metadata='x')
    with pytest.raises(InputError, match=r's1_root: no folder here has a name starting with S1'):
        raw.source(s1_root=str(raw.folder))
    with pytest.raises(InputError, match=r'nowhere: maps_root: no such folder'):
        raw.source(reference_maps=True, maps_root=str(tmp_path / 'nowhere'))


FILES = {
    'band': (lambda a, s1, s2: a.file(s2, 'B8A').unlink(), r'_B8A\.tif: B8A: the file is missing'),
    'cut': (
        lambda a, s1, s2: a.file(s1, 'VH').write_bytes(a.file(s1, 'VH').read_bytes()[:20_000]),
        r'_VH\.tif: VH: cannot be read in full',
    ),
    'dtype': (
        lambda a, s1, s2: rewrite(a.file(s2, 'B02'), pixels(a.file(s2, 'B02')).astype(np.float32)),
        r'_B02\.tif: B02 dtype: float32, expected uint16',
    ),
    'size': (
        lambda a, s1, s2: rewrite(a.file(s2, 'B01'), np.ones((120, 120), np.uint16)),
        r'_B01\.tif: B01 size: \(120, 120\), expected \(20, 20\)',
    ),
    'place': (
        lambda a, s1, s2: [shift(a.file(s1, band), 1) for band in ('VV', 'VH')],
        r's2_10m position: .* but the Sentinel-1 patch has',
    ),
    'power': (
        lambda a, s1, s2: [
            rewrite(a.file(s1, band), 10 ** (pixels(a.file(s1, band)) / 10)) for band in ('VV', 'VH')
        ],
        r's1 \(VV, VH\): no negative value',
    ),
    'patch': (
        lambda a, s1, s2: shutil.rmtree(a.file(s1, 'VV').parent),
        r'S1\w+: folder: the patch is missing',
    ),
    'map': (lambda a, s1, s2: a.map(s2).unlink(), r'_reference_map\.tif: reference_map: the file is missing'),
    'map_place': (lambda a, s1, s2: shift(a.map(s2), 1), r'reference_map position: .* but the images have'),
    'map_codes': (
        lambda a, s1, s2: rewrite(a.map(s2), classes_of_map(pixels(a.map(s2))).astype(np.uint16) + 1),
        r'_reference_map\.tif: reference_map: \[\d+.*\], no CORINE level-3 codes',
    ),
}


@pytest.mark.parametrize('case', FILES)
def test_files_that_cannot_be_used(case, raw, tmp_path):
    damage, message = FILES[case]
    item = raw.source().splits['train'][0]
    s2_name, s1_name = item.values[:2]
    copy = Raw(tmp_path, {})
    for file in (raw.file(s1_name, 'VV'), raw.file(s2_name, 'B02'), raw.map(s2_name)):
        shutil.copytree(file.parent, tmp_path / file.parent.relative_to(raw.folder))
    damage(copy, s1_name, s2_name)
    roots = {key: str(tmp_path / Path(raw.settings[key]).name) for key in ('s1_root', 's2_root')}
    source = raw.source(reference_maps=True)
    read_here = functools.partial(source.read.func, **roots, maps_root=str(tmp_path / pairs.MAPS))
    source.read(item)
    with pytest.raises(RecordError, match=message) as caught:
        read_here(item)
    assert '\n' not in str(caught.value) and ';' in str(caught.value)


def test_damaged_pairs_are_one_error_or_listed_skips(raw, dataset, tmp_path):
    copy = raw.copy(tmp_path / 'copy')
    rows = copy.rows() + copy.rows(pairs.SNOW_CLOUD)
    copy.file(rows[0]['patch_id'], 'B12').unlink()
    shutil.rmtree(copy.file(rows[1]['s1_name'], 'VV').parent)
    with pytest.raises(InputError, match=r'the (file|patch) is missing'):
        sharded.convert(copy.source(**EVERYTHING), tmp_path / 'fail')
    assert not (tmp_path / 'fail' / 'bigearthnet_v2' / '1.0.0').exists()
    source = copy.source('skip', **EVERYTHING)
    folder, report = sharded.convert(source, tmp_path / 'skip', on_error='skip')
    assert {skip['record'] for skip in report['skips']} == {row['patch_id'] for row in rows[:2]}
    left = by_name(read(folder, '+'.join(report['splits'])))
    whole = by_name(read(dataset[0], 'train+val+test'))
    assert left.keys() == whole.keys() - {row['patch_id'].encode() for row in rows[:2]}
    assert_same_records(left.values(), [whole[name] for name in left])


def test_links_out_of_the_archive_are_not_followed(raw, tmp_path):
    source, copy = raw.source(), raw.copy(tmp_path / 'copy')
    item = source.splits['train'][0]
    patch = copy.file(item.values[0], 'B02').parent
    shutil.move(patch, tmp_path / 'elsewhere')
    patch.symlink_to(tmp_path / 'elsewhere')
    with pytest.raises(RecordError, match=r'leads out of .*BigEarthNet-S2'):
        copy.source().read(item)
