"""What a run writes: metrics on a disk and in TensorBoard, and a working directory in a bucket."""

import json
import math
import shutil

import jax.numpy as jnp
import pytest
from etils import epath
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fusmae_jax.checkpoints import manifest
from fusmae_jax.checkpoints.checkpoints import Checkpoints, open_step
from fusmae_jax.run import compile_cache, goodput, writers
from fusmae_jax.run.writers import JsonLines, TensorBoard, Writers
from fusmae_jax.storage import absolute
from tests.support import object_store
from tests.support.checkpoint_files import largest, three_steps
from tests.support.files import flip
from tests.support.programs import new_program

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


def test_what_is_measured_before_the_first_step_is_there_once(workdir):
    """A run that was killed before its first checkpoint measures it again."""
    for value in (1.0, 2.0):
        lines = JsonLines(workdir, 0)
        lines.scalars(0, {'x': value})
        lines.flush(now=True)
    assert curve(workdir) == [(0, 2.0)]


@pytest.mark.parametrize(('again', 'kept'), [(3, (0, 1, 2, 3)), (0, ())])
def test_tensorboard_forgets_what_a_killed_sitting_wrote_after_its_checkpoint(again, kept, tmp_path):
    for start, value in ((0, 1.0), (again, 2.0)):
        board = TensorBoard(epath.Path(tmp_path), start)
        for step in range(start + 1 if start else 0, start + 6):
            board.scalars(step, {'x': value})
        board.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    expected = [(step, 1.0) for step in kept]
    expected += [(step, 2.0) for step in range(again + 1 if again else 0, again + 6)]
    assert [(event.step, event.value) for event in events.Scalars('x')] == expected


WORKDIR = 'gs://bucket/run'


@pytest.fixture
def bucket(monkeypatch):
    return object_store.install(monkeypatch)


@pytest.fixture
def run(bucket, tmp_path):
    """Three checkpoints in a bucket; tensorstore would write them past `epath`, so they are made on disk."""
    newest = three_steps(tmp_path)
    flip(largest(newest / 'params'))
    for file in newest.parent.rglob('*'):
        if file.is_file():
            (epath.Path(WORKDIR) / file.relative_to(tmp_path)).write_bytes(file.read_bytes())
    shutil.rmtree(newest.parent)
    return epath.Path(WORKDIR)


def test_paths_in_a_bucket_stay_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(absolute('gs://bucket/a')) == 'gs://bucket/a'
    assert str(absolute('a/../b')) == str(tmp_path / 'b')


def test_checkpoints_are_found_and_opened_where_they_are(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in (WORKDIR, f'{WORKDIR}/checkpoints', f'{WORKDIR}/checkpoints/3'):
        reader, step = open_step(name)
        assert (str(reader.directory), step) == (f'{WORKDIR}/checkpoints', 3)
        reader.close()
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_checkpoint_is_moved_and_an_unfinished_one_is_none(run, capsys):
    (run / 'checkpoints' / '4' / 'params' / '_METADATA').write_text('{}')
    assert manifest.saved_steps(run / 'checkpoints') == [1, 2, 3]
    checkpoints = Checkpoints(run, keep=3)
    assert checkpoints.latest() == 2 and 'falling back to checkpoint 2' in capsys.readouterr().out
    checkpoints.close()
    assert (run / manifest.ASIDE / '3' / manifest.NAME).exists()
    assert not (run / 'checkpoints' / '3').exists()
    (run / 'checkpoints' / '2' / 'meta' / '_METADATA').unlink()
    Checkpoints(run, keep=3).close()
    assert {path.name for path in (run / manifest.ASIDE).iterdir()} == {'README', '2', '3'}


def test_compiled_programs_are_kept_in_the_bucket(bucket):
    for _ in range(2):  # into a place where nothing is, and into one with entries
        with compile_cache.enabled(WORKDIR):
            new_program()(jnp.arange(4.0)).block_until_ready()
    kept = [path.name for path in (epath.Path(WORKDIR) / compile_cache.FOLDER).iterdir()]
    assert compile_cache.DIGESTS in kept and any(name.endswith('-cache') for name in kept)


def test_a_bucket_that_does_not_answer_stops_no_run_for_its_goodput(bucket, monkeypatch):
    class HttpError(Exception):  # that of gcsfs is no OSError
        pass

    def refuses(*_, **__):
        raise HttpError('503')

    measured = goodput.Goodput(WORKDIR, active=True)
    monkeypatch.setattr(bucket, 'open', refuses)
    measured.write()
