"""A study that is killed in each of its stages ends with the same tables, bit for bit."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.tables_fixtures import study

ROOT = Path(__file__).parents[2]
# In the order in which they come.
STAGES = ('data/probe', 'pretrain/xae-0', 'linear_1/xae-0', 'pretrain/xae-1', 'linear_1/random-1')
KINDS = ('md', 'csv', 'tex')


def generated():
    """The study with 48 made-up pairs and two seeds."""
    from fusmae_jax.tables.config import StudyArchive

    own = study('')
    task = own.tasks['linear_1']
    settings = tuple(x for x in task.settings if not x.startswith(('data.labels', 'intervals.cluster')))
    two = dataclasses.replace(own.tables['two'], classes=('Arable land', 'Pastures'), metrics=('ap_classes',))
    return dataclasses.replace(
        own,
        archives={'probe': StudyArchive(pairs=48, seed=3)},
        tasks={'linear_1': dataclasses.replace(task, settings=settings)},
        tables={'one': own.tables['one'], 'two': two},
        seeds=(0, 1),
    )


def worker(workdir):
    """What the killed process runs."""
    from data.generate.converted import make
    from fusmae_jax.tables.run import run_tables

    return run_tables(generated(), workdir, make)


def start(workdir):
    code = f'import sys; from tests.tables.test_tables_kill import worker; sys.exit(worker({str(workdir)!r}))'
    with open(workdir / 'log.txt', 'a') as log:
        return subprocess.Popen([sys.executable, '-c', code], cwd=ROOT, stdout=log, stderr=log)


def kill_in(stage, workdir):
    """Runs the study until a stage has begun, and a little longer; then it dies."""
    process, mark = start(workdir), workdir / stage / 'stage.json'
    while process.poll() is None and not mark.exists():
        time.sleep(0.02)
    time.sleep(0.1)
    assert process.poll() is None, (workdir / 'log.txt').read_text()[-2000:]
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not json.loads(mark.read_text())['complete']


@pytest.mark.slow
def test_killed_in_any_stage_it_ends_with_the_same_tables(tmp_path):
    whole, broken = tmp_path / 'whole', tmp_path / 'broken'
    for folder in (whole, broken):
        folder.mkdir()
    assert start(whole).wait() == 0, (whole / 'log.txt').read_text()[-2000:]
    for stage in STAGES:
        kill_in(stage, broken)
    assert start(broken).wait() == 0, (broken / 'log.txt').read_text()[-2000:]
    for kind in KINDS:
        assert (broken / f'tables.{kind}').read_bytes() == (whole / f'tables.{kind}').read_bytes()
