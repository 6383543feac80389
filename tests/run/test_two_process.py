"""Real processes over localhost: one run, the same run as in one process, and what happens to its parts."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from fusmae_jax.checkpoints.checkpoints import Checkpoints
from fusmae_jax.config import run as cfg
from fusmae_jax.config.build import to_dict
from fusmae_jax.parallel.rules import path_name
from fusmae_jax.run import loop as experiment
from fusmae_jax.shipped.data.synthetic import write
from tests.support.files import flip
from tests.support.processes import run_processes
from tests.support.tiny import tiny_config, tiny_model

STEPS = 12


@pytest.fixture(scope='module')
def dataset(tmp_path_factory):
    return write(tmp_path_factory.mktemp('data'), records=20)


def settings(dataset, **changes):
    values = {
        # One sensor and little depth: most of a run is compiling.
        'model': tiny_model('none', modalities={'s1': cfg.Model().modalities['s1']}, depth=2),
        'data': cfg.Data(path=dataset, train_split='train[:16]', threads=1, prefetch=1),
        'train': cfg.Train(batch_size=8, steps=STEPS, max_skips=3, compilation_cache=False),
        'checkpoint': cfg.Checkpoint(every_steps=100),
    }
    return tiny_config(**(values | changes))


def with_all(dataset):
    """A run that also validates and draws."""
    data = cfg.Data(path=dataset, train_split='train[:16]', val_split='train[16:]', threads=1, prefetch=1)
    log = cfg.Log(every_steps=1, images_every_steps=6, num_images=2, eval_every_steps=4)
    checkpoint = cfg.Checkpoint(every_steps=4, keep=3)
    return settings(dataset, data=data, log=log, checkpoint=checkpoint, model=tiny_model())


def as_file(config, folder):
    file = folder / 'settings.py'
    values = to_dict(config)
    file.write_text(
        f'import ml_collections\n\n\ndef get_config():\n    return ml_collections.ConfigDict({values!r})\n'
    )
    return file


def curve(workdir, name='loss'):
    rows = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    steps = [row['step'] for row in rows if name in row]
    assert steps == sorted(set(steps)), 'a step was written more than once'
    return {row['step']: row[name] for row in rows if name in row}


def weights(config, workdir, step):
    """The train state of a checkpoint, on the devices of this process."""
    setup, _ = experiment.start.open_run(config)
    checkpoints = Checkpoints(workdir)
    state = checkpoints.restore(setup.abstract_state(), step)
    meta = checkpoints.meta(step)
    checkpoints.close()
    return jax.device_get(state), meta


def assert_equal(left, right):
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
@pytest.mark.parametrize('count', [2, 4])
def test_several_processes_are_one_run_and_stop_together(dataset, tmp_path, count):
    """Same curve and checkpoints as one process with as many devices; SIGTERM to one stops them all."""
    config = settings(dataset, train=cfg.Train(batch_size=8, steps=8, compilation_cache=False))
    code = ['--config.checkpoint.preempt_exit_code=3']
    ended = run_processes(
        as_file(config, tmp_path),
        tmp_path / 'several',
        count=count,
        devices=8 // count,
        moments={count - 1: ('3', 'SIGTERM')},
        settings=code,
    )
    assert [e.code for e in ended] == [3] * count, ended
    share = 8 // count  # of devices and of rows
    assert f'process 1 of {count}: {share} of 8 devices' in ended[1].output
    assert f'{share} of 8 rows a step' in ended[1].output
    assert 'stopped on request' in ended[0].output and 'Total:' not in ended[1].output
    several = curve(tmp_path / 'several')
    stopped = max(several)
    assert list(several) == list(range(1, stopped + 1)) and 3 <= stopped < 8
    assert Checkpoints(tmp_path / 'several').steps() == [stopped]
    assert not (tmp_path / 'several' / 'COMPLETE').exists()

    each = dataclasses.replace(config, checkpoint=cfg.Checkpoint(every_steps=1, keep=8))
    assert experiment.pretrain(each, tmp_path / 'one') == 0
    one = curve(tmp_path / 'one')
    np.testing.assert_allclose(list(several.values()), [one[step] for step in several], rtol=1e-5)
    (left, written), (right, knows) = (
        weights(config, tmp_path / name, stopped) for name in ('one', 'several')
    )
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for (path, a), b in zip(jax.tree.leaves_with_path(left), jax.tree.leaves(right)):
        if path_name(path).endswith('qkv/bias'):
            # A softmax does not feel the keys' bias: its gradient is rounding; AdamW makes full steps of it.
            a, b = (np.delete(x, np.arange(x.shape[-1] // 3, x.shape[-1] * 2 // 3), axis=-1) for x in (a, b))
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5, err_msg=path_name(path))
    assert written['seen'] == knows['seen'] and written['contract'] == knows['contract']
    assert len(list((tmp_path / 'several').glob('events.out.tfevents*'))) == 1


@pytest.mark.slow
def test_another_number_of_processes_changes_no_bit(dataset, tmp_path):
    """2 -> 4 and 4 -> 2 processes on eight devices go on exactly; a single process to 1e-5."""
    config = with_all(dataset)
    file = as_file(config, tmp_path)
    half = {1: ('5', 'SIGTERM')}
    for name, counts in {'whole': [2], 'up': [2, 4], 'down': [4, 2]}.items():
        for place, count in enumerate(counts):
            moments = half if place < len(counts) - 1 else {}
            ended = run_processes(file, tmp_path / name, count=count, devices=8 // count, moments=moments)
            assert [e.code for e in ended] == [0] * count, ended
            assert ('resuming from step' in ended[0].output) == (place > 0)
    whole, _ = weights(config, tmp_path / 'whole', STEPS)
    for name in ('up', 'down'):
        assert (tmp_path / name / 'COMPLETE').exists()
        for metric in ('loss', 'val/loss'):
            assert curve(tmp_path / name, metric) == curve(tmp_path / 'whole', metric)
        assert_equal(weights(config, tmp_path / name, STEPS)[0], whole)
    assert experiment.pretrain(config, tmp_path / 'one') == 0
    for metric in ('loss', 'val/loss'):
        one, two = curve(tmp_path / 'one', metric), curve(tmp_path / 'whole', metric)
        np.testing.assert_allclose(list(two.values()), list(one.values()), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(('count', 'victim'), [(2, 0), (2, 1), (4, 0), (4, 2)])
def test_the_others_end_soon_after_one_is_killed(dataset, tmp_path, count, victim):
    """Within the heartbeat and a little, with a message; the same command then goes on."""
    file, heartbeat = as_file(with_all(dataset), tmp_path), 10
    run = {'count': count, 'devices': 8 // count}
    struck = {victim: ('9', 'SIGKILL')}
    ended = run_processes(file, tmp_path / 'run', **run, moments=struck, heartbeat=heartbeat)
    assert ended[victim].code == -9
    for other in ended[:victim] + ended[victim + 1 :]:
        assert other.code not in (0, -9)
        assert other.seconds - ended[victim].seconds < heartbeat + 20
        assert any(words in other.output for words in ('another process of this run', 'another task died'))
    again = run_processes(file, tmp_path / 'run', **run)
    assert [e.code for e in again] == [0] * count, again
    # The save of step 8 ran in the background when the signal came.
    assert any(f'resuming from step {step} of' in again[0].output for step in (4, 8))
    assert list(curve(tmp_path / 'run')) == list(range(1, STEPS + 1))


@pytest.mark.slow
def test_a_damaged_record_ends_all_soon_with_its_sentence(tmp_path):
    """One process alone reads it; in an orderly end each would wait until the other is given up."""
    folder, heartbeat = write(tmp_path / 'data', records=20), 20
    (shard,) = Path(folder).glob('*.array_record-*')
    flip(shard)
    ended = run_processes(
        as_file(settings(folder), tmp_path), tmp_path / 'run', count=2, devices=4, heartbeat=heartbeat
    )
    (code,) = [e.code for e in ended if f'{shard}: record ' in e.output]
    assert code == 2 and 0 not in [e.code for e in ended]
    assert abs(ended[0].seconds - ended[1].seconds) < heartbeat, ended


@pytest.mark.slow
@pytest.mark.parametrize('moment', ['compile', 'evaluate'])
@pytest.mark.parametrize('count', [1, 2])
def test_sigterm_while_compiling_or_evaluating_saves_and_leaves(dataset, tmp_path, moment, count):
    config = with_all(dataset)
    file = as_file(config, tmp_path)
    struck = {count - 1: (moment, 'SIGTERM')}
    ended = run_processes(file, tmp_path / 'run', count=count, devices=8 // count, moments=struck)
    assert [e.code for e in ended] == [0] * count, ended
    saved = Checkpoints(tmp_path / 'run').latest()
    assert f'stopped on request at step {saved}' in ended[0].output
    assert saved in ((0, 1) if moment == 'compile' else (4, 5))
    again = run_processes(file, tmp_path / 'run', count=count, devices=8 // count)
    assert [e.code for e in again] == [0] * count, again
    assert list(curve(tmp_path / 'run')) == list(range(1, STEPS + 1))
    assert (tmp_path / 'run' / 'COMPLETE').exists()


@pytest.mark.slow
def test_sigterm_while_a_later_sitting_saves_stops_it_too(dataset, tmp_path):
    """There the steps that are saved and the calls in which the processes agree count from two numbers."""
    config = with_all(dataset)
    file, last = as_file(config, tmp_path), 0
    for moment in ('5', 'save'):
        struck = {1: (moment, 'SIGTERM')}
        ended = run_processes(file, tmp_path / 'run', count=2, devices=4, moments=struck)
        assert [e.code for e in ended] == [0, 0], ended
        before, last = last, Checkpoints(tmp_path / 'run').latest()
        assert before < last < STEPS and f'stopped on request at step {last};' in ended[0].output
        assert (f'resuming from step {before} of' in ended[0].output) == (before > 0)


@pytest.mark.slow
def test_hosts_that_differ_are_refused_with_a_sentence(dataset, tmp_path):
    """Settings, data, a folder that is missing on one, and a working directory that is not shared."""
    file = as_file(settings(dataset), tmp_path)
    other = write(tmp_path / 'other', records=20, seed=5)
    cases = {
        'seed': ('--config.seed=1', 'seed: 0 in process 0; 1 in process 1'),
        'data': (f'--config.data.path={other}', 'data fingerprint'),
        'missing': ('--config.data.path=/nowhere', "'/nowhere' does not exist"),
        'workdir': (f'--workdir={tmp_path / "elsewhere"}', 'storage that all of them share'),
    }
    for name, (setting, sentence) in cases.items():
        ended = run_processes(file, tmp_path / name, count=2, devices=1, own={1: [setting]})
        assert [e.code for e in ended] == [2, 2], ended
        for each in ended:
            assert sentence in each.output and 'Traceback' not in each.output, each.output
        assert not (tmp_path / name / 'checkpoints').is_dir() or not Checkpoints(tmp_path / name).steps()
