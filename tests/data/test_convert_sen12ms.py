"""SEN12MS from generated triplets: values, labels, splits, the command, and damaged archives."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio
import tensorflow_datasets as tfds

from fusmae_jax.errors import InputError
from fusmae_jax.input import contract
from fusmae_jax.input.source import PIXELS, read_index
from fusmae_jax.shipped.configs.convert_sen12ms import get_config
from fusmae_jax.shipped.data import convert, sharded
from fusmae_jax.shipped.data.generate import sen12ms
from fusmae_jax.shipped.data.generate.classes import CLASSES
from fusmae_jax.shipped.data.generate.scene import SceneConfig, scene
from fusmae_jax.shipped.data.records import RecordError
from fusmae_jax.shipped.data.sen12ms import images, labels, scenes, triplets
from fusmae_jax.shipped.data.sen12ms.schema import GROUPS, PUBLISHED
from fusmae_jax.shipped.data.sen12ms.sen12ms_dataset_builder import Builder
from tests.support.data_fixtures import assert_same_records, read
from tests.support.files import cut, pixels, rewrite
from tests.support.sen12ms_fixtures import (
    CONFIG,
    TRIPLETS,
    archive,
    assert_holds_the_files,
    dataset,
    files,
    shift,
    source,
)

__all__ = ['archive', 'dataset']  # fixtures


def test_records_keep_what_the_satellites_gave(archive, dataset):
    for split in PUBLISHED:
        for record in read(dataset, split):
            assert_holds_the_files(record, archive)
            assert record['s1'][..., 0].mean() > record['s1'][..., 1].mean()  # VV over VH
            assert (record['s1'] != np.round(record['s1'])).mean() > 0.99
            # Water vapour and cirrus bands are dark in L1C: band order is right.
            band = dict(zip(GROUPS['s2'].bands, record['s2'].mean((0, 1))))
            assert band['B10'] == min(band.values())
            assert band['B09'] < band['B8A']
            _, season, _, number, patch = record['s2_name'].decode().split('_')
            assert record['season'].decode() == season.capitalize()
            assert record['scene'].decode().endswith(f'_{season}_{number}')
            assert record['s1_name'].decode().endswith(f'_{season}_s1_{number}_{patch}')
            assert record['official_split'].decode() == split
        index = read_index(dataset, split)
        for name, season, corner in zip(index['s2_name'], index['season'], index['upper_left']):
            folder, _, number, _ = name.decode().rsplit('_', 3)
            assert scenes.SEASONS[folder] == season.decode()
            with rasterio.open(archive / folder / f's2_{number}' / f'{name.decode()}.tif') as file:
                assert corner.tolist() == [file.transform.c, file.transform.f]
    made = contract.read(dataset)
    assert (made.products['s1'].calibration, made.products['s2'].level) == ('sigma0', 'L1C')


def test_labels_follow_from_the_scene(dataset):
    # The ten classes by the 17 fractions, counted from 0 as the authors do.
    groups = [(0, 1, 2, 3, 4), (5, 6), (7, 8), (9,), (10,), (11, 13), (12,), (14,), (15,), (16,)]
    dfc2020 = np.array([0, 1, 1, 1, 1, 1, 2, 2, 3, 3, 4, 5, 6, 7, 6, 8, 9, 10])
    igbp = np.array([c.igbp for c in CLASSES])
    records = {r['s2_name']: r for split in PUBLISHED for r in read(dataset, split)}
    assert len(records) == TRIPLETS
    for index in range(TRIPLETS):
        generated = scene(CONFIG, index)
        record = records[sen12ms.triplet(index, generated.season).name('s2').encode()]
        expected = [generated.fractions[igbp == number].sum() for number in range(1, 18)]
        np.testing.assert_allclose(record['igbp'], expected, atol=1e-7)
        simple = np.array([sum(expected[i] for i in group) for group in groups])
        assert record['igbp10'] == simple.argmax()
        assert record['igbp10_single'].tolist() == (np.arange(10) == simple.argmax()).tolist()
        assert record['igbp10_multi'].tolist() == (simple >= 0.1).tolist()
        assert record['igbp_unclassified'] == 0
        assert np.bincount(dfc2020[igbp[generated.cover]].ravel()).argmax() == record['igbp10'] + 1
    assert len({int(r['igbp10']) for r in records.values()}) > 3


def test_maps_hold_the_land_cover_of_each_pixel(archive, tmp_path):
    """The layer as it is in the file, and its classes as DFC2020 numbers them."""
    dfc2020 = np.array([0, 1, 1, 1, 1, 1, 2, 2, 3, 3, 4, 5, 6, 7, 6, 8, 9, 10])
    one = files(archive, 0)['lc']
    root = tmp_path / 'SEN12MS'
    for kind in images.KINDS:
        file = files(archive, 0)[kind]
        (root / file.relative_to(archive)).parent.mkdir(parents=True)
        shutil.copy(file, root / file.relative_to(archive))
    copy = root / one.relative_to(archive)
    layers = pixels(copy)
    layers[0, :3, :5], layers[0, 3, :5] = 255, 0
    rewrite(copy, layers.astype(np.uint16), dtype='uint16')
    source = triplets.source(triplets.Archive(str(root), 'one', maps=True))
    folder, report = sharded.convert(source, tmp_path / 'data')
    (record,) = read(folder, 'train')
    made = contract.read(folder)
    assert made.maps['igbp_map'].values == tuple(range(1, 18)) and made.maps['igbp_map'].ignore == (0, 255)
    assert made.maps['igbp10_map'].classes == labels.CLASSES_10 and made.maps['igbp10_map'].ignore == (0,)
    np.testing.assert_array_equal(record['igbp_map'], layers[0])
    expected = dfc2020[np.where(layers[0] == 255, 0, layers[0])]
    np.testing.assert_array_equal(record['igbp10_map'], expected)
    counts = read_index(folder, 'train')
    for name, values in (('igbp_map', layers[0]), ('igbp10_map', expected)):
        classes = made.maps[name].values
        assert counts[f'{PIXELS}{name}'][0].tolist() == [int((values == value).sum()) for value in classes]
    assert report['splits']['train']['maps']['igbp10_map']['(no label)'] == 20
    assert (
        not {'igbp_map', 'igbp10_map'}
        & triplets.source(triplets.Archive(str(root), 'one')).schema.fields.keys()
    )


def cover(**counts):
    """A land-cover layer of so many pixels of each class: cover(c12=50, c255=50)."""
    values = np.concatenate([np.full(count, int(name[1:])) for name, count in counts.items()])
    return values.astype(np.uint8).reshape(-1, 1)


def test_label_rule_at_its_edges():
    derived = labels.derive(cover(c1=27, c3=3, c8=35, c9=10, c17=10, c12=9, c14=1, c13=5), Path('a.tif'))
    assert labels.CLASSES_10[derived.label] == 'Savanna'  # 45 of 100, in two classes
    names = [name for name, hot in zip(labels.CLASSES_10, derived.multi_hot) if hot]
    assert names == ['Forest', 'Savanna', 'Croplands', 'Water']  # 30, 45, 9 + 1 and 10, but not 5
    tie = labels.derive(cover(c17=50, c12=50), Path('a.tif'))
    assert labels.CLASSES_10[tie.label] == 'Croplands'  # the lower index
    holes = labels.derive(cover(c0=20, c255=20, c16=36, c10=4), Path('a.tif'))
    assert holes.fractions[[9, 15]].tolist() == [np.float32(0.1), np.float32(0.9)]
    assert (holes.unclassified, holes.multi_hot.sum()) == (np.float32(0.5), 2)  # 4 of 40 pixels count
    assert labels.derive(cover(c10=99, c16=901), Path('a.tif')).multi_hot.sum() == 1
    with pytest.raises(
        RecordError, match=r'a\.tif: IGBP layer: no classified pixel .*0 or 255.*on_error=skip'
    ):
        labels.derive(cover(c0=1, c255=3), Path('a.tif'))
    with pytest.raises(RecordError, match=r'a\.tif: IGBP layer: values 21, 31, expected the classes 1 to 17'):
        labels.derive(cover(c1=9, c31=1, c21=1), Path('a.tif'))
    assert sorted(sum(labels.SIMPLIFIED.values(), ())) == list(range(1, 18))


def test_lists_of_scenes():
    lists = (scenes.HOLD_OUT, scenes.VALIDATION)
    sizes = [[len(numbers) for numbers in each.values()] for each in lists]
    assert sizes == [[6, 7, 8, 5], [6, 6, 9, 4]]
    for each in lists:
        assert each.keys() == scenes.SEASONS.keys()
        assert all(len(set(numbers)) == len(numbers) for numbers in each.values())
    assert not any(set(numbers) & set(scenes.VALIDATION[f]) for f, numbers in scenes.HOLD_OUT.items())
    assert sum(PUBLISHED.values()) == 180_662
    assert PUBLISHED['train'] + PUBLISHED['val'] == 162_555 + 1  # the one with NaN
    assert scenes.official_split(scenes.Scene('ROIs1158_spring', 63)) == 'test'
    assert scenes.official_split(scenes.Scene('ROIs1868_summer', 63)) == 'train'  # another place
    assert scenes.official_split(scenes.Scene('ROIs2017_winter', 144)) == 'val'


def by_split(listed):
    return {name: {item.key for item in items} for name, items in listed.splits.items()}


def test_splits(archive):
    authors = by_split(source(archive))
    assert {name: len(keys) for name, keys in authors.items()} == {'train': 16, 'val': 2, 'test': 2}
    none, one = source(archive, val='none'), source(archive, splits='one')
    assert by_split(none) == {'train': authors['train'] | authors['val'], 'test': authors['test']}
    assert none.published == {'train': 162_556, 'test': 18_106}
    assert (by_split(one), one.published) == ({'train': set.union(*authors.values())}, {})
    drawn = by_split(source(archive, val='drawn', val_scenes=3))
    assert drawn['test'] == authors['test']
    assert drawn['train'] | drawn['val'] == authors['train'] | authors['val']

    def places(keys):
        return {key.replace('_s2_', '_').rsplit('_', 1)[0] for key in keys}

    assert len(places(drawn['val'])) == 3
    assert not places(drawn['val']) & places(drawn['train'])
    draws = [by_split(source(archive, val='drawn', val_scenes=3, val_seed=seed))['val'] for seed in range(5)]
    assert draws[0] == drawn['val'] and len({frozenset(draw) for draw in draws}) > 1
    with pytest.raises(
        InputError, match=r'val_scenes=99: \d+ training scenes were found .*; give a number from'
    ):
        source(archive, val='drawn', val_scenes=99)


def test_a_season_alone(archive, tmp_path):
    names = {folder: set() for folder in scenes.SEASONS}
    for split, keys in by_split(source(archive)).items():
        for key in keys:
            names[key.split('_s2_')[0]].add(split)
    # So few triplets of a season are not in all three splits.
    folder = archive / next(name for name, splits in names.items() if len(splits) == 2)
    shutil.copytree(folder, tmp_path / 'part' / folder.name)
    assert source(tmp_path / 'part', 'skip').splits.keys() == names[folder.name]
    with pytest.raises(InputError, match=r"split '\w+' is empty: .*splits='one'.*on_error='skip'"):
        sharded.convert(source(tmp_path / 'part'), tmp_path / 'out')
    with pytest.raises(InputError, match=r'root: none of ROIs1158_spring, .* is here; give the folder'):
        source(folder)


def test_the_tfds_builder_gives_the_same_records(archive, dataset, tmp_path):
    builder = Builder(config='official', data_dir=tmp_path, file_format='array_record')
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=archive.parent))
    for split in PUBLISHED:
        assert_same_records(builder.as_data_source(split=split), read(dataset, split))


def test_the_command(archive, dataset, tmp_path, capsys):
    config = get_config()
    config.archive.root, config.archive.val, config.output = str(archive), 'none', str(tmp_path)
    assert convert.run(config) == 0
    assert '(published: 162,556)' in capsys.readouterr().out
    folder = tmp_path / 'sen12ms' / '1.0.0'
    assert 'all_minus_test' in contract.read(dataset).split_aliases
    assert_same_records(read(folder), read(dataset, 'train+val'))
    config.archive.val = 'author'
    with pytest.raises(InputError, match=r"archive.val='author'; did you mean 'authors'"):
        convert.run(config)


def test_generated_archives(archive, tmp_path):
    sen12ms.write(tmp_path, 3, CONFIG)
    for index in range(3):
        for kind, file in files(tmp_path, index).items():
            np.testing.assert_array_equal(pixels(file), pixels(files(archive, index)[kind]))
    members = [sen12ms.triplet(i, season) for i, season in enumerate([*scenes.SEASONS.values()] * 2_000)]
    assert len(set(members)) == len({sen12ms.place(i, m) for i, m in enumerate(members)}) == 8_000
    for wrong in (SceneConfig(), SceneConfig(size=256), SceneConfig(size=256, level='L1C', offset=1000)):
        with pytest.raises(InputError, match='L1C of 256 pixels'):
            sen12ms.write(tmp_path / 'none', 1, wrong)
    assert not (tmp_path / 'none').exists()


@pytest.mark.slow
def test_two_thousand_triplets(tmp_path):
    config = SceneConfig(seed=1, size=256, level='L1C')
    made = sen12ms.write(tmp_path / 'SEN12MS', 2_000, config, workers=2)
    folder, report = sharded.convert(triplets.source(triplets.Archive(**made)), tmp_path / 'out')
    assert {name: split['records'] for name, split in report['splits'].items()} == {
        'train': 1600,
        'val': 200,
        'test': 200,
    }
    rng = np.random.default_rng(0)
    for split in PUBLISHED:
        records = read(folder, split)
        for index in rng.choice(len(records), 40, replace=False):
            assert_holds_the_files(records[int(index)], tmp_path / 'SEN12MS')
    shutil.rmtree(tmp_path)  # 7 GB


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
