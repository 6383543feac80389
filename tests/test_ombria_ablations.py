"""The OMBRIA ablations: labels, drawn regions, heads, the choice on validation regions, exchanged radar."""

import functools
from pathlib import Path

import numpy as np
import pytest

from benchmarks import (
    ombria_ablation_runs,
    ombria_ablations_report,
    ombria_later_report,
    ombria_probe,
    ombria_radar,
    ombria_set,
)
from benchmarks.ombria_ablation_runs import RUNS, untrained
from benchmarks.ombria_probe import SHARES, Key
from benchmarks.ombria_swap import Split
from fusmae_jax.eval import intervals

BOTH = ('s1', 's2')


def pairs(regions, first=0):
    """Images before and after floods; half of the regions are flooded in one quarter of their area."""
    region = np.repeat(np.arange(first, first + regions), 2)
    after = np.tile([False, True], regions)
    flooded = np.zeros((2 * regions, 8, 8), np.uint8)
    flooded[(region % 2 == 0) & after, :4, :4] = 1
    return Split({}, region, after, flooded)


@pytest.fixture
def splits():
    return {'train': pairs(40), 'val': pairs(8, 100), 'test': pairs(8, 200)}


@pytest.fixture
def labels(splits):
    return {
        name: one.flooded[:, ::2, ::2].reshape(len(one.region), -1).astype(bool)
        for name, one in splits.items()
    }


def test_a_patch_is_flooded_where_more_than_half_of_its_area_is(tmp_path):
    mask = np.zeros((2, 128, 128), np.uint8)
    mask[:, :26, :14] = 1  # 25.6 px a patch: all rows of the first, and more than half of its columns
    mask[:, 60:64, 60:64] = 1
    arrays = {
        'flood': np.packbits(mask, axis=-1),
        'region': np.int32([4, 4]),
        'after': np.array([False, True]),
    }
    arrays |= {name: np.zeros((2, 128, 128, n), np.uint8) for name, n in (('s1', 1), ('s2', 3))}
    np.savez(tmp_path / 'a.npz', **arrays)
    split = Split({}, arrays['region'][::-1], arrays['after'][::-1], np.zeros((2, 8, 8)))
    labels = ombria_probe.flooded(str(tmp_path / 'a.npz'), split)
    expected = np.zeros((2, 25), bool)
    expected[0, 0] = True
    np.testing.assert_array_equal(labels, expected)  # nothing is flooded before
    parts = ombria_probe.overlap(5, ombria_set.SIZE)
    np.testing.assert_allclose(parts.sum(axis=1), 1)
    np.testing.assert_allclose(parts.sum(axis=0), 5 / 128)


def test_few_labels_are_whole_regions_and_some_of_the_many(splits):
    region = splits['train'].region
    for draw in range(2):
        few, more = (ombria_probe.drawn(region, share, draw) for share in (0.1, 0.5))
        assert few.sum() == 8 and more.sum() == 40 and (more | ~few).all()
    assert (ombria_probe.drawn(region, 0.1, 0) != ombria_probe.drawn(region, 0.1, 1)).any()
    assert ombria_probe.drawn(region, 0.01, 0).sum() == 4  # of two regions, so that both classes may be there
    assert ombria_probe.drawn(region, 1.0, 0).all()


def test_heads_read_what_is_there_and_are_settled_without_the_test_split(splits, labels):
    rng = np.random.default_rng(0)

    def values(name, signal):
        noise = rng.normal(size=(*labels[name].shape, 3)).astype(np.float32)
        noise[..., 0] += signal * labels[name]
        return {BOTH: noise}

    given = {name: values(name, 9) for name in splits}
    heads = dict(ombria_probe.heads(given, labels, splits))
    assert len(heads) == 2 * sum(SHARES.values())
    scores = heads[Key('patch', BOTH, 1.0, 0)]
    truth = labels['test'][splits['test'].after].reshape(-1)
    assert scores['test'][truth].min() > scores['test'][~truth].max()
    assert scores['test'].shape == truth.shape and heads[Key('image', BOTH, 1.0, 0)]['test'].shape == (16,)
    # Scores of the test split follow from the head alone: other test labels change none.
    other = labels | {'test': ~labels['test']}
    again = dict(ombria_probe.heads(given, other, splits))
    np.testing.assert_array_equal(again[Key('patch', BOTH, 1.0, 0)]['test'], scores['test'])


def store(folder, split, system, examples, quality):
    """Scores that are right but for a share `1 - quality` of noise."""
    rng, arrays = np.random.default_rng(len(system)), {}
    for level, one in examples.items():
        for inputs in ombria_probe.INPUTS:
            for share, draws in ombria_probe.SHARES.items():
                for draw in range(draws):
                    right = quality * one.labels + (1 - quality) * rng.random(len(one.labels))
                    arrays[str(Key(level, inputs, share, draw))] = right.astype(np.float32)
    (folder / 'scores').mkdir(exist_ok=True)
    np.savez(folder / 'scores' / f'{split}-{system}.npz', **arrays)


@pytest.fixture
def few(monkeypatch):
    runs = {name: RUNS[name] for name in ('base', 'long', 'multimae_decoder')}
    monkeypatch.setattr(ombria_ablation_runs, 'RUNS', runs)
    for module in (ombria_ablations_report, ombria_later_report):
        monkeypatch.setattr(module, 'RUNS', runs)
    for module in (ombria_ablations_report, ombria_later_report, ombria_probe):
        monkeypatch.setattr(module, 'SHARES', {0.1: 1, 1.0: 1})
    brief = functools.partial(intervals.resample, replicates=4)
    monkeypatch.setattr(ombria_ablations_report, 'resample', brief)


def test_the_choice_is_made_on_validation_regions_and_the_report_is_the_same_byte_by_byte(
    few, splits, labels, tmp_path
):
    def examples(name):
        none = np.empty((*labels[name].shape, 0))
        return {x: ombria_probe.examples(x, none, labels[name], splits[name]) for x in ombria_probe.LEVELS}

    assert untrained('long', 0) == 'untrained-base-0'  # its encoder is that of the base
    runs = (('base-0', 0.2), ('long-0', 0.6), ('multimae_decoder-0', 0.2), (untrained('base', 0), 0.1))
    for system, quality in runs:
        store(tmp_path, 'val', system, examples('val'), quality)
    choice = ombria_ablations_report.choose(tmp_path, splits, labels)
    assert choice['run'] == 'long' and choice['mean_gain'] > 0
    later = ombria_later_report.text
    text = ombria_ablations_report.write(tmp_path, tmp_path, splits, labels, later)
    assert 'Not run yet.' in text and '| 1,200 steps | not run | not run | not run |' in text
    (tmp_path / 'choice.json').write_text('{"run": "long", "labels": 0.1}')
    for seed in range(3):
        store(tmp_path, 'test', f'long-{seed}', examples('test'), 0.7)
        store(tmp_path, 'test', untrained('long', seed), examples('test'), 0.1)
    store(tmp_path, 'test', 'raw', examples('test'), 0.1)
    ones = {key: np.ones(16) for key in ('true', 'other', 'count')}
    radar = {f'{share}|{key}': x for share in ombria_radar.VISIBLE for key, x in ones.items()}
    (tmp_path / 'radar').mkdir()
    np.savez(tmp_path / 'radar' / 'long.npz', **radar | {'half|other': np.full(16, 1.5)})
    # What was thought of later: one run of three is there, with better scores than the chosen one.
    for seed in range(3):
        store(tmp_path, 'test', f'multimae_decoder-{seed}', examples('test'), 0.1)
        store(tmp_path, 'test', f'more_pairs-{seed}', examples('test'), 0.8)
    texts = [
        ombria_ablations_report.write(tmp_path, tmp_path / x, splits, labels, later) for x in ('one', 'two')
    ]
    assert texts[0] == texts[1] and 'the share of labels with the largest gain, 10%' in texts[0]
    assert '| 1,200 steps | 0, to the bit | 0, to the bit | **-0.5000 [-0.5000, -0.5000]** |' in texts[0]
    rows = [row for row in texts[0].splitlines() if row.startswith('| 576 pairs')]
    # Over untrained by level, over the chosen run by level and input, and radar, which was not measured.
    assert len(rows) == 2 + 6 + 1 and 'not run' in rows[-1]
    assert all(row.split('|')[3].strip(' *').startswith('+') for row in rows[:2])
    assert '| both of these | patch | S1 | not run | not run |' in texts[0]
    for name in ('md', 'csv'):
        one, two = (tmp_path / part / f'ombria_ablations.{name}' for part in ('one', 'two'))
        assert one.read_bytes() == two.read_bytes()


def test_smaller_patches_are_averaged_to_those_of_the_labels():
    grid = np.arange(100.0).reshape(1, 10, 10, 1)
    means = ombria_probe.on_grid(grid.reshape(1, 100, 1))
    expected = [grid[0, r : r + 2, c : c + 2].mean() for r in range(0, 10, 2) for c in range(0, 10, 2)]
    np.testing.assert_allclose(means[0, :, 0], expected)
    same = np.random.default_rng(0).normal(size=(2, 25, 3)).astype(np.float32)
    np.testing.assert_array_equal(ombria_probe.on_grid(same), same, strict=True)


def test_runs_that_were_thought_of_later_change_no_digest_and_start_where_they_say():
    results = Path(__file__).parents[1] / 'benchmarks/results/ombria_ablations.md'
    assert f'`{ombria_ablation_runs.digest()}`' in results.read_text()
    start, plain = (ombria_ablation_runs.pretraining(x, 'd', 0, 'w') for x in ('eurosat_start', 'base'))
    assert start.init.from_ == plain.init.from_ == 'w' and start.model.fusion.decoder == 'multimae'
    optical = ombria_ablation_runs.optical('d', 0)
    assert list(optical.model.modalities) == ['s2']
    for name in ('width', 'heads', 'depth', 'patch_size', 'image_size'):
        assert getattr(optical.model, name) == getattr(start.model, name)
    assert untrained('both', 1) == 'untrained-base-1' and untrained('patch_4', 0) == 'untrained-patch_4-0'


def test_slots_hold_as_many_optical_patches_as_asked_for():
    slots = ombria_radar.slots(3, 25, 12, 2, 0)
    assert slots.position.shape == (3, 12) and (np.sum(slots.sensor == 1, axis=1) == 2).all()
    for sensor in (0, 1):
        for row in range(3):
            of_sensor = slots.position[row][slots.sensor[row] == sensor]
            assert len(set(of_sensor.tolist())) == len(of_sensor)
    np.testing.assert_array_equal(ombria_radar.slots(3, 25, 12, 0, 0).sensor, 0)
