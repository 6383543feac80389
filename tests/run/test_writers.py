"""Metrics of a run that is killed and resumed, on a disk, in a bucket and in TensorBoard."""

import json
import math

import pytest
from etils import epath
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fusmae_jax.run import writers
from fusmae_jax.run.writers import JsonLines, TensorBoard, Writers
from tests.support import object_store

BUCKET = 'gs://bucket/run'


@pytest.fixture(params=['disk', 'bucket'])
def workdir(request, tmp_path, monkeypatch):
    if request.param == 'bucket':
        object_store.install(monkeypatch)
        monkeypatch.setattr(writers, 'PART_LINES', 4)
    return epath.Path(BUCKET if request.param == 'bucket' else tmp_path)


def curve(folder):
    """What all files together say, in the order of their names."""
    files = sorted(file for file in folder.iterdir() if file.name.startswith('metrics'))
    rows = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return [(row['step'], row['x']) for row in rows]


def log(folder, start, stop, value, close=True):
    lines = JsonLines(folder, start)
    for step in range(start + 1, stop + 1):
        lines.scalars(step, {'x': value})
        lines.flush()
    if close:
        lines.flush(now=True)


@pytest.mark.parametrize('resumed', [0, 2, 4, 9, 10, 11])
def test_a_resumed_curve_has_every_step_once(resumed, workdir):
    log(workdir, 0, 11, 1.0)
    log(workdir, resumed, 13, 2.0)
    log(workdir, 12, 17, 3.0)
    values = [1.0] * resumed + [2.0] * (12 - resumed) + [3.0] * 5
    assert curve(workdir) == list(enumerate(values, start=1))


def test_numbers_that_json_cannot_hold_are_null(workdir):
    log(workdir, 0, 1, math.nan)
    assert curve(workdir) == [(1, None)]


def test_in_a_bucket_little_is_written_again(monkeypatch):
    bucket, written = object_store.install(monkeypatch), []
    monkeypatch.setattr(writers, 'PART_LINES', 100)
    monkeypatch.setattr(type(epath.Path(BUCKET)), 'write_text', lambda file, text: written.append(len(text)))
    log(epath.Path(BUCKET), 0, 1000, 0.5)
    line = len('{"step": 1000, "x": 0.5}\\n')
    assert len(written) <= 12 and sum(written) < 1.2 * 1000 * line
    assert bucket.store == {}


def test_a_save_puts_every_line_in_the_bucket(monkeypatch):
    object_store.install(monkeypatch)
    out = Writers.__new__(Writers)
    out._jsonl, out._tensorboard = JsonLines(epath.Path(BUCKET), 0), None
    for step in (1, 2, 3):
        out.scalars(step, {'x': 0.5})
    assert len(curve(epath.Path(BUCKET))) == 1  # it is not due yet
    out.flush()
    assert len(curve(epath.Path(BUCKET))) == 3


def test_tensorboard_forgets_what_a_killed_sitting_wrote_after_its_checkpoint(tmp_path):
    for start, value in ((0, 1.0), (3, 2.0)):
        board = TensorBoard(epath.Path(tmp_path), start)
        for step in range(start + 1, start + 6):
            board.scalars(step, {'x': value})
        board.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    expected = [(step, 1.0) for step in (1, 2, 3)] + [(step, 2.0) for step in (4, 5, 6, 7, 8)]
    assert [(event.step, event.value) for event in events.Scalars('x')] == expected
