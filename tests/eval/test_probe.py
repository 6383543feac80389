"""Probes over a converted archive: rows, baselines, what cannot reach a head, and records without a pixel."""

import dataclasses
import functools
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from fusmae_jax.config.build import from_dict
from fusmae_jax.config.files import load_config
from fusmae_jax.encoders.settings import EncoderSettings
from fusmae_jax.encoders.systems import open_system
from fusmae_jax.errors import InputError
from fusmae_jax.eval.config import Calibration, Intervals, Knn, Labels, LinearProbe, Task
from fusmae_jax.eval.features import Features
from fusmae_jax.eval.probe import (
    Variant,
    fit_scale,
    neighbours,
    probe,
    run_knn,
    run_linear_probe,
    scaled,
)
from fusmae_jax.eval.task import open_task
from fusmae_jax.input.fractions import read_fraction
from fusmae_jax.input.source import read_index
from tests.support.probe_fixtures import CLASSES, SIZES, checkpoint
from tests.support.result_rows import rows_of

pytestmark = pytest.mark.usefixtures('one_device')

SHORT = {'epochs': 8.0, 'batch_size': 16, 'learning_rates': (1e-3, 1e-2), 'head_seeds': (0, 1)}


@pytest.fixture(scope='module')
def run(tmp_path_factory, data):
    return checkpoint(tmp_path_factory.mktemp('run'), data, trained_on='test[:4]')


def settings(path, run, **changes):
    values = {
        'data': Task(path=str(path), labels='labels'),
        'encoder': EncoderSettings(checkpoint=run, modalities=(('s1', 's2'),), baselines=(), batch=32),
        'labels': Labels(fractions=(0.1, 1.0), seeds=(0, 1)),
        'intervals': Intervals('scene', 30),
    }
    return values | changes


@pytest.fixture(scope='module')
def stored(run):
    """What the checkpoint is made of, weights and optimizer state, before anything has read it."""
    return digests(run)


@pytest.fixture(scope='module')
def first(data, run, stored, tmp_path_factory):
    """A probe without baselines, and its folder."""
    workdir = tmp_path_factory.mktemp('first')
    assert run_linear_probe(LinearProbe(**settings(data, run), **SHORT), workdir) == 0
    return workdir


def heads_of(workdir):
    return {
        file.name: {name: values.tolist() for name, values in np.load(file).items()}
        for file in (workdir / 'heads').iterdir()
    }


def edited(data, folder, split, change):
    """The data set with other labels in the index of a split: `change` is given the index."""
    copy = Path(shutil.copytree(data, folder / data.parent.name / data.name))
    index = read_index(copy, split)
    change(index)
    np.savez(copy / f'index-{split}.npz', **index)
    return copy


def rerun(first, data, run, folder):
    """The same probe of edited data, from the stored features."""
    shutil.copytree(first / 'features', folder / 'features')
    run_linear_probe(LinearProbe(**settings(data, run), **SHORT), folder)
    return folder


def digests(folder):
    return {f: hashlib.sha256(f.read_bytes()).hexdigest() for f in Path(folder).rglob('*') if f.is_file()}


def test_rows_say_everything_and_averages_are_right(first, data):
    rows = rows_of(first)
    names = ('ap/dark', 'ap/bright', 'ap/rough', 'ap_macro', 'ap_micro', 'f1_macro', 'f1_micro')
    assert len(rows) == 2 * len(names)
    one = next(r for r in rows if (r.metric, r.averaging, r.label_fraction) == ('ap', 'micro', 0.1))
    assert (one.records, one.train_records, one.runs) == (SIZES['test'], 6, 4)
    assert (one.draw, one.draw_seeds, one.head_seeds) == ('random', (0, 1), (0, 1))
    assert one.classes == CLASSES and one.modalities == ('s1', 's2') and one.absent == 'self'
    assert one.leaks['id'] == 4 and one.leaks['records'] == SIZES['test']
    assert one.lowest <= one.estimate <= one.highest and one.low < one.high
    assert one.sweep['learning_rate'] == (1e-3, 1e-2) and one.sweep['epochs'] == (8.0,)
    assert len(one.chosen['learning_rate']) == 2 and set(one.chosen['learning_rate']) <= {1e-3, 1e-2}
    assert (
        one.settled_on == 'val, ap_micro'
        and one.preset == 'custom'
        and one.cluster == 'scene'
        and one.clusters == 7
    )
    assert one.image == 'resize 32 x 32' and len(one.checkpoints) == 1
    every = next(r for r in rows if (r.metric, r.averaging, r.label_fraction) == ('ap', 'micro', 1.0))
    assert (every.train_records, every.draw, every.draw_seeds, every.runs) == (SIZES['train'], 'all', (), 2)
    assert every.estimate > 0.6


def test_test_labels_change_neither_setting_nor_head(first, data, run, tmp_path):
    def permute(index):
        index['labels'] = 1 - index['labels'][::-1]

    other = rerun(first, edited(data, tmp_path / 'data', 'test', permute), run, tmp_path / 'out')
    assert heads_of(other) == heads_of(first)
    pairs = list(zip(rows_of(first), rows_of(other)))
    assert [a.chosen for a, _ in pairs] == [b.chosen for _, b in pairs]
    assert all(a.estimate != b.estimate for a, b in pairs if a.metric == 'ap')


def test_only_the_stored_list_is_learned_from_and_only_validation_settles(first, data, run, tmp_path):
    used = np.union1d(*(read_fraction(data, 'train', 0.1, seed=seed) for seed in (0, 1)))
    free = np.setdiff1d(np.arange(SIZES['train']), used)

    def flip(index):
        index['labels'][free] = 1 - index['labels'][free]

    other = heads_of(rerun(first, edited(data, tmp_path / 'a', 'train', flip), run, tmp_path / 'a_out'))
    heads = heads_of(first)
    for name, head in heads.items():
        assert (other[name] == head) == ('-0.1-' in name)

    def swap(index):
        index['labels'] = 1 - index['labels']

    settled = rerun(first, edited(data, tmp_path / 'b', 'val', swap), run, tmp_path / 'b_out')
    assert [r.chosen for r in rows_of(settled)] != [r.chosen for r in rows_of(first)]


def test_the_encoder_stays_as_it_is_to_the_last_bit(first, run, stored, data):
    assert any('opt_state' in str(file) for file in stored) and digests(run) == stored
    (used,) = {r.checkpoints for r in rows_of(first)}
    assert used == (open_system(run, EncoderSettings(checkpoint=run)).fingerprint,)


def test_baselines_stand_beside_and_differences_are_paired(data, run, tmp_path):
    encoder = EncoderSettings(checkpoint=run, modalities=(('s2',),), batch=32)
    config = Knn(**settings(data, run, encoder=encoder, labels=Labels(fractions=(1.0,))), k=5)
    run_knn(config, tmp_path)
    micro = {r.system: r for r in rows_of(tmp_path, 'knn') if (r.metric, r.averaging) == ('ap', 'micro')}
    assert list(micro) == ['pretrain', 'random init of pretrain, seed 0', 'band statistics', 'train prior']
    assert [len(r.checkpoints) for r in micro.values()] == [1, 1, 0, 0]
    assert [r.leaks['any'] for r in micro.values()] == [4, 0, 0, 0]
    assert micro['pretrain'].sweep == {'k': (5.0,), 'temperature': (0.07,)}
    assert micro['band statistics'].estimate > micro['train prior'].estimate + 0.1
    differences = [json.loads(line) for line in (tmp_path / 'differences-knn.jsonl').read_text().splitlines()]
    assert [one['minus'] for one in differences] == list(micro)[1:]
    for one in differences:
        both = micro['pretrain'].estimate - micro[one['minus']].estimate
        assert one['metrics']['ap_micro']['estimate'] == pytest.approx(both)
        assert one['metrics']['ap_micro']['low'] <= one['metrics']['ap_micro']['high']


def test_one_class_a_record(data, run, tmp_path):
    task = Task(path=str(data), labels='one', kind='single_label')
    encoder = EncoderSettings(checkpoint='bands', baselines=('prior',), modalities=(('s1',),))
    values = settings(data, run, data=task, encoder=encoder, intervals=Intervals(replicates=0))
    run_linear_probe(LinearProbe(**values, **SHORT), tmp_path)
    rows = rows_of(tmp_path)
    assert {(r.metric, r.averaging) for r in rows} == {
        ('top1', 'none'),
        ('top3', 'none'),
        *((name, 'weighted') for name in ('precision', 'recall', 'f1')),
    }
    assert all(r.low is None and r.cluster == 'none' for r in rows)
    task = Task(path=str(data), labels='labels', kind='single_label')
    with pytest.raises(InputError, match='classes in labels'):
        run_linear_probe(LinearProbe(**values | {'data': task}), tmp_path)


def test_a_field_that_intervals_cannot_be_drawn_over_is_refused_before_anything_is_done(data, run, tmp_path):
    """The error would else come after hours of training."""
    one = edited(data, tmp_path / 'one', 'test', lambda index: index.update(scene=index['scene'][[0] * 30]))
    unnamed = edited(data, tmp_path / 'no', 'test', lambda index: index['scene'].__setitem__(3, b''))
    for path, cluster, message in (
        (one, 'scene', "test: intervals.cluster='scene': clusters: all 30 records are of 'scene_.'"),
        (unnamed, 'scene', '1 of 30 records have no name, the first is record 3'),
        (data, 'labels', r"test: intervals.cluster='labels': clusters: shape \(30, 3\)"),
    ):
        config = LinearProbe(**settings(path, run, intervals=Intervals(cluster, 30)), **SHORT)
        with pytest.raises(InputError, match=message):
            run_linear_probe(config, tmp_path / 'work')
    # Label sets are of validation scenes.
    val = edited(data, tmp_path / 'val', 'val', lambda index: index['scene'].__setitem__(3, b''))
    for path, cluster, message in (
        (val, 'scene', 'val: .* 1 of 30 records have no name'),
        (
            data,
            '',
            "calibration.alpha: label sets keep their promise over scenes, and intervals.cluster is ''",
        ),
    ):
        config = LinearProbe(
            **settings(path, run, intervals=Intervals(cluster)), calibration=Calibration(alpha=0.2)
        )
        with pytest.raises(InputError, match=message):
            run_linear_probe(config, tmp_path / 'work')
    assert not (tmp_path / 'work').exists()


@pytest.mark.parametrize('split', ['train', 'val', 'test', 'subset'])
def test_a_split_or_a_subset_without_a_class_is_refused(split, data, run, tmp_path):
    def change(index):
        rows = read_fraction(data, 'train', 0.1, seed=1) if split == 'subset' else slice(None)
        index['labels'][rows] = 0

    path = edited(data, tmp_path, 'train' if split == 'subset' else split, change)
    message = rf'{split}: no record has a class of labels'
    if split == 'subset':
        message = r'none of the 6 records of the label fraction 0\.1, seed 1, has a class'
    with pytest.raises(InputError, match=message):
        open_task(LinearProbe(**settings(path, run)))


def test_records_in_two_splits_are_refused(data, run, tmp_path):
    for changes in ({'test_split': 'everything'}, {'val_split': 'train[:3]'}):
        task = Task(**{'path': str(data), 'labels': 'labels', **changes})
        with pytest.raises(InputError, match='must not be tested on'):
            run_linear_probe(LinearProbe(**settings(data, run, data=task)), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'features': ('mean_token',)}, "features: 'mean_token'; did you mean 'mean_patch'"),
        ({'learning_rates': ()}, 'learning_rates'),
        ({'encoder': EncoderSettings(checkpoint='random')}, 'whose architecture'),
        ({'encoder': EncoderSettings()}, 'give a working directory'),
        ({'metric': 'ap_mirco'}, "did you mean 'ap_micro'"),
        ({'data': Task(path='nowhere')}, 'does not exist'),
    ],
)
def test_impossible_settings_are_one_message(data, run, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        run_linear_probe(LinearProbe(**settings(data, run) | SHORT | changes), tmp_path)


def test_the_files_in_configs_build():
    for name, kind in (('linear_probe', LinearProbe), ('knn', Knn)):
        config = from_dict(kind, load_config(f'configs/{name}.py', ['encoder.checkpoint=runs/x']))
        assert config.encoder.modalities == (('s1',), ('s2',), ('s1', 's2'))
    config = from_dict(LinearProbe, load_config('configs/linear_probe.py:paper,features,sen12ms'))
    assert len(config.features) == 5
    assert config.data.kind == 'single_label' and config.encoder.stats == 'dataset'


# What a head and the nearest neighbours make of records without a valid pixel.
WIDTH, COUNT = 6, 3
HEADS = LinearProbe(learning_rates=(1e-2, 1e-1), head_seeds=(0, 1), epochs=6.0, batch_size=16)


def made_up(records, seed, lost=()):
    """Far from 0 and of different spread; `lost` rows are as an extractor leaves them."""
    rng = np.random.default_rng(seed)
    values = rng.normal([40, -30, 3, 8, 0, 5], [1, 2, 0.1, 5, 1, 0.5], (records, WIDTH)).astype(np.float32)
    valid = np.ones(records, bool)
    values[list(lost)], valid[list(lost)] = 0, False
    return Features(values, valid)


def variant(norm=True, lost=(2, 5, 30), test_lost=(0, 7)):
    return Variant('mean_patch', norm, made_up(60, 0, lost), made_up(20, 1, (3,)), made_up(12, 2, test_lost))


def made_up_labels(records, seed=3):
    return (np.random.default_rng(seed).random((records, COUNT)) < 0.4).astype(np.uint8)


def heads_on(given, positions=None):
    positions = np.arange(60) if positions is None else positions
    return probe(HEADS, given, positions, made_up_labels(60)[positions], lambda z: -float(np.abs(z).max()))


def test_the_statistics_are_of_the_labelled_records_with_a_valid_pixel():
    positions = np.arange(40)
    stored = heads_on(variant(), positions).heads
    seen = variant().train.values[np.setdiff1d(positions, [2, 5, 30])].astype(np.float64)
    np.testing.assert_allclose(stored['mean'], seen.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(stored['std'], np.sqrt(seen.var(axis=0) + 1e-6), rtol=1e-6)


@pytest.mark.parametrize('norm', [True, False])
def test_a_record_without_a_valid_pixel_is_given_the_bias(norm):
    outcome = heads_on(variant(norm))
    for seed, scores in outcome.scores.items():
        bias = outcome.heads['bias'][list(outcome.heads['seed']).index(seed)]
        np.testing.assert_array_equal(scores[[0, 7]], np.stack([bias, bias]))
        assert (np.abs(scores[1:7] - bias).max(axis=1) > 1e-3).all()


def test_the_validation_split_is_scaled_alike():
    given, seen = variant(), []

    def judge(logits):
        seen.append(logits)
        return 0.0

    outcome = probe(HEADS, given, np.arange(60), made_up_labels(60), judge)
    np.testing.assert_array_equal(seen[0][3], outcome.heads['bias'][0])
    assert np.abs(seen[0] - seen[0][3]).max() > 1e-3


def test_the_sweep_is_settled_on_what_the_stored_heads_give_on_validation():
    given, judged = variant(), []
    outcome = probe(
        HEADS, given, np.arange(60), made_up_labels(60), lambda z: judged.append(z) or -float(len(judged))
    )
    heads, seen = outcome.heads, given.val.valid
    normed = (given.val.values.astype(np.float64) - heads['mean']) / heads['std']
    # The first of the points that are tried is the best, so its heads are the stored ones, one for each seed.
    for kernel, bias, scores in zip(np.moveaxis(heads['kernel'], 1, 0), heads['bias'], judged):
        np.testing.assert_allclose(scores[seen], (normed @ kernel + bias)[seen], rtol=1e-4, atol=1e-4)


def test_the_head_learns_from_zeros_where_nothing_was_seen():
    given = variant(lost=range(30, 60))
    scale = fit_scale(given.train)
    rows = scaled(given.train, scale)
    assert (rows[30:] == 0).all()
    np.testing.assert_allclose(rows[:30].mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(rows[:30].std(axis=0), 1, atol=1e-3)
    np.testing.assert_array_equal(scaled(given.train, None), given.train.values)


def test_neighbours_of_standardised_features_agree():
    config = Knn(standardise=True, k=4)
    given, truth = variant(), made_up_labels(60)
    scores = neighbours(config, given, np.arange(60), truth).scores[0]
    # Equally far from all, as without a scale: the first ones are taken.
    np.testing.assert_allclose(scores[[0, 7]], np.tile(truth[:4].mean(axis=0), (2, 1)), atol=1e-6)
    plain = neighbours(config, variant(norm=False), np.arange(60), truth).scores[0]
    np.testing.assert_allclose(scores[[0, 7]], plain[[0, 7]], atol=1e-6)
    # What the lost training records are does not move the others.
    keep = np.setdiff1d(np.arange(60), [2, 5, 30])
    less = neighbours(config, given, keep, truth[keep]).scores[0]
    np.testing.assert_allclose(np.delete(scores, [0, 7], axis=0), np.delete(less, [0, 7], axis=0), atol=1e-6)


@pytest.mark.parametrize(
    'method', [functools.partial(probe, HEADS, judge=lambda z: 0.0), functools.partial(neighbours, Knn(k=4))]
)
def test_statistics_of_nothing_are_refused(method):
    positions = np.array([2, 5, 30, 31])
    lost = variant(lost=positions)
    with pytest.raises(InputError, match='none of 4 labelled training records has a valid pixel'):
        method(lost, positions, made_up_labels(4))
    plain = lost._replace(norm=False)  # the head can still learn how frequent the classes are
    outcome = method(plain, positions, made_up_labels(4))
    assert all(np.isfinite(scores).all() for scores in outcome.scores.values())


def test_calibration_is_of_the_settled_heads(data, run, tmp_path, capsys):
    """Learned from validation alone, measured on test; a record without a pixel gets every label."""
    config = LinearProbe(
        **settings(data, run, labels=Labels(fractions=(1.0,))), **SHORT, calibration=Calibration(alpha=0.2)
    )
    assert run_linear_probe(config, tmp_path) == 0
    printed = capsys.readouterr().out
    assert 'ECE' in printed and str(tmp_path / 'calibration-linear.png') in printed
    (values,) = map(json.loads, (tmp_path / 'calibration-linear.jsonl').read_text().splitlines())
    assert values['promised'] == 0.8 and len(values['temperatures']) == len(SHORT['head_seeds'])
    for name in ('ece_before', 'ece_after', 'surprise_after', 'coverage', 'set_size'):
        interval = values['metrics'][name]
        assert interval['low'] <= interval['estimate'] <= interval['high'] and interval['replicates'] == 30
    bins = values['diagrams']['before']
    assert sum(some['entries'] for some in bins) == SIZES['test'] * len(CLASSES)
    assert all(some['number'] / 15 <= some['confidence'] <= (some['number'] + 1) / 15 for some in bins)
    assert (tmp_path / 'calibration-linear.png').read_bytes().startswith(b'\x89PNG')
    # Run again without it: nothing of before stands beside the new rows.
    other = dataclasses.replace(config, calibration=Calibration(), batch_norm=(True,))
    (tmp_path / 'heads' / 'of_another_command.npz').touch()
    assert run_linear_probe(other, tmp_path) == 0
    assert rows_of(tmp_path) and not list(tmp_path.glob('calibration-*'))
    kept = {file.name for file in (tmp_path / 'heads').iterdir()}
    assert kept == {'checkpoint-s1+s2-mean_patch-bn-1-0.npz', 'of_another_command.npz'}


def test_without_alpha_nothing_is_calibrated(first):
    assert not list(first.glob('calibration-*'))
