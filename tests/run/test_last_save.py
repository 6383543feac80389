"""What a run saves around skipped updates and at its end, and what several processes make of its errors."""

import dataclasses
import errno
import json
import math
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data.synthetic import write
from fusmae_jax.checkpoints.checkpoints import Checkpoints
from fusmae_jax.config import run as cfg
from fusmae_jax.errors import DivergedError
from fusmae_jax.parallel import distributed
from fusmae_jax.run import loop as experiment
from fusmae_jax.run import model_card, workdir
from fusmae_jax.storage import SaveError
from tests.support.tiny import smallest_model, tiny_config


@pytest.fixture(scope='module')
def dataset(tmp_path_factory):
    return write(tmp_path_factory.mktemp('data'), records=16)


def config_on(dataset, steps, **train):
    return tiny_config(
        model=smallest_model(),
        data=cfg.Data(path=str(dataset), threads=1, prefetch=1),
        train=cfg.Train(batch_size=8, steps=steps, **train),
        checkpoint=cfg.Checkpoint(every_steps=3, keep=3),
    )


def count_only(monkeypatch, skipped, terminated=0):
    """Steps that train nothing, compile at once, and are not finite where `skipped` says so.

    SIGTERM comes while step `terminated` is dispatched.
    """
    bad = np.isin(np.arange(1, 100), list(skipped)).astype(np.int32)

    @jax.jit
    def count(state):
        now = jnp.asarray(bad)[state['step']]
        in_row = (state['skips']['in_row'] + 1) * now
        skips = {'total': state['skips']['total'] + now, 'in_row': in_row}
        metrics = {'loss': jnp.float32(1), 'skipped': now, 'skips_in_row': in_row}
        return state | {'step': state['step'] + 1, 'skips': skips}, metrics

    def compile_step(setup):
        calls = []

        def step(state, batch):
            calls.append(1)
            if len(calls) == terminated:
                os.kill(os.getpid(), signal.SIGTERM)
            return count(state)

        return step, None

    monkeypatch.setattr(experiment.start, 'compile_step', compile_step)


def test_the_end_is_saved_after_a_skip_and_a_save_on_the_way_waits(dataset, tmp_path, monkeypatch, capsys):
    config = config_on(dataset, 7, max_skips=3)
    count_only(monkeypatch, {3, 7})
    (tmp_path / workdir.COMPLETE).write_text('7')  # of a run whose checkpoints were lost
    finish = experiment.Run._finish

    def finishes(run, state):
        assert not (tmp_path / workdir.COMPLETE).exists()
        return finish(run, state)

    monkeypatch.setattr(experiment.Run, '_finish', finishes)
    assert experiment.pretrain(config, tmp_path) == 0
    reader = Checkpoints(tmp_path)
    # Step 3 was skipped; that step 4 was not is known when step 5 is on its way. Step 6 is due anyway.
    assert reader.steps() == [5, 6, 7] and [reader.meta(step)['good'] for step in (5, 6, 7)] == [5, 6, 6]
    reader.close()
    assert (tmp_path / workdir.COMPLETE).exists()
    assert experiment.pretrain(config, tmp_path) == 0
    assert 'finished at step 7; nothing left' in capsys.readouterr().out


def test_the_best_loss_is_that_of_a_checkpoint_that_is_kept(dataset, tmp_path, monkeypatch):
    """Steps 3 (skipped, so that its save waits) and 6 would have been the best; that of 4 is not measured."""
    found = {1: 3.0, 2: 2.0, 3: 1.0, 4: math.nan, 5: 4.0, 6: 0.5, 7: 5.0}
    config = config_on(dataset, 7, max_skips=3)
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, val_split='train'),
        checkpoint=cfg.Checkpoint(every_steps=9, keep=1),
        log=dataclasses.replace(config.log, eval_every_steps=1),
    )
    count_only(monkeypatch, {3, 6})
    steps = iter(found)
    monkeypatch.setattr(experiment, 'Validation', lambda *_: lambda _: {'val/loss': found[next(steps)]})
    assert experiment.pretrain(config, tmp_path) == 0
    reader = Checkpoints(tmp_path)
    assert reader.steps() == [2, 7] and reader.best() == reader.meta(7)['best_val'] == 2.0
    reader.close()
    assert '| best held-out loss | 2.0000 |' in (tmp_path / model_card.FILE).read_text()


def test_a_stop_amid_skips_saves_and_the_good_checkpoint_stays_known(dataset, tmp_path, monkeypatch):
    config = config_on(dataset, 20, max_skips=4)
    count_only(monkeypatch, range(4, 30), terminated=5)  # that step still runs
    assert experiment.pretrain(config, tmp_path) == config.checkpoint.preempt_exit_code
    reader = Checkpoints(tmp_path)
    assert reader.steps() == [3, 5]
    reader.close()
    # A sitting that went on and was killed leaves steps that are done again.
    skipped = tmp_path / workdir.SKIPPED
    with skipped.open('a') as file:
        file.write('{"step": 6, "position": [40]}\n{"step": 7, "pos')
    with pytest.raises(DivergedError, match=r'4 updates in a row .*up to 7\).*checkpoints/3\.'):
        experiment.pretrain(config, tmp_path)
    rows = [json.loads(line) for line in skipped.read_text().splitlines()]
    assert [row['step'] for row in rows] == [4, 5, 6, 7]
    assert rows[2] != {'step': 6, 'position': [40]}


def test_a_full_disk_is_one_sentence_for_each_of_several_processes_too(dataset, tmp_path, monkeypatch):
    class LeftError(Exception):
        pass

    def leave(error):
        raise LeftError from error

    def full(*_):
        raise OSError(errno.ENOSPC, 'No space left on device', 'metrics.jsonl')

    monkeypatch.setattr(jax, 'process_count', lambda: 2)
    monkeypatch.setattr(distributed, 'abandon', leave)  # it would end this very process
    monkeypatch.setattr(experiment.start, 'lock_workdir', lambda *_: None)  # asks the other process
    monkeypatch.setattr(experiment.start, 'open_run', full)
    with pytest.raises(LeftError) as caught:
        experiment.pretrain(config_on(dataset, 1, compilation_cache=False), tmp_path)
    assert isinstance(caught.value.__cause__, SaveError)
