"""BigEarthNet-MM: published counts, splits from the user's own lists, pairs that are left out on purpose."""

import bz2
import collections
import gzip
import json
import random

import numpy as np
import pytest
import rasterio

from fusmae_jax.errors import InputError
from fusmae_jax.shipped.data import sharded
from fusmae_jax.shipped.data.bigearthnet_mm import lists, pairs
from fusmae_jax.shipped.data.bigearthnet_mm.labels import CLASSES_43, without_19_class
from fusmae_jax.shipped.data.bigearthnet_mm.schema import GROUPS, PUBLISHED
from fusmae_jax.shipped.data.generate import bigearthnet_mm as generate
from fusmae_jax.shipped.data.generate.scene import SEASONS, SceneConfig
from tests.support import short_table
from tests.support.data_fixtures import Folders, by_name, metadata, multiply, read

NAMES = ('S2A_MSIL2A_20170613T101031_87_48', 'S2B_MSIL2A_20170924T93020_69_24')
S1_NAME = 'S1A_IW_GRDH_1SDV_20170613T165043_33UUP_87_48'


# The table comes with a package and does not change with this one; to read it takes ten seconds.
PUBLISHED_TABLE = pytest.mark.slow


@pytest.fixture(scope='module')
def table():
    """The published table of all pairs."""
    return [lists.PublishedPair(*line.split(',')) for line in short_table.whole().splitlines()[1:]]


@PUBLISHED_TABLE
def test_published_pairs(table):
    assert len(table) == len({row.s2_name for row in table}) == len({row.s1_name for row in table}) == 590_326
    assert collections.Counter(row.country for row in table) == {
        'Finland': 233_030,
        'Portugal': 99_248,
        'Serbia': 78_015,
        'Lithuania': 58_700,
        'Ireland': 52_653,
        'Austria': 46_403,
        'Belgium': 11_701,
        'Switzerland': 4_955,
        'Luxembourg': 3_481,
        'Kosovo': 2_140,
    }
    seasons = {'Spring': 189_276, 'Fall': 155_381, 'Summer': 128_836, 'Winter': 116_833}
    assert collections.Counter(row.season for row in table) == seasons
    platforms = collections.Counter(name[:3] for row in table for name in (row.s1_name, row.s2_name))
    assert platforms == {'S1A': 361_457, 'S1B': 228_869, 'S2A': 249_440, 'S2B': 340_886}
    assert all(lists.is_s2_name(row.s2_name) and not lists.is_s2_name(row.s1_name) for row in table)
    assert sum(len(row.s2_name.split('_')[2]) == 14 for row in table) == 69_866
    assert all(row.s1_name.split('_')[-2:] == row.s2_name.split('_')[-2:] for row in table)


@PUBLISHED_TABLE
def test_the_table_of_other_tests_is_part_of_the_published_one(table):
    assert {lists.PublishedPair(*row.split(',')) for row in short_table.ROWS} < set(table)


@PUBLISHED_TABLE
def test_made_up_names_are_not_published(table):
    made = [generate.patch(i, season) for i, season in zip(range(400), SEASONS * 100)]
    assert not {p.s1_name for p in made} & {row.s1_name for row in table}
    assert not {p.s2_name for p in made} & {row.s2_name for row in table}


@PUBLISHED_TABLE
def test_published_lists(table):
    snow, cloud, bare = (lists.listed(flag) for flag in lists.FLAGS)
    assert (len(snow), len(cloud), len(bare)) == (61_707, 9_280, 57)
    assert not snow & cloud and len(bare & (snow | cloud)) == 2
    everything = {row.s2_name for row in table}
    used = [lists.listed(name) for name in lists.OFFICIAL]
    assert sum(map(len, used)) == len(frozenset().union(*used)) == 519_284
    assert everything - snow - cloud - bare == frozenset().union(*used)
    assert len(everything - snow - cloud) == 519_339
    # 60, 20 and 20 parts of 100 of all pairs: the other split in use, of which 'train' is pretrained on.
    assert 590_326 * 20 // 100 == 118_065 and 590_326 - 2 * 118_065 == 354_196


def test_published_sizes_of_filtered_splits():
    assert lists.official_sizes(()) == PUBLISHED
    assert lists.official_sizes(('snow', 'cloud')) == {**PUBLISHED, 'rest': 55}
    assert lists.official_sizes(('no_19_class',)) == {**PUBLISHED, 'rest': 71_042 - 57}
    assert lists.official_sizes(lists.FLAGS) == {name: PUBLISHED[name] for name in lists.OFFICIAL}


@pytest.mark.parametrize(
    ('file', 'text', 'partner'),
    [
        ('plain.txt', '\n'.join(NAMES), ''),
        ('table.csv', f's2_name,s1_name,country\n{NAMES[0]},{S1_NAME},Austria\n{NAMES[1]},,\n', S1_NAME),
        ('both.txt', f'{NAMES[0]} {S1_NAME}\n\n{NAMES[1]}\n', S1_NAME),
        ('quoted.csv', f'\ufeff"id";"patch"\r\n1;"{NAMES[0]}"\r\n2;"{NAMES[1]}"\r\n', ''),
        ('list.csv.bz2', '\n'.join(NAMES), ''),
        ('list.csv.gz', '\n'.join(NAMES), ''),
    ],
)
def test_lists_in_every_form(file, text, partner, tmp_path):
    pack = {'bz2': bz2.compress, 'gz': gzip.compress}.get(file.rsplit('.')[-1], bytes)
    (tmp_path / file).write_bytes(pack(text.encode()))
    read = lists.read_lists([f'train={tmp_path / file}'])
    assert read == {'train': {NAMES[0]: partner, NAMES[1]: ''}}


@pytest.mark.parametrize(
    ('entries', 'message'),
    [
        (['a'], "'a' is not a 'split=FILE'"),
        (['Train=a'], "'Train=a' is not a 'split=FILE'"),
        (['train='], "'train=' is not a 'split=FILE'"),
        (['train=a', 'train=b'], "split 'train' twice"),
        (['train=a', 'val=b'], rf'b: line 2: {NAMES[0]} is listed in .*a: line 1 already'),
        (['train=twice'], rf'twice: line 3: {NAMES[0]} is listed in .*twice: line 1 already'),
        (['train=wide'], r'wide: line 1: 2 Sentinel-2 patches'),
        (['train=v2'], r'v2: line 1: .*holds no name of a Sentinel-2 patch of BigEarthNet v1'),
        (['train=late'], r"late: line 2: 'oops' holds no name"),
        (['train=empty'], r'empty: no name of a Sentinel-2 patch'),
        (['train=absent'], r'absent: config.archive.split_lists: no such file'),
        (['train=text.gz'], r'text.gz: config.archive.split_lists: cannot be read as text'),
        (['train=cut.bz2'], r'cut.bz2: config.archive.split_lists: cannot be read as text'),
        (['train=binary'], r'binary: config.archive.split_lists: cannot be read as text'),
    ],
)
def test_lists_that_cannot_be_used(entries, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for file, text in {
        'a': NAMES[0],
        'b': f'{NAMES[1]}\n{NAMES[0]}',
        'twice': f'{NAMES[0]}\n{NAMES[1]}\n{NAMES[0]}',
        'wide': ' '.join(NAMES),
        'v2': 'S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_26_57',
        'late': f'{NAMES[0]}\noops',
        'empty': 'name\n',
        'text.gz': 'text',
    }.items():
        (tmp_path / file).write_text(text)
    (tmp_path / 'cut.bz2').write_bytes(bz2.compress(NAMES[0].encode() * 99)[:-9])
    (tmp_path / 'binary').write_bytes(b'\xff\xfe\x80')
    with pytest.raises(InputError, match=message) as caught:
        lists.read_lists(entries)
    assert '\n' not in str(caught.value)


def test_splits_from_lists(example_archive, example_dataset, tmp_path):
    records = sorted(by_name(read(example_dataset)))
    train, val = (tmp_path / 'train.txt', tmp_path / 'val.csv')
    train.write_text('\n'.join(name.decode() for name in records[:3]))
    val.write_text(records[4].decode())
    archive = pairs.Archive(
        str(example_archive.s1), str(example_archive.s2), 'lists', (f'train={train}', f'val={val}')
    )
    folder, report = sharded.convert(pairs.source(archive), tmp_path / 'out')
    assert {r['s2_name'] for r in read(folder)} == set(records[:3])
    assert [r['s2_name'] for r in read(folder, 'val')] == [records[4]]
    assert report['skips'] == []
    assert report['settings']['left_out'] == '2 in no list'
    assert report['settings']['split_lists'] == f'train={train}, val={val}'


def test_lists_must_fit_the_archive(example_archive, tmp_path):
    here = [patch.name for patch in sorted(example_archive.s2.iterdir())]

    def source(text: str, on_error='fail', archive=example_archive):
        (tmp_path / 'list').write_text(text)
        entry = (f'train={tmp_path / "list"}',)
        return pairs.source(pairs.Archive(str(archive.s1), str(archive.s2), 'lists', entry), on_error)

    absent = 'S2B_MSIL2A_20170924T93020_1_2'
    with pytest.raises(InputError, match=rf"2 of 3 patches of 'train' are not in the archive.* {absent};"):
        source(f'{here[0]}\n{absent}\nS2A_MSIL2A_20170613T101031_1_1')
    assert NAMES[0] in here
    with pytest.raises(InputError, match=f'pairs {NAMES[0]} with S1B_other, the archive with S1A_'):
        source(f'{NAMES[0]} S1B_other')
    # A listed patch whose partner is missing is a fault of the archive, to be skipped like any other.
    broken = example_archive.copy(tmp_path)
    for file in (broken.s2 / NAMES[0]).iterdir():
        file.unlink()
    (broken.s2 / NAMES[0]).rmdir()
    kept = source('\n'.join(here), 'skip', broken)
    assert len(kept.splits['train']) == 5 and len(kept.skips) == 1


@pytest.mark.parametrize('settings', [{'splits': 'lists'}, {'split_lists': ('train=x',)}])
def test_lists_and_the_setting_go_together(settings, example_archive):
    with pytest.raises(InputError, match="lists and splits='lists' go together"):
        pairs.source(pairs.Archive(str(example_archive.s1), str(example_archive.s2), **settings))


def test_leaving_out_snow_and_cloud(example_archive, example_dataset):
    records = by_name(read(example_dataset)).values()
    snowy = sum(int(r['snow']) for r in records)
    assert snowy and not any(r['cloud'] for r in records)
    archive = pairs.Archive(str(example_archive.s1), str(example_archive.s2), 'one', leave_out=lists.FLAGS)
    source = pairs.source(archive)
    assert len(source.splits['train']) == 6 - snowy
    assert source.inputs['left_out'] == f'{snowy} snow'
    official_archive = pairs.Archive(str(example_archive.s1), str(example_archive.s2), leave_out=lists.FLAGS)
    source = pairs.source(official_archive, on_error='skip')
    assert 'rest' not in source.splits and 'rest' not in source.published
    assert source.published['train'] == 269_695


def test_leaving_out_unlisted_pairs_without_one_of_the_19_classes(example_archive, tmp_path):
    dropped = [name for name in CLASSES_43 if without_19_class([name])]
    assert len(dropped) == 11 and without_19_class(dropped) and not without_19_class([*dropped, 'Pastures'])
    archive = multiply(example_archive, tmp_path, 1)
    file, values = metadata(archive.patch('s1'))
    file.write_text(json.dumps({**values, 'labels': ['Airports']}))
    settings = {'s1_root': str(archive.s1), 's2_root': str(archive.s2), 'splits': 'one'}
    assert len(pairs.source(pairs.Archive(**settings)).splits['train']) == 6
    source = pairs.source(pairs.Archive(**settings, leave_out=('no_19_class',)))
    assert len(source.splits['train']) == 5
    assert source.inputs['left_out'] == '1 no_19_class'


@pytest.mark.slow
def test_two_thousand_generated_pairs_by_lists(tmp_path):
    archive = generate.write(tmp_path / 'raw', 2000, SceneConfig(seed=3), workers=2)
    folders = Folders(*(tmp_path / 'raw' / root for root in (generate.S1_ROOT, generate.S2_ROOT)))
    listed = sorted(patch.name for patch in folders.s2.iterdir())
    random.Random(0).shuffle(listed)
    parts = {'train': listed[:1200], 'val': listed[1200:1600]}
    for split, part in parts.items():
        (tmp_path / split).write_text('\n'.join(part))
    entries = tuple(f'{split}={tmp_path / split}' for split in parts)
    source = pairs.source(pairs.Archive(archive['s1_root'], archive['s2_root'], 'lists', entries))
    folder, report = sharded.convert(source, tmp_path / 'out', beam=sharded.Beam(direct_num_workers=2))
    assert report['settings']['left_out'] == '400 in no list' and report['skips'] == []
    for split, part in parts.items():
        examples = read(folder, split)
        assert {example['s2_name'].decode() for example in examples} == set(part)
        for index in random.Random(1).sample(range(len(part)), 40):
            _assert_as_in_the_files(examples[index], folders)


def _assert_as_in_the_files(record, folders):
    for field, group in GROUPS.items():
        name = record[f'{group.modality}_name'].decode()
        for index, band in enumerate(group.bands):
            with rasterio.open(getattr(folders, group.modality) / name / f'{name}_{band}.tif') as file:
                values = file.read(1)
            assert values.dtype == record[field].dtype
            assert np.ascontiguousarray(record[field][..., index]).tobytes() == values.tobytes()
