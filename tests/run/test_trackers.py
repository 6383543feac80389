"""Weights & Biases and MLflow: behind the run, every step once, and never in its way."""

import importlib.util
import json
import math
import shutil
import struct
import threading
import time

import numpy as np
import pytest
from etils import epath

from fusmae_jax.config import run as cfg
from fusmae_jax.errors import InputError
from fusmae_jax.run import trackers
from fusmae_jax.run.trackers import About, Follower, MLflow, Wandb
from fusmae_jax.run.writers import JsonLines, Writers, curve
from tests.support.tiny import tiny_config
from tests.support.trackers import Memory

ABOUT = About('tiny', {'seed': 3, 'model': {'size': 'tiny', 'bands': ('VV', 'VH')}}, {'parameters': 5})


def sitting(workdir, tracker, start, steps, complete=False):
    """One sitting that writes `steps` to metrics.jsonl and to a tracker."""
    writers = Writers(epath.Path(workdir), start, True)
    follower = Follower('memory', tracker, workdir, ABOUT, bool(start), curve(workdir))
    writers.follow([follower])
    for step in steps:
        writers.scalars(step, {'loss': 1.0 / step})
    if complete:
        (workdir / 'COMPLETE').touch()
    writers.close()
    return tracker


def steps_of(tracker):
    return [call[1] for call in tracker.calls if call[0] == 'scalars']


@pytest.fixture
def workdir(tmp_path):
    return epath.Path(tmp_path)


def test_a_resumed_run_goes_on_in_the_same_one_with_every_step_once(workdir):
    first = sitting(workdir, Memory(), 0, range(1, 8))
    assert first.calls[0] == ('open', {}, ABOUT) and first.calls[-1] == ('close', False)
    # Killed after step 7, with a checkpoint at step 4.
    second = sitting(workdir, Memory(), 4, range(5, 11), complete=True)
    assert second.calls[0] == ('open', {'id': 'new'}, ABOUT) and second.calls[-1] == ('close', True)
    assert steps_of(first) + steps_of(second) == list(range(1, 11))
    assert sitting(workdir, Memory(), 10, []).calls == []


def test_other_numbers_of_a_step_are_not_taken_for_sent(workdir):
    first = Follower('memory', Memory(), workdir, ABOUT)
    first.scalars(4, {'loss': 1.0})
    first.close()
    tracker = Memory()
    second = Follower('memory', tracker, workdir, ABOUT, resumed=True)
    second.scalars(4, {'loss': 1.0, 'val/loss': 2.0})
    second.image(4, 'reconstruction', np.zeros((2, 2, 3), np.uint8))
    second.close()
    assert tracker.calls[1:3] == [('scalars', 4, {'val/loss': 2.0}), ('image', 4, 'reconstruction')]


def test_what_begins_at_step_0_is_a_new_run(workdir):
    sitting(workdir, Memory(), 0, range(1, 8))
    again = sitting(workdir, Memory(), 0, range(1, 3))
    assert again.calls[0] == ('open', {}, ABOUT) and steps_of(again) == [1, 2]


def test_a_run_that_had_no_tracker_sends_what_it_has_written(workdir):
    lines = JsonLines(workdir, 0)
    for step in (1, 2, 3):
        lines.scalars(step, {'loss': math.nan})
    lines.flush()
    tracker = sitting(workdir, Memory(), 3, [4])
    assert steps_of(tracker) == [1, 2, 3, 4] and math.isnan(tracker.calls[1][2]['loss'])


def test_a_failure_is_one_warning_and_its_lines_come_later(workdir, monkeypatch, caplog):
    monkeypatch.setattr(trackers, 'RETRY_SECONDS', 0.01)
    tracker = Memory(fails=4)
    follower = Follower('memory', tracker, workdir, ABOUT)
    for step in (1, 2, 3):
        follower.scalars(step, {'loss': 1.0})
    while len(tracker.calls) < 4:
        time.sleep(0.01)
    follower.close()
    assert steps_of(tracker) == [1, 2, 3]
    assert len(caplog.records) == 1 and 'ConnectionError: no route' in caplog.text


def test_what_a_dead_service_has_missed_the_next_sitting_sends(workdir, caplog):
    sitting(workdir, Memory(fails=10**6), 0, range(1, 6))
    assert len(caplog.records) == 1
    assert len(list(curve(workdir))) == 5
    second = sitting(workdir, Memory(), 5, [6])
    # The first line was on its way when it failed: whether it arrived nobody knows.
    assert steps_of(second)[-5:] == [2, 3, 4, 5, 6]


def test_a_service_that_hangs_does_not_hold_the_run(workdir, monkeypatch, caplog):
    monkeypatch.setattr(trackers, 'CLOSE_SECONDS', 0.05)
    monkeypatch.setattr(trackers, 'BACKLOG', 3)
    tracker, free = Memory(), threading.Event()
    tracker.scalars = lambda *_: free.wait()
    begin = time.monotonic()
    sitting(workdir, tracker, 0, range(1, 50))
    assert time.monotonic() - begin < 5
    assert len(caplog.records) == 1 and 'lines wait' in caplog.text
    # As the next process finds it: the thread that hangs here goes on in the old folder.
    later = shutil.copytree(workdir, workdir.with_name('later'))
    free.set()
    # A tracker that answers has the time and the room that it needs, on a busy machine too.
    monkeypatch.setattr(trackers, 'CLOSE_SECONDS', 60.0)
    monkeypatch.setattr(trackers, 'BACKLOG', 100)
    second = sitting(later, Memory(), 49, [50])
    assert steps_of(second)[0] < 8 and steps_of(second) == sorted(steps_of(second))


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None if name == 'wandb' else there(name))
    config = tiny_config(log=cfg.Log(writers=('wandb',)))
    with pytest.raises(InputError, match=r"log.writers=\('wandb',\) needs wandb: pip install .*\[wandb\]'"):
        trackers.check(config)
    with pytest.raises(InputError, match=r"config.log.writers\[0\]='wandbb'; did you mean 'wandb'"):
        tiny_config(log=cfg.Log(writers=('wandbb',)))


def wandb_records(data):
    """The records of an offline run: 7 bytes, then LevelDB's log in blocks of 32 KiB."""
    position, record = 7, b''
    while position + 7 <= len(data):
        if (left := 32768 - position % 32768) < 7:
            position += left
            continue
        length, kind = struct.unpack('<HB', data[position + 4 : position + 7])
        record += data[position + 7 : position + 7 + length]
        position += 7 + length
        # 1: whole, 2 to 4: first, middle and last part.
        if kind in (1, 4):
            yield record
            record = b''


def test_wandb_offline(workdir, monkeypatch, caplog):
    pytest.importorskip('wandb')
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.setenv('WANDB_MODE', 'offline')
    for start, stop in ((0, 5), (3, 7)):
        follower = Follower('wandb', Wandb(), workdir, ABOUT, bool(start))
        for step in range(start + 1, stop + 1):
            follower.scalars(step, {'loss': 1.0 / step})
        follower.image(stop, 'reconstruction', np.zeros((4, 4, 3), np.uint8))
        follower.close()
    assert not caplog.records
    stored = json.loads((workdir / 'tracker_wandb.json').read_text())
    names, steps, configs = set(), [], []
    for file in sorted(workdir.glob('wandb/offline-run-*/*.wandb')):
        for data in wandb_records(file.read_bytes()):
            record = Record()
            record.ParseFromString(data)
            if record.HasField('run'):
                names.add(record.run.run_id)
                configs.append({item.key: item.value_json for item in record.run.config.update})
            items = {'/'.join(item.nested_key) or item.key: item.value_json for item in record.history.item}
            if 'loss' in items:
                steps.append(int(items['step']))
    assert names == {stored['key']['id']} and steps == [1, 2, 3, 4, 5, 6, 7]
    assert json.loads(configs[0]['model'])['bands'] == ['VV', 'VH'] and 'model' not in configs[-1]


def test_mlflow_in_a_local_store(workdir, monkeypatch, caplog):
    pytest.importorskip('mlflow')
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv('MLFLOW_ALLOW_FILE_STORE', 'true')
    monkeypatch.setenv('MLFLOW_TRACKING_URI', f'file://{workdir}/store')
    for start, stop in ((0, 5), (3, 7)):
        follower = Follower('mlflow', MLflow(), workdir, ABOUT, bool(start))
        for step in range(start + 1, stop + 1):
            follower.scalars(step, {'val/loss': 1.0 / step, 'mfu': math.nan})
        follower.image(stop, 'reconstruction', np.zeros((4, 4, 3), np.uint8))
        follower.close()
        # The second sitting finds the store without the environment.
        monkeypatch.delenv('MLFLOW_TRACKING_URI', raising=False)
        (workdir / 'COMPLETE').touch()
    assert not caplog.records, caplog.text
    client = MlflowClient(f'file://{workdir}/store')
    (run,) = client.search_runs([client.get_experiment_by_name('fusmae_jax').experiment_id])
    history = client.get_metric_history(run.info.run_id, 'val/loss')
    assert sorted((m.step, m.value) for m in history) == [(step, 1.0 / step) for step in range(1, 8)]
    assert run.data.params == {'seed': '3', 'model.size': 'tiny', 'model.bands': "['VV', 'VH']"}
    assert run.data.tags['parameters'] == '5' and run.info.status == 'FINISHED'
    assert len(client.list_artifacts(run.info.run_id, 'reconstruction')) == 2
