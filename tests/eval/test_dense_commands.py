"""`dense_probe` and `dense_finetune` over a converted archive with maps."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from fusmae_jax.encoders.settings import EncoderSettings
from fusmae_jax.encoders.systems import open_system
from fusmae_jax.errors import InputError
from fusmae_jax.eval import metrics
from fusmae_jax.eval.config import Intervals, Labels, Task
from fusmae_jax.eval.dense.config import DenseFinetune, DenseProbe, MapCalibration
from fusmae_jax.eval.dense.finetune import _arms, run_dense_finetune
from fusmae_jax.eval.dense.metrics import segmentation
from fusmae_jax.eval.dense.probe import run_dense_probe
from fusmae_jax.eval.dense.stored import read_head
from fusmae_jax.eval.dense.task import MappedSource, open_maps
from fusmae_jax.eval.finetune.objective import TARGETS
from fusmae_jax.eval.finetune.stored import ENCODER, HEAD
from fusmae_jax.input.fractions import read_fraction
from fusmae_jax.input.label_maps import IGNORE
from fusmae_jax.input.source import read_index
from tests.support.map_fixtures import CLASSES, SIDE, archive, truth
from tests.support.probe_fixtures import checkpoint
from tests.support.result_rows import rows_of

pytestmark = pytest.mark.usefixtures('one_device')


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return archive(tmp_path_factory.mktemp('maps'))


@pytest.fixture(scope='module')
def run(tmp_path_factory, data):
    return checkpoint(tmp_path_factory.mktemp('run'), data, depth=2)


def settings(kind, path, run, **changes):
    values = {
        'data': Task(str(path), labels='map', kind='segmentation', threads=1),
        'encoder': EncoderSettings(run, baselines=('bands', 'prior'), modalities=(('s1',),), batch=16),
        'intervals': Intervals('scene', 20),
        'learning_rates': (1e-2, 3e-2),
        'head_seeds': (0,),
        'batch_size': 8,
        'epochs': 10.0,
    }
    return kind(**values | changes)


def test_a_batch_has_the_classes_of_the_map(data):
    about = Task(str(data), labels='map', kind='segmentation')
    source = MappedSource(about, 'test', ('s1',), np.array([5, 2]))
    names = source.index(['name'])['name'][[5, 2]]
    assert len(source) == 2 and set(source[0]) == {'s1', TARGETS}
    for index, name in enumerate(names):
        classes = source[index][TARGETS]
        labelled = classes != IGNORE
        assert classes.shape == (SIDE, SIDE) and 0.8 < labelled.mean() < 0.97
        np.testing.assert_array_equal(classes[labelled], truth(2, int(name[-4:]))[labelled])


def test_a_probe_of_untrained_tokens_learns_a_map_that_the_radar_shows(data, run, tmp_path, capsys):
    config = settings(DenseProbe, data, run, layers=(1, 2), calibration=MapCalibration(1000, 10))
    assert run_dense_probe(config, tmp_path) == 0
    rows = rows_of(tmp_path, 'dense_probe')
    by_metric = {
        (row.method, row.pooled, row.metric, row.averaging): row for row in rows if row.label is None
    }
    (probe,) = (row for key, row in by_metric.items() if key[2] == 'iou' and 'block 1+2' in (key[1] or ''))
    bands = by_metric['dense_probe', 'bands of each pixel, linear, cross_entropy', 'iou', 'macro']
    floor = by_metric['most frequent class', None, 'iou', 'macro']
    assert probe.estimate > 0.75 > bands.estimate > 0.3 > floor.estimate
    assert probe.without_positives == ('nowhere',) and probe.classes == CLASSES
    assert probe.low <= probe.estimate <= probe.high and probe.clusters == 4
    lines = [json.loads(x) for x in (tmp_path / 'differences-dense_probe.jsonl').read_text().splitlines()]
    (line,) = [x for x in lines if x['minus'] == 'band statistics']
    change = line['metrics']['iou_macro']
    assert change['estimate'] == pytest.approx(probe.estimate - bands.estimate)
    printed = capsys.readouterr().out
    assert 'iou_macro' in printed and 'ECE' in printed
    stored = np.load(next((tmp_path / 'heads').glob('checkpoint*.npz')))
    check_calibration(tmp_path, stored)
    assert stored['kernel'].shape == (1, 2 * 32, 4) and stored['mean'].shape == (64,)
    # Standardised with the same records once more; those that fill up the last batch do not count.
    stored = np.load(next((tmp_path / 'heads').glob('bands*.npz')))
    np.testing.assert_allclose(stored['mean'], 0, atol=1e-4)
    np.testing.assert_allclose(stored['std'], 1, atol=1e-4)


def check_calibration(folder, stored):
    lines = [json.loads(x) for x in (folder / 'calibration-dense_probe.jsonl').read_text().splitlines()]
    probe, bands = lines
    assert bands['system'] == 'band statistics' and (folder / 'calibration-dense_probe.png').exists()
    assert stored['temperature'].tolist() == probe['temperatures'] != [1]
    file = next((folder / 'heads').glob('checkpoint*.npz'))
    assert read_head(file).temperature == probe['temperatures'][0]
    for line in lines:
        numbers = line['metrics']
        assert numbers['surprise_after']['estimate'] <= numbers['surprise_before']['estimate'] + 1e-3
        error = numbers['ece_before']
        assert error['low'] <= error['estimate'] <= error['high'] and error['clusters'] == 4
    assert 0 < probe['metrics']['ece_after']['estimate'] < 0.1
    # So short a training is sure of nothing.
    before, after = (bands['metrics'][f'ece_{stage}']['estimate'] for stage in ('before', 'after'))
    assert after < before - 0.1


def test_the_floor_is_the_most_frequent_class(data, run):
    task, _ = open_maps(settings(DenseProbe, data, run))
    most = task.train.labels.sum(axis=0).argmax()
    counts = np.zeros((8, 4, 4))
    counts[:, :, most] = task.test.labels
    floor = metrics.values(segmentation(counts, CLASSES))
    assert floor['accuracy'] == task.test.labels[:, most].sum() / task.test.labels.sum()


@pytest.mark.slow  # compiles forward and backward of an encoder with a decoder
def test_fine_tuning_learns_it_too_and_a_rerun_trains_nothing(data, run, tmp_path):
    changes = {
        'encoder': EncoderSettings(run, ('prior',), modalities=(('s1',),), batch=8),
        'learning_rates': (1e-2,),
        'batch_size': 4,
        'epochs': 12.0,
    }
    changes['calibration'] = MapCalibration(500, 10)
    config = settings(DenseFinetune, data, run, rot90=True, **changes)
    assert run_dense_finetune(config, tmp_path) == 0
    rows = {(r.method, r.metric, r.averaging): r for r in rows_of(tmp_path, 'dense_finetune')}
    assert rows['dense_finetune', 'iou', 'macro'].estimate > 0.8
    before = (tmp_path / 'rows-dense_finetune.jsonl').read_text()
    result = next(tmp_path.glob('points/*/*/result.json'))
    time = result.stat().st_mtime_ns
    assert run_dense_finetune(config, tmp_path) == 0
    assert (tmp_path / 'rows-dense_finetune.jsonl').read_text() == before
    assert result.stat().st_mtime_ns == time
    # Encoder and head, opened again, score the test split as the fine-tuning did.
    file = str(result.parent / ENCODER)
    system, head = open_system(file, config.encoder), read_head(result.parent / HEAD)
    assert system.fingerprint == head.weights
    (line,) = map(json.loads, (tmp_path / 'calibration-dense_finetune.jsonl').read_text().splitlines())
    assert line['temperatures'] == [head.temperature] != [1]
    assert 0 < line['metrics']['ece_after']['estimate'] < 0.1
    again = dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, checkpoint=file))
    trainer = next(_arms(again, open_maps(again)[0], tmp_path)).trainer
    params = {'encoder': system.model.params['encoder'], 'head': head.params}
    scores = trainer.scores(params, MappedSource(config.data, 'test', trainer.fields))
    with np.load(result.parent / 'scores-test.npz') as stored:
        np.testing.assert_array_equal(scores, stored['scores'])


def test_a_label_subset_without_a_label_is_refused(data, run, tmp_path):
    """Its heads would be as they were drawn, and its floor the first class."""
    copy = Path(shutil.copytree(data, tmp_path / data.parent.name / data.name))
    index = read_index(copy, 'train')
    index['pixels_map'][read_fraction(copy, 'train', 0.1, seed=1)] = 0
    np.savez(copy / 'index-train.npz', **index)
    config = settings(DenseProbe, copy, run, labels=Labels(fractions=(0.1,), seeds=(1,)))
    with pytest.raises(InputError, match=r'none of the 2 records of the label fraction 0\.1, seed 1, has'):
        open_maps(config)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'data': Task('', labels='mpa', kind='segmentation')}, "no map 'mpa'"),
        ({'encoder': EncoderSettings('bands', (), modalities=(('s3',),))}, "'s3' is not in"),
        ({'layers': (7,)}, 'has the blocks 1 to 2'),
    ],
)
def test_what_does_not_fit_is_one_error(changes, message, data, run, tmp_path):
    if 'data' in changes:
        changes = {'data': Task(str(data), labels='mpa', kind='segmentation')}
    with pytest.raises(InputError, match=message):
        run_dense_probe(settings(DenseProbe, data, run, **changes), tmp_path)
