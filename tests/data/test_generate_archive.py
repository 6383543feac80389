"""Generated archives: as published, read by the builder, and the command that writes them."""

import ast
import datetime
import json
import shlex
from pathlib import Path

import numpy as np
import pytest

from fusmae_jax.errors import InputError
from fusmae_jax.shipped.data import synthetic
from fusmae_jax.shipped.data.bigearthnet_mm import pairs
from fusmae_jax.shipped.data.bigearthnet_mm.schema import GROUPS
from fusmae_jax.shipped.data.generate import bigearthnet_mm, command
from fusmae_jax.shipped.data.generate.scene import SEASONS, SceneConfig, digest, labels, scene
from tests.support.data_fixtures import metadata, read


@pytest.fixture(scope='module')
def archive(tmp_path_factory):
    folder = tmp_path_factory.mktemp('generated')
    config = SceneConfig(seed=21, snow_share=0.3)
    return bigearthnet_mm.write(folder, 12, config), config


def test_the_builder_reads_the_generated_archive_exactly(archive):
    options, config = archive
    source = pairs.source(pairs.Archive(**options))
    assert {split: len(items) for split, items in source.splits.items()} == {'train': 6, 'val': 3, 'test': 3}
    assert not source.skips
    by_name = {item.key: source.read(item) for items in source.splits.values() for item in items}
    for index in range(12):
        expected = scene(config, index)
        about = bigearthnet_mm.patch(index, expected.season)
        record = by_name[about.s2_name]
        assert record['s1_name'] == about.s1_name
        assert record['s1_time'] == about.s1_time.replace(tzinfo=datetime.UTC).timestamp()
        assert tuple(record['upper_left']) == about.place[1:] and record['epsg'] == about.place.epsg
        for name, group in GROUPS.items():
            images = getattr(expected, group.modality)
            stacked = np.stack([images[band] for band in group.bands], -1)
            assert record[name].dtype == stacked.dtype
            np.testing.assert_array_equal(record[name], stacked)
        assert np.flatnonzero(record['labels_19']).tolist() == list(labels(expected))


def test_the_generated_archive_has_the_quirks_of_the_real_one(archive, example_archive):
    s1, s2 = (Path(archive[0][name]) for name in ('s1_root', 's2_root'))
    for real, made in ((example_archive.s1, s1), (example_archive.s2, s2)):
        (patch, *_), (like, *_) = sorted(made.iterdir()), sorted(real.iterdir())
        assert {f.name.removeprefix(patch.name) for f in patch.iterdir()} == {
            f.name.removeprefix(like.name) for f in like.iterdir()
        }
        known = {metadata(p)[1]['projection'] for p in real.iterdir()}
        for folder in made.iterdir():
            values = metadata(folder)[1]
            assert list(values) == list(metadata(like)[1])
            assert list(values['coordinates']) == list(metadata(like)[1]['coordinates'])
            assert values['projection'] in known
    names = {folder.name for folder in s2.iterdir()}
    times = {name.split('_')[2].split('T')[1] for name in names}
    assert '94161' in times and '101031' in times


def test_patches_share_neither_ground_nor_names():
    patches = [bigearthnet_mm.patch(i, SEASONS[i % 4]) for i in range(2000)]
    assert len({p.s1_name for p in patches}) == len({p.s2_name for p in patches}) == 2000
    assert len({(p.place.epsg, p.place.left // 1200, p.place.top // 1200) for p in patches}) == 2000
    assert all(abs((p.s1_time - p.s2_time).days) <= 6 for p in patches)


def test_too_many_pairs_or_another_level_are_refused(tmp_path):
    with pytest.raises(InputError, match='pairs=200000'):
        bigearthnet_mm.write(tmp_path, 200_000, SceneConfig())
    with pytest.raises(InputError, match='level=L1C'):
        bigearthnet_mm.write(tmp_path, 1, SceneConfig(level='L1C'))
    assert not list(tmp_path.iterdir())


# The command


def test_the_command_says_what_it_made(tmp_path, capsys):
    for name in ('a', 'b'):
        assert command.run('bigearthnet_mm', tmp_path / name, pairs=4, seed=5) == 0
    out = capsys.readouterr().out
    assert str(tmp_path / 'a') in out and digest(SceneConfig(seed=5)) in out and ' s,' in out
    assert f'--config.archive.s1_root={tmp_path / "a" / bigearthnet_mm.S1_ROOT}' in out
    assert 'incomplete' not in out
    given = shlex.split(out.splitlines()[3])
    lists = next(text for text in given if text.startswith('--config.archive.split_lists='))
    assert all(Path(entry.split('=')[1]).is_file() for entry in ast.literal_eval(lists.split('=', 1)[1]))
    files = [sorted(f for f in (tmp_path / name).rglob('*') if f.is_file()) for name in ('a', 'b')]
    assert len(files[0]) == 4 * 16 + 3 + 1
    for left, right in zip(*files):
        assert left.relative_to(tmp_path / 'a') == right.relative_to(tmp_path / 'b')
        assert left.read_bytes() == right.read_bytes()
    report = json.loads((tmp_path / 'a' / command.REPORT).read_text())
    assert report['layout'] == 'bigearthnet_mm' and report['scene']['seed'] == 5


def test_the_command_refuses_what_it_cannot_do(tmp_path):
    (tmp_path / 'full').mkdir()
    (tmp_path / 'full' / 'file').touch()
    for settings, message in (
        ({'layout': 'sen12'}, "did you mean 'sen12ms'"),
        ({'pairs': 0}, 'pairs=0'),
        ({'seed': -1}, 'seed=-1'),
        ({'snow': 0.5}, 'snow_share'),
        ({'level': 'L1C'}, 'level=L1C'),
        ({'output': tmp_path / 'full'}, 'exists already'),
    ):
        good = {'layout': 'bigearthnet_mm', 'output': tmp_path / 'new', 'pairs': 1}
        with pytest.raises(InputError, match=message):
            command.run(**{**good, **settings})
    assert [p.name for p in tmp_path.iterdir()] == ['full']


def test_an_interrupted_generation_leaves_no_archive(tmp_path, monkeypatch):
    def broken(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(bigearthnet_mm, '_write_patch', broken)
        with pytest.raises(KeyboardInterrupt):
            command.run('bigearthnet_mm', tmp_path / 'new', pairs=1)
    assert not (tmp_path / 'new').exists()
    with pytest.raises(InputError, match='interrupted'):
        command.run('bigearthnet_mm', tmp_path / 'new', pairs=1)


def test_the_synthetic_data_set_holds_generated_scenes(tmp_path):
    folder = synthetic.write(tmp_path, 3, seed=9, split='val')
    records = {record['s2_name']: record for record in read(folder, 'val')}
    for index in range(3):
        expected, record = scene(SceneConfig(9), index), records[f'S2_val_{index:06d}'.encode()]
        np.testing.assert_array_equal(record['s1'], np.stack([expected.s1['VV'], expected.s1['VH']], -1))
        np.testing.assert_array_equal(record['s2_60m'][..., 1], expected.s2['B09'])
        assert record['snow'] == expected.snow
