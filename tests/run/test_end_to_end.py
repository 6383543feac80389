"""Whole runs through the real entry: kill -9, SIGTERM, resume, refusal, divergence, and what they leave."""

import contextlib
import dataclasses
import io
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fusmae_jax.checkpoints.checkpoints import Checkpoints
from fusmae_jax.config import run as cfg
from fusmae_jax.config.build import build, to_dict
from fusmae_jax.config.run import Config
from fusmae_jax.encoders.load import load
from fusmae_jax.errors import DivergedError, InputError
from fusmae_jax.models.fusmae import FusMAE
from fusmae_jax.run import compile_cache, trackers, workdir
from fusmae_jax.run import loop as experiment
from fusmae_jax.run.reconstruct import reconstruct
from fusmae_jax.run.writers import StepLog, Writers, progress_bar
from fusmae_jax.shipped.data.synthetic import write
from tests.support.probe_fixtures import archive
from tests.support.tiny import smallest_model, tiny_config
from tests.support.trackers import Memory

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures('one_device')
# Runs main.py in one folder after the other, and raises a signal in this very process right after the metrics
# of one step were written.
DRIVER = """
import os, signal, sys
import main
from fusmae_jax.run import loop as experiment
at, name = int(sys.argv[1]), sys.argv[2]
train, look, runs = experiment.Run.train, experiment.StepLog._look, []
def trained(run):
    runs.append(run)
    return train(run)
def looked(self, step, metrics, names):
    look(self, step, metrics, names)
    if step == at:
        runs[0].checkpoints.wait()  # what was due is on disk; what happens next is not foreseen
        os.kill(os.getpid(), getattr(signal, name))
experiment.Run.train, experiment.StepLog._look = trained, looked
for folder in sys.argv[4:]:
    code = main.main(['main.py', 'pretrain', f'--config={sys.argv[3]}', f'--workdir={folder}'])
print(sorted({'torch', 'tensorflow'} & {m.split('.')[0] for m in sys.modules}))
sys.exit(code)
"""


@pytest.fixture(scope='module')
def dataset(tmp_path_factory):
    return write(tmp_path_factory.mktemp('data'), records=20)


def config_on(dataset, **changes):
    values = {'data': cfg.Data(path=str(dataset), threads=2, prefetch=2)}
    return tiny_config(**(values | {'model': smallest_model()} | changes))


@pytest.fixture(scope='module')
def config_file(dataset, tmp_path_factory):
    """A file in configs/ style with the tiny run."""
    file = tmp_path_factory.mktemp('configs') / 'tiny.py'
    train, checkpoint = cfg.Train(batch_size=8, steps=24), cfg.Checkpoint(every_steps=8)
    values = to_dict(config_on(dataset, train=train, checkpoint=checkpoint))
    file.write_text(
        f'import ml_collections\n\n\ndef get_config():\n    return ml_collections.ConfigDict({values!r})\n'
    )
    return file


def command(config_file, *folders, at=0, name='SIGKILL'):
    environment = os.environ | {
        'JAX_PLATFORMS': 'cpu',
        'JAX_DISABLE_MOST_OPTIMIZATIONS': '1',
        # Of GPUs, and part of the key of every entry with its path, which would keep them where they are.
        'JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES': 'none',
    }
    return subprocess.run(
        [sys.executable, '-c', DRIVER, str(at), name, config_file, *folders],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )


def lines(folder):
    return [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]


def computed(line):
    """What a line of metrics.jsonl says of the model; the rest is about time."""
    timed = ('images_per_second', 'input_wait_ms', 'mfu', 'device_memory_gib')
    return {k: v for k, v in line.items() if k not in timed and not k.startswith('goodput/')}


def test_killed_stopped_and_resumed_equals_undisturbed(config_file, tmp_path):
    """24 steps in one go, and 13 + kill -9 + 18 + SIGTERM + resume: bit for bit the same."""
    whole, parts = tmp_path / 'whole', tmp_path / 'parts'
    killed = command(config_file, parts, at=13)
    assert killed.returncode == -9
    stopped = command(config_file, parts, at=18, name='SIGTERM')
    assert stopped.returncode == 0, stopped.stderr
    assert 'resuming from step 8' in stopped.stdout and 'stopped on request' in stopped.stdout
    # One program for both runs: the time of a start goes into compiling it.
    shutil.copytree(parts / compile_cache.FOLDER, whole / compile_cache.FOLDER)
    resumed = command(config_file, parts, whole)
    assert resumed.returncode == 0, resumed.stderr
    assert 'resuming from step 19' in resumed.stdout
    assert resumed.stdout.splitlines()[-1] == '[]'  # neither torch nor tensorflow was loaded
    one, two = lines(whole), lines(parts)
    assert [line['step'] for line in one] == [line['step'] for line in two] == list(range(1, 25))
    for a, b in zip(one, two):
        assert computed(a) == computed(b)
    left, right = (load(folder).params for folder in (whole, parts))
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right)):
        np.testing.assert_array_equal(a, b)
    assert one[-1]['loss'] < 0.9 * one[0]['loss']
    assert (parts / 'COMPLETE').exists()


class Finished(NamedTuple):
    """A run of 20 steps with all that a run can have, and what was seen of it from outside."""

    config: Config
    folder: Path
    traces: int
    read: Counter
    printed: str
    tracked: list  # what a tracker was told


def counted_reads(patch):
    """How often each thing is read from the device, by the names that reads have in profiles."""
    reads, annotation = Counter(), jax.profiler.TraceAnnotation
    patch.setattr(
        jax.profiler,
        'TraceAnnotation',
        lambda name, **k: (reads.update([name.removeprefix('read ')]), annotation(name, **k))[1],
    )
    return reads


@pytest.fixture(scope='module')
def finished(dataset, tmp_path_factory):
    labelled = archive(tmp_path_factory.mktemp('labelled'), {'train': 12, 'val': 6})
    folder = tmp_path_factory.mktemp('finished') / 'run'
    knn = cfg.Neighbours(10, str(labelled), 'labels', 'multi_label', 'train', 'val', k=3, probe_epochs=5.0)
    config = config_on(
        dataset,
        data=cfg.Data(path=str(dataset), train_split='train[:16]', val_split='train[16:]', threads=2),
        train=cfg.Train(batch_size=8, steps=20, max_skips=3, ema=0.9),
        log=cfg.Log(every_steps=5, images_every_steps=10, num_images=2, eval_every_steps=10, knn=knn),
        checkpoint=cfg.Checkpoint(every_steps=8, keep=1, keep_every_steps=16),
    )
    traces, call, out, tracker = [], FusMAE.__call__, io.StringIO(), Memory()
    following = dataclasses.replace(config, log=dataclasses.replace(config.log, writers=('wandb',)))
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        reads = counted_reads(patch)
        patch.setattr(FusMAE, '__call__', lambda *a, **k: (traces.append(1), call(*a, **k))[1])
        patch.setattr(trackers, 'check', lambda config: None)
        patch.setitem(trackers.KINDS, 'wandb', lambda: tracker)
        assert experiment.pretrain(following, folder, profile='19:99') == 0
    return Finished(config, folder, len(traces), reads, out.getvalue(), tracker.calls)


def test_a_run_traces_once_and_reads_little(finished):
    read, printed = finished.read, finished.printed
    assert 0 < printed.index('profile written to') < printed.index('goodput: ')  # without the last save
    assert read['metrics'] == 20 and read['validation'] == read['pictures'] == 2
    assert read.total() < 45  # and a few of the step, for checkpoints, and of the features
    assert finished.traces == 3  # train step, evaluation and pictures: once each in 20 steps


def test_a_run_leaves_everything_behind(finished):
    run = finished.folder
    assert {p.name for p in run.iterdir()} >= {
        'checkpoints',
        'config.json',
        'metrics.jsonl',
        'MODEL_CARD.md',
        'goodput.json',
        'compilation_cache',
        'profile',
    }
    kept = Checkpoints(run)
    assert {16, 20} <= set(kept.steps()) <= {10, 16, 20}  # the best is kept as well
    kept.close()
    last, average = (load(run, average=which).params for which in (False, True))
    assert not np.array_equal(last['encoder']['cls'], average['encoder']['cls'])
    (events,) = run.glob('events.out.tfevents*')
    board = EventAccumulator(str(events))
    board.Reload()
    assert [event.step for event in board.Images('reconstruction')] == [10, 20]
    assert [event.step for event in board.Scalars('loss')] == list(range(5, 21, 5))
    card = (run / 'MODEL_CARD.md').read_text()
    assert '16 records' in card and 'still training' not in card


def test_metrics_are_written_when_they_are_due(finished):
    rows = lines(finished.folder)
    train = [row for row in rows if 'loss' in row]
    assert [row['step'] for row in train] == list(range(5, 21, 5))
    assert {'loss', 'loss/s1', 'learning_rate', 'images_per_second', 'grad_norm'} <= train[0].keys()
    labelled = [row for row in rows if 'knn/ap_micro' in row]
    assert [row['step'] for row in labelled] == [
        0,
        10,
        20,
    ]  # from random weights to the end
    assert all(0 <= row[f'{name}/ap_micro'] <= 1 for row in labelled for name in ('knn', 'probe'))
    with Image.open(finished.folder / 'labelled.png') as drawn:
        assert drawn.width > drawn.height > 300
    held_out = [row for row in rows if 'val/loss' in row]
    assert [row['step'] for row in held_out] == [10, 20]
    assert held_out[1]['val/loss'] < held_out[0]['val/loss']


def test_a_tracker_gets_what_was_written(finished):
    (_, key, about), *calls, end = finished.tracked
    assert key == {} and end == ('close', True)
    assert about.facts['examples'] == 16 and about.facts['workdir'] == str(finished.folder)
    assert about.settings['train']['steps'] == 20
    scalars = [{'step': step, **values} for kind, step, values in calls if kind == 'scalars']
    assert scalars == lines(finished.folder)
    assert [call[1:] for call in calls if call[0] == 'image'] == [
        (10, 'reconstruction'),
        (20, 'reconstruction'),
    ]


def test_a_finished_run_stays_finished_and_is_reconstructed(finished):
    config, run = finished.config, finished.folder
    rows, card = lines(run), (run / 'MODEL_CARD.md').read_text()
    (run / 'COMPLETE').unlink()  # as if killed right after the last save
    assert experiment.pretrain(config, run) == 0
    assert lines(run) == rows
    assert (run / 'MODEL_CARD.md').read_text() == card
    assert (run / 'COMPLETE').exists()
    (run / 'config.json').unlink()  # the checkpoint knows what it belongs to
    other = build(to_dict(config) | {'seed': 3, 'masking': {'strategy': 'consistent', 'ratio': 0.75}})
    with pytest.raises(InputError) as error:
        experiment.pretrain(other, run)
    assert 'seed: the run has 0, this command 3' in str(error.value)
    assert "masking.strategy: the run has 'independent'" in str(error.value)

    assert experiment.pretrain(config, run) == 0
    # Of the few records of validation ten epochs are fewer steps than this warm-up.
    longer = to_dict(config)
    longer['train'] |= {'steps': 0, 'epochs': 10.0}
    longer['optimizer'] |= {'warmup_steps': 10}
    (run / 'config.json').write_text(json.dumps(longer))
    assert reconstruct(run, attention='1,3') == 0
    summary = json.loads((run / 'summary.json').read_text())
    assert summary['split'] == 'train[16:]' and not summary['trained_on_these_records']
    assert 0 < summary['s1_vs_mean'] < 2 and 0 < summary['s1_block8_vs_mean'] < 1
    for name in ('reconstruction.png', 'attention.png'):
        assert (run / name).read_bytes()[:4] == b'\x89PNG'


def test_metrics_are_read_one_step_late(tmp_path, monkeypatch):
    """So that the device has the next step to work on while the host waits."""
    config = tiny_config(log=cfg.Log(every_steps=1))
    writers, reads = Writers(tmp_path, 0, True), counted_reads(monkeypatch)
    log = StepLog(config, 60, writers, lambda *_: None, dict)
    with progress_bar(False) as bar:
        log.show(bar, 0)
        for step in (1, 2, 3):
            log.add(step, {'loss': jnp.float32(step), 'skipped': jnp.int32(0)}, {})
            assert reads['metrics'] == step - 1
        log.flush()
    writers.close()
    assert [row['loss'] for row in lines(tmp_path)] == [1, 2, 3]


def test_a_failed_start_leaves_the_workdir_free(dataset, tmp_path):
    config = config_on(dataset, data=cfg.Data(path=str(dataset), val_split='vall'))
    with pytest.raises(InputError, match="no split 'vall'"):
        experiment.pretrain(config, tmp_path)
    assert not (tmp_path / 'config.json').exists()


@pytest.mark.slow
def test_other_data_under_the_same_path_are_refused(dataset, tmp_path):
    config = config_on(dataset, train=cfg.Train(batch_size=8, steps=1))
    assert experiment.pretrain(config, tmp_path) == 0
    other = write(tmp_path / 'other', records=20, seed=5)
    with pytest.raises(InputError, match='fingerprint'):
        experiment.pretrain(build(to_dict(config) | {'data': {'path': other}}), tmp_path)


def test_too_many_skips_stop_the_run_and_name_checkpoint_and_records(dataset, tmp_path):
    config = config_on(dataset, checkpoint=cfg.Checkpoint(every_steps=1))
    # No rate that a configuration may ask for leads so far.
    beyond = dataclasses.replace(config.optimizer, learning_rate=1e38, warmup_steps=2)
    config = dataclasses.replace(config, optimizer=beyond)
    with pytest.raises(DivergedError) as error:
        experiment.pretrain(config, tmp_path)
    assert '3 updates in a row' in str(error.value)
    assert str(error.value.args[0]).count('checkpoints/2.') == 1  # the last one before the trouble
    assert [line['skips_in_row'] for line in lines(tmp_path)] == [0, 0, 1, 2, 3]
    skipped = [json.loads(line) for line in (tmp_path / workdir.SKIPPED).read_text().splitlines()]
    assert len(skipped) == 3 and len(skipped[0]['s2_name']) == 8
    assert skipped[0]['s2_name'][0].startswith('S2_train_')
