"""A working directory in a bucket."""

import shutil

import jax.numpy as jnp
import pytest
from etils import epath

from fusmae_jax.checkpoints import manifest
from fusmae_jax.checkpoints.checkpoints import Checkpoints, open_step
from fusmae_jax.run import compile_cache, goodput
from fusmae_jax.storage import absolute
from tests.run.test_compile_cache import program
from tests.support import object_store
from tests.support.checkpoint_files import flip, largest, three_steps

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
            program()(jnp.arange(4.0)).block_until_ready()
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
