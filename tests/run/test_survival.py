"""What a run survives: unlike replicas, kills, skipped updates, errors of processes; and its last save."""

import contextlib
import dataclasses
import errno
import json
import math
import os
import signal
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec

from fusmae_jax import cli
from fusmae_jax.checkpoints import manifest
from fusmae_jax.checkpoints.checkpoints import Checkpoints
from fusmae_jax.config import run as cfg
from fusmae_jax.errors import DamagedRecordError, DivergedError, InputError
from fusmae_jax.parallel import distributed
from fusmae_jax.parallel.mesh import make_mesh
from fusmae_jax.parallel.preemption import Preemption
from fusmae_jax.run import loop as experiment
from fusmae_jax.run import model_card, workdir
from fusmae_jax.run.profiling import Profiler, Window, parse_window
from fusmae_jax.shipped.data.synthetic import write
from fusmae_jax.storage import SaveError
from fusmae_jax.train.checksum import ReplicaError, make_check
from fusmae_jax.train.setup import Setup
from tests.support import storm
from tests.support.helpers import fresh_state
from tests.support.tiny import smallest_model, tiny_config


def params_on(mesh):
    """One array split over fsdp, one replicated everywhere, of two types."""
    values = {
        'kernel': jnp.arange(1, 65, dtype=jnp.float32).reshape(8, 8),
        'norm': {'scale': jnp.arange(6, dtype=jnp.bfloat16)},
    }
    where = {
        'kernel': NamedSharding(mesh, PartitionSpec(None, 'fsdp')),
        'norm': {'scale': NamedSharding(mesh, PartitionSpec())},
    }
    return jax.device_put(values, where)


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def changed(array, device, change):
    """The same global array, with the copy on one device changed."""
    shards = []
    for shard in array.addressable_shards:
        value = np.array(shard.data)
        if shard.device == device:
            change(value)
        shards.append(jax.device_put(value, shard.device))
    return jax.make_array_from_single_device_arrays(array.shape, array.sharding, shards)


def flip_last_bit(value):
    value.reshape(-1).view(f'uint{8 * value.itemsize}')[0] ^= 1


def flip_two_signs(value):
    value.reshape(-1)[:2] *= -1


@pytest.mark.parametrize('change', [flip_last_bit, flip_two_signs])
@pytest.mark.parametrize(('data', 'fsdp'), [(4, 2), (8, 1)])
def test_one_wrong_copy_is_named(data, fsdp, change):
    mesh = make_mesh(cfg.Parallel(data, fsdp), jax.devices()[:8])
    params = params_on(mesh)
    check = make_check(abstract(params), mesh)
    check(params, 1)
    device = mesh.devices[2, fsdp - 1]
    with pytest.raises(DivergedError) as caught:
        check({**params, 'kernel': changed(params['kernel'], device, change)}, 7)
    message = str(caught.value)
    assert message.startswith('step 7: ') and f': kernel on {device}. ' in message
    scale = changed(params['norm']['scale'], device, lambda value: flip_last_bit(value[3:]))
    with pytest.raises(DivergedError, match=f'norm/scale on {device}'):
        check({**params, 'norm': {'scale': scale}}, 7)


def test_shards_that_exist_once_are_not_compared():
    mesh = make_mesh(cfg.Parallel(1, 8), jax.devices()[:8])
    params = params_on(mesh)
    check = make_check(abstract(params), mesh)
    check({**params, 'kernel': changed(params['kernel'], mesh.devices[0, 3], flip_last_bit)}, 1)


def test_two_copies_that_differ_are_both_named():
    mesh = make_mesh(cfg.Parallel(2, 1), jax.devices()[:2])
    params = params_on(mesh)
    kernel = changed(params['kernel'], mesh.devices[1, 0], flip_last_bit)
    with pytest.raises(DivergedError, match=f'kernel on {mesh.devices[0, 0]}, {mesh.devices[1, 0]}'):
        make_check(abstract(params), mesh)({**params, 'kernel': kernel}, 1)


def test_windows():
    assert parse_window('') is None
    assert parse_window('100:110') == Window(100, 110) and parse_window('7') == Window(7, 7)
    for wrong in ('0', '9:8', '1:', 'x', '-3:4'):
        with pytest.raises(InputError, match='such as 100:110'):
            parse_window(wrong)


def test_the_steps_of_the_window_are_traced_and_trouble_does_not_stop_them(tmp_path, capsys):
    double = jax.jit(lambda x: x @ x)
    value = jnp.eye(8)
    other = Profiler(tmp_path / 'other', Window(1, 9))
    other.step(1, value)  # a trace of somebody else
    profiler = Profiler(tmp_path, Window(1, 1))
    with profiler.step(1, value):  # cannot start: logged
        value = double(value)
    profiler.close()
    other.close()
    profiler = Profiler(tmp_path / 'own', Window(3, 4))
    for step in range(1, 7):
        with profiler.step(step, value):
            value = double(value)
    profiler.close()
    (trace,) = (tmp_path / 'own' / 'profile').rglob('*.xplane.pb')
    content = trace.read_bytes()
    assert b'train' in content
    assert not (tmp_path / 'profile').exists() and 'own/profile' in capsys.readouterr().out


def test_processes_that_share_a_host_do_not_share_a_trace(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, 'process_count', lambda: 2)
    monkeypatch.setattr(jax, 'process_index', lambda: 1)
    profiler = Profiler(tmp_path, Window(1, 1))
    with profiler.step(1, None):
        pass
    profiler.close()
    assert list((tmp_path / 'profile' / 'process_1').rglob('*.xplane.pb'))


@pytest.mark.slow
def test_a_short_storm(tmp_path):
    storm.storm(tmp_path, steps=30, kills=3, seed=1)


@pytest.mark.slow
def test_a_full_disk_ends_a_run_with_one_sentence(tmp_path):
    """On a disk too small for its checkpoints a run stops; with more space it ends as if nothing had been."""
    config, calm, disk = storm.write_config(tmp_path, steps=40), tmp_path / 'calm', tmp_path / 'disk'
    storm.finish(config, calm, tmp_path / 'calm.log')
    used = sum(f.stat().st_size for f in (calm / 'checkpoints').rglob('*') if f.is_file())
    rest = sum(f.stat().st_size for f in calm.rglob('*') if f.is_file()) - used
    disk.mkdir()
    mount = ['mount', '-t', 'tmpfs', '-o', f'size={(2 * rest + used // 2) // 1024}k', 'tmpfs', disk]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip('mounting a tmpfs needs root')
    try:
        with storm.launch(config, disk, tmp_path / 'full.log') as process:
            code = process.wait(storm.PATIENCE)
        output = (tmp_path / 'full.log').read_text()
        assert code == 2, output
        (sentence,) = [line for line in output.splitlines() if line.startswith('error: ')]
        assert 'the disk is full' in sentence and 'Traceback' not in output
        saved = manifest.saved_steps(epath.Path(disk / 'checkpoints'))
        assert saved and all(
            manifest.damage(epath.Path(disk / 'checkpoints' / str(s))) is None for s in saved
        )
        subprocess.run(['mount', '-o', 'remount,size=100m', disk], check=True)
        storm.finish(config, disk, tmp_path / 'again.log')
        assert f'resuming from step {saved[-1]} ' in (tmp_path / 'again.log').read_text()
        storm.same(calm, disk)
    finally:
        subprocess.run(['umount', '-l', disk], check=True)


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


def count_only(monkeypatch, skipped, terminated=0, by=signal.SIGTERM):
    """Steps that train nothing, compile at once, and are not finite where `skipped` says so.

    A signal, SIGTERM or another one, comes while step `terminated` is dispatched.
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
                os.kill(os.getpid(), by)
            return count(state)

        return step, None

    monkeypatch.setattr(experiment.start, 'compile_step', compile_step)
    monkeypatch.setattr(Setup, 'init_state', fresh_state)


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


def test_ctrl_c_saves_and_a_second_one_does_not_wait(dataset, tmp_path, monkeypatch, capfd):
    config = config_on(dataset, 7)
    with monkeypatch.context() as patch:
        count_only(patch, set(), 4, signal.SIGINT)
        assert experiment.pretrain(config, tmp_path) == config.checkpoint.preempt_exit_code
    assert 'Ctrl-C again stops without' in capfd.readouterr().err
    reader = Checkpoints(tmp_path)
    assert reader.steps() == [3, 4]
    reader.close()
    count_only(monkeypatch, set())
    assert experiment.pretrain(config, tmp_path) == 0
    with contextlib.ExitStack() as stack:
        preemption = Preemption(stack)
        os.kill(os.getpid(), signal.SIGINT)
        assert preemption.reached()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_of_another_command_is_one_line(monkeypatch, capsys):
    def interrupted(argv):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, '_main', interrupted)
    assert cli.main(['main.py', 'stats']) == 130
    assert capsys.readouterr().err == '\nstopped by Ctrl-C\n'


def test_the_best_loss_is_that_of_a_checkpoint_that_is_kept(dataset, tmp_path, monkeypatch):
    """Steps 3 (skipped, so that its save waits) and 6 would have been the best; that of 4 is not measured."""
    losses = {1: 3.0, 2: 2.0, 3: 1.0, 4: math.nan, 5: 4.0, 6: 0.5, 7: 5.0}
    config = config_on(dataset, 7, max_skips=3)
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, val_split='train'),
        checkpoint=cfg.Checkpoint(every_steps=9, keep=1),
        log=dataclasses.replace(config.log, eval_every_steps=1),
    )
    count_only(monkeypatch, {3, 6})
    steps = iter(losses)
    monkeypatch.setattr(experiment, 'Validation', lambda *_: lambda _: {'val/loss': losses[next(steps)]})
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


@pytest.mark.parametrize(('terminated', 'last'), [(0, 7), (4, 4)])
def test_the_last_save_of_a_sitting_is_of_copies_that_agree(terminated, last, dataset, tmp_path, monkeypatch):
    """Also where their check is not due: what a sitting ends with is what others build on."""
    config = config_on(dataset, 7)
    count_only(monkeypatch, set(), terminated)
    counted = experiment.start.compile_step

    def check(params, step):
        if step == last:
            raise ReplicaError(f'step {step}: copies differ')

    monkeypatch.setattr(experiment.start, 'compile_step', lambda setup: (counted(setup)[0], check))
    with pytest.raises(ReplicaError, match=f'step {last}: '):
        experiment.pretrain(config, tmp_path)
    reader = Checkpoints(tmp_path)
    assert reader.steps() == [step for step in (3, 6) if step < last]
    reader.close()


FULL = OSError(errno.ENOSPC, 'No space left on device', 'metrics.jsonl')
DAMAGED = DamagedRecordError('shard 3: record 10 cannot be read')


@pytest.mark.parametrize(('met', 'kind'), [(FULL, SaveError), (DAMAGED, DamagedRecordError)])
def test_what_one_process_alone_meets_ends_it_at_once(met, kind, dataset, tmp_path, monkeypatch):
    """An orderly end would wait for the others, and they for it."""

    class LeftError(Exception):
        pass

    def leave(error):
        raise LeftError from error

    def fail(*_):
        raise met

    monkeypatch.setattr(jax, 'process_count', lambda: 2)
    monkeypatch.setattr(distributed, 'abandon', leave)  # it would end this very process
    monkeypatch.setattr(experiment.start, 'lock_workdir', lambda *_: None)  # asks the other process
    monkeypatch.setattr(experiment.start, 'open_run', fail)
    with pytest.raises(LeftError) as caught:
        experiment.pretrain(config_on(dataset, 1, compilation_cache=False), tmp_path)
    assert isinstance(caught.value.__cause__, kind)
