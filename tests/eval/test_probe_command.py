"""The commands over a converted archive: rows, baselines, and what cannot reach a head."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from fusmae_jax.config.build import from_dict
from fusmae_jax.config.files import load_config
from fusmae_jax.encoders.settings import Encoder
from fusmae_jax.encoders.systems import open_system
from fusmae_jax.errors import InputError
from fusmae_jax.eval import row
from fusmae_jax.eval.evaluation_config import Intervals, Knn, Labels, LinearProbe, Task
from fusmae_jax.eval.probe_command import run_knn, run_linear_probe
from fusmae_jax.input.fractions import read_fraction
from fusmae_jax.input.index import read_index
from tests.support.probe_fixtures import CLASSES, SIZES, archive, checkpoint

SHORT = {'epochs': 8.0, 'batch_size': 16, 'learning_rates': (1e-3, 1e-2), 'head_seeds': (0, 1)}


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return archive(tmp_path_factory.mktemp('data'))


@pytest.fixture(scope='module')
def run(tmp_path_factory, data):
    return checkpoint(tmp_path_factory.mktemp('run'), data, trained_on='test[:4]')


def settings(path, run, **changes):
    values = {
        'data': Task(path=str(path), labels='labels'),
        'encoder': Encoder(checkpoint=run, modalities=(('s1', 's2'),), baselines=(), batch=32),
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


def rows_of(workdir, command='linear'):
    lines = (workdir / f'rows-{command}.jsonl').read_text().splitlines()
    return [row.from_json(line, 'rows.jsonl') for line in lines]


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
    own = heads_of(first)
    for name, head in own.items():
        assert (other[name] == head) == ('-0.1-' in name)

    def swap(index):
        index['labels'] = 1 - index['labels']

    settled = rerun(first, edited(data, tmp_path / 'b', 'val', swap), run, tmp_path / 'b_out')
    assert [r.chosen for r in rows_of(settled)] != [r.chosen for r in rows_of(first)]


def test_the_encoder_stays_as_it_is_to_the_last_bit(first, run, stored, data):
    assert any('opt_state' in str(file) for file in stored) and digests(run) == stored
    (used,) = {r.checkpoints for r in rows_of(first)}
    assert used == (open_system(run, Encoder(checkpoint=run)).fingerprint,)


def test_baselines_stand_beside_and_differences_are_paired(data, run, tmp_path):
    encoder = Encoder(checkpoint=run, modalities=(('s2',),), batch=32)
    config = Knn(**settings(data, run, encoder=encoder, labels=Labels(fractions=(1.0,))), k=5)
    run_knn(config, tmp_path)
    micro = {r.system: r for r in rows_of(tmp_path, 'knn') if (r.metric, r.averaging) == ('ap', 'micro')}
    assert list(micro) == ['pretrain', 'random init of pretrain, seed 0', 'band statistics', 'train prior']
    assert [len(r.checkpoints) for r in micro.values()] == [1, 1, 0, 0]
    assert [r.leaks['any'] for r in micro.values()] == [4, 0, 0, 0]
    assert micro['pretrain'].sweep == {'k': (5.0,), 'temperature': (0.07,)}
    assert micro['band statistics'].estimate > micro['train prior'].estimate + 0.1
    found = [json.loads(line) for line in (tmp_path / 'differences-knn.jsonl').read_text().splitlines()]
    assert [one['minus'] for one in found] == list(micro)[1:]
    for one in found:
        both = micro['pretrain'].estimate - micro[one['minus']].estimate
        assert one['metrics']['ap_micro']['estimate'] == pytest.approx(both)
        assert one['metrics']['ap_micro']['low'] <= one['metrics']['ap_micro']['high']


def test_one_class_a_record(data, run, tmp_path):
    task = Task(path=str(data), labels='one', kind='single_label')
    encoder = Encoder(checkpoint='bands', baselines=('prior',), modalities=(('s1',),))
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
        ({'encoder': Encoder(checkpoint='random')}, 'whose architecture'),
        ({'encoder': Encoder()}, 'give a working directory'),
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
