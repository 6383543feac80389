"""`reliance` of numbers to predict: R2 and errors of known answers, their figure, and the command."""

import csv
import json

import numpy as np
import pytest
from matplotlib import pyplot as plt

from fusmae_jax.eval.config import Intervals, Task
from fusmae_jax.eval.intervals import resample
from fusmae_jax.eval.reliance import report
from fusmae_jax.eval.reliance.command import _measure, run_reliance
from fusmae_jax.eval.reliance.config import CleanHead, Reliance
from fusmae_jax.eval.task import LabelledSet, LabelledSplit
from tests.support.helpers import CONTRACT
from tests.support.probe_fixtures import checkpoint

pytestmark = pytest.mark.usefixtures('one_device')


def lines(file):
    with file.open() as stream:
        return list(csv.DictReader(stream))


def numbers_task(labels, units=('m', '')):
    """A test split with two numbers to predict, six records a scene."""
    keys = np.arange(len(labels)).astype('S4')
    split = LabelledSplit('test', keys, labels, keys.astype(int) // 6)
    return LabelledSet(CONTRACT, ('waves', 'albedo'), split, split, split, units)


def test_lines_of_numbers_have_r2_and_errors_in_their_units(tmp_path):
    """Of a constant shift c: RMSE is c, R2 is 1 - c^2 / variance, whatever the order of the records says."""
    truth = np.random.default_rng(0).normal([200, 0.2], [30, 0.1], (42, 2))
    truth[::7, 0] = np.nan
    task, shifts = numbers_task(truth), {'all sensors': 0.0, 's1 only': 0.5, 's2 clouded': 2.0}
    deviation = np.nanstd(truth, axis=0)
    scores = {
        condition: resample(
            _measure(task, np.nan_to_num(truth) + shift * deviation, 'regression'), task.test.clusters, 30
        )
        for condition, shift in shifts.items()
    }
    rows = report.score_lines({'A': scores}, task)
    assert list(rows[0])[2:5] == ['target', 'r2', 'low'] and len(rows) == 3 * 3
    for row in rows:
        shift = shifts[row['condition']]
        assert row['r2'] == pytest.approx(1 - shift**2, abs=1e-5)
        assert row['change'] == pytest.approx(-(shift**2), abs=1e-5)
        if row['target'] == 'all targets, macro':
            assert row['rmse'] == row['unit'] == row['values'] == ''
            continue
        i = task.classes.index(row['target'])
        assert row['rmse'] == pytest.approx(shift * deviation[i], rel=1e-5, abs=1e-12)
        assert (row['unit'], row['values']) == (('m', 36), ('', 42))[i] and row['records'] == 42
    shown = drawn_by(lambda: report.write(tmp_path, {'A': scores}, {}, task, Intervals('scene', 30)))
    left = shown.axes[0]
    assert left.get_title() == 'A: R2' and 'the mean of the test split' in left.get_ylabel()
    errors = [text.get_text() for text in left.texts]
    assert errors == ['all sensors:\nRMSE 0 m', 'all sensors:\nRMSE 0']
    # -3 of the cloud lies below what is drawn: a triangle at the lower end.
    assert left.get_ylim()[0] < report.LOWEST_R2 < 0 < left.get_ylim()[1]
    below = [line for line in left.lines if line.get_marker() == 'v' and len(line.get_xdata())]
    assert [set(line.get_ydata()) for line in below] == [{report.LOWEST_R2}]
    assert lines(tmp_path / report.TABLE)[0]['r2'] == '1.0'


def drawn_by(write):
    """The figure that `write` saves."""
    figures = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plt, 'close', figures.append)
        write()
    plt.close('all')
    return figures[0]


def test_a_target_without_values_has_an_empty_line():
    truth = np.stack([np.arange(12.0), np.full(12, np.nan)], axis=1)
    task = numbers_task(truth)
    scores = {
        'all sensors': resample(_measure(task, np.nan_to_num(truth), 'regression'), task.test.clusters, 5)
    }
    rows = {row['target']: row for row in report.score_lines({'A': scores}, task)}
    assert [rows['albedo'][name] for name in ('r2', 'low', 'change', 'rmse', 'values')] == ['', '', '', '', 0]
    assert rows['all targets, macro']['r2'] == rows['waves']['r2'] == 1
    assert report.figure(list(rows.values()), (), report.EXPLAINED)


@pytest.mark.slow
def test_a_number_is_lost_with_the_sensor_that_tells_of_it(data, tmp_path):
    """Sentinel-1 alone tells of `waves`, Sentinel-2 alone of `albedo`."""
    config = Reliance(
        data=Task(path=str(data), labels='amounts', kind='regression'),
        checkpoints=(checkpoint(tmp_path / 'run', data, trained_on='', depth=1),),
        names=('XAE',),
        head=CleanHead(epochs=30.0, batch_size=16, learning_rates=(3e-2,), seeds=(0,), batch_norm=True),
        intervals=Intervals('scene', 40),
        attention_records=0,
    )
    assert run_reliance(config, tmp_path) == 0
    rows = {(row['condition'], row['target']): row for row in lines(tmp_path / report.TABLE)}
    r2 = {key: float(row['r2']) for key, row in rows.items()}
    assert r2['all sensors', 'waves'] > 0.5 < r2['all sensors', 'albedo']
    for sensor, other, target in (('s1', 's2', 'waves'), ('s2', 's1', 'albedo')):
        assert r2[f'{sensor} shuffled', target] < r2['all sensors', target] - 0.3
        assert r2[f'{sensor} shuffled', target] < r2[f'{other} shuffled', target] - 0.3
    assert (
        rows['all sensors', 'waves']['unit'] == 'm' and 3 < float(rows['all sensors', 'waves']['rmse']) < 25
    )
    protocol = json.loads((tmp_path / 'settings-reliance.json').read_text())
    assert protocol['settings']['data']['kind'] == 'regression'
