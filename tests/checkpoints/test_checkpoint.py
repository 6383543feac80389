import errno
import math
import os
import shutil
import subprocess
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec
from orbax.checkpoint._src.serialization import ocdbt_utils

from fusmae_jax.checkpoints import manifest
from fusmae_jax.checkpoints.checkpoints import Checkpoints, difference, find, open_step
from fusmae_jax.config import run as cfg
from fusmae_jax.errors import InputError
from fusmae_jax.parallel.mesh import make_mesh
from fusmae_jax.storage import SaveError, explain_full_disk
from tests.support.checkpoint_files import abstract, largest, state_on, three_steps
from tests.support.files import flip


def test_saved_on_eight_devices_restored_on_two(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.latest() is None
    checkpoints.save(state_on(8), {'config': {'a': [1]}})
    checkpoints.wait()
    wanted = state_on(2, scale=0)
    restored = checkpoints.restore(abstract(wanted), 1)
    np.testing.assert_array_equal(restored['params']['kernel'], np.arange(32.0).reshape(8, 4))
    assert restored['params']['kernel'].sharding == wanted['params']['kernel'].sharding
    assert jax.tree.structure(restored) == jax.tree.structure(wanted)
    assert int(restored['opt_state'][1]) == 1 and restored['extra'] == {}
    assert checkpoints.meta(1) == {'config': {'a': [1]}, 'step': 1}
    only = checkpoints.params(abstract(wanted['params']), 1)
    np.testing.assert_array_equal(only['kernel'], restored['params']['kernel'])
    checkpoints.close()


def test_the_newest_and_the_best_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step, loss in enumerate((3.0, 1.0, 2.0, 4.0, 5.0), start=1):
        checkpoints.save(state_on(1, step), {}, val_loss=loss)
        checkpoints.wait()
    checkpoints.save(state_on(1, 6), {})
    checkpoints.close()
    kept = sorted(int(p.name) for p in (tmp_path / 'checkpoints').iterdir() if p.name.isdigit())
    assert kept == [2, 5, 6]


def test_a_loss_that_was_not_measured_is_never_the_best(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    for step, loss in enumerate((math.nan, 2.0, 3.0, None, math.nan), start=1):
        checkpoints.save(state_on(1, step), {}, val_loss=loss)
        checkpoints.wait()
    assert checkpoints.best() == 2.0 and checkpoints.steps() == [2, 5]
    checkpoints.close()
    again = Checkpoints(tmp_path, keep=1)
    assert again.best() == 2.0
    again.close()


@pytest.mark.parametrize('name', ['bands[B02,B03]', 'a*', 'a?', 'a%20b', 'a#b', 'a**b', 'a|b'])
def test_the_name_of_a_workdir_is_no_pattern_and_no_address(name, tmp_path):
    """Beside one that a pattern of that name would match."""
    for other in ('bandsB', 'ab', 'a b'):
        (tmp_path / other / 'checkpoints' / '1').mkdir(parents=True)
    newest = three_steps(tmp_path / name)
    assert manifest.damage(epath.Path(newest)) is None
    (newest / manifest.NAME).unlink()
    assert manifest.damage(epath.Path(newest)) is None
    again = Checkpoints(tmp_path / name, keep=3)
    restored = again.restore(abstract(state_on(1)), 3)
    np.testing.assert_array_equal(restored['params']['kernel'], 3 * np.arange(32.0).reshape(8, 4))
    again.close()


@pytest.mark.parametrize('name', ['a\\b', 'gs:', 'logs:'])
def test_a_place_that_arrays_would_miss_is_refused_before_anything_is_written(name, tmp_path):
    with pytest.raises(InputError, match='no checkpoint can be kept'):
        Checkpoints(tmp_path / name, keep=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('lost', ['params', 'meta'])
def test_a_save_that_does_not_read_back_is_none(lost, tmp_path, monkeypatch):
    """Orbax collects what the processes have written, and only warns where it finds nothing."""
    merge = ocdbt_utils.merge_ocdbt_per_process_files

    async def merges(directory, *args, **kwargs):
        if directory.name.split('.')[0] != lost:
            await merge(directory, *args, **kwargs)

    monkeypatch.setattr(ocdbt_utils, 'merge_ocdbt_per_process_files', merges)
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(state_on(1), {'config': {}})
    with pytest.raises(SaveError, match=f'1 could not be saved, since it does not read back .*{lost}'):
        checkpoints.wait()
    checkpoints.close()
    assert not (tmp_path / 'checkpoints' / '1' / manifest.NAME).exists()


def test_a_checkpoint_of_another_model_is_refused_with_the_difference(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(state_on(1), {})
    checkpoints.wait()
    wanted = state_on(1)
    wanted['params'] = {'kernel': jnp.zeros((8, 5)), 'bias': jnp.zeros(3)}
    with pytest.raises(InputError) as error:
        checkpoints.restore(abstract(wanted), 1)
    message = str(error.value)
    assert 'params/bias: not in the checkpoint' in message
    assert 'params/kernel: expected float32[8, 5], the checkpoint has float32[8, 4]' in message
    checkpoints.close()


def test_a_path_names_its_working_directory(tmp_path):
    step = tmp_path / 'checkpoints' / '30'
    step.mkdir(parents=True)
    assert find(tmp_path) == find(step.parent) == (tmp_path, None)
    assert find(step) == (tmp_path, 30)
    for other in (tmp_path / 'typo', step / 'a'):
        with pytest.raises(InputError, match='no checkpoints/ folder'):
            find(other)


def test_a_reader_deletes_nothing_and_names_what_is_there(tmp_path):
    with pytest.raises(InputError, match='no checkpoints/ folder'):
        open_step(tmp_path)
    writer = Checkpoints(tmp_path, keep=2)
    with pytest.raises(InputError, match='there: none yet'):
        open_step(tmp_path)
    for step in (1, 2):
        writer.save(state_on(1, step), {})
        writer.wait()
    unfinished = tmp_path / 'checkpoints' / '7.orbax-checkpoint-tmp'
    unfinished.mkdir()
    reader, newest = open_step(tmp_path)
    assert newest == 2 and reader.steps() == [1, 2]
    reader.close()
    with pytest.raises(InputError, match='no complete checkpoint 9; there: 1, 2'):
        open_step(tmp_path, 9)
    assert unfinished.exists()
    writer.close()


DAMAGES = {
    'flipped bit': lambda step: flip(largest(step / 'params')),
    'cut short': lambda step: os.truncate(largest(step / 'opt_state'), 20),
    'file deleted': lambda step: largest(step / 'params').unlink(),
    'part deleted': lambda step: shutil.rmtree(step / 'opt_state'),
    'metadata emptied': lambda step: (step / '_CHECKPOINT_METADATA').write_text(''),
    'metrics flipped': lambda step: flip(step / 'metrics' / 'metrics'),
    'manifest cut short': lambda step: os.truncate(step / manifest.NAME, 30),
}


@pytest.mark.parametrize('name', DAMAGES)
def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(name, tmp_path, capsys):
    newest = three_steps(tmp_path)
    DAMAGES[name](newest)
    again = Checkpoints(tmp_path, keep=3)
    printed = capsys.readouterr().out
    assert 'checkpoint 3 is damaged: ' in printed and 'falling back to checkpoint 2' in printed
    assert again.latest() == 2 and not newest.exists()
    assert (tmp_path / manifest.ASIDE / '3').is_dir()  # moved, not deleted
    restored = again.restore(abstract(state_on(1)), 2)
    np.testing.assert_array_equal(restored['params']['kernel'], 2 * np.arange(32.0).reshape(8, 4))
    again.save(state_on(2, 3), {'config': {}})  # the step is free again
    again.close()
    assert manifest.damage(epath.Path(newest)) is None


def test_several_damaged_ones_and_a_second_one_of_the_same_step(tmp_path):
    for _ in range(2):
        newest = three_steps(tmp_path)
        for step in (2, 3):
            flip(largest(newest.parent / str(step) / 'params'))
        checkpoints = Checkpoints(tmp_path, keep=3)
        assert checkpoints.steps() == [1]
        checkpoints.close()
    assert {path.name for path in (tmp_path / manifest.ASIDE).iterdir()} == {'2', '3', '2.2', '3.2'}


@pytest.mark.parametrize('name', ['part deleted', 'cut short', 'file deleted'])
def test_a_checkpoint_killed_before_its_manifest_is_read_through(name, tmp_path, capsys):
    newest = three_steps(tmp_path)
    (newest / manifest.NAME).unlink()
    Checkpoints(tmp_path, keep=3).close()
    assert newest.exists() and not capsys.readouterr().out  # whole, as far as can be seen
    if name == 'file deleted':
        next((newest / 'params' / 'd').iterdir()).unlink()
    else:
        DAMAGES[name](newest)
    Checkpoints(tmp_path, keep=3).close()
    assert not newest.exists() and 'checkpoint 3 is damaged' in capsys.readouterr().out


def test_a_reader_of_damaged_weights_is_told_of_the_others(tmp_path):
    newest = three_steps(tmp_path)
    wanted = abstract(state_on(1)['params'])
    reader, step = open_step(tmp_path)
    flip(largest(newest / 'opt_state'))
    reader.params(wanted, step)  # not the part that is read
    flip(largest(newest / 'params'))
    with pytest.raises(InputError, match=r'has changed since it was written; other checkpoints there: 1, 2'):
        reader.params(wanted, step)
    assert newest.exists()
    reader.close()


def test_orbax_does_not_count_in_the_requests_to_stop(tmp_path, monkeypatch):
    """It would report its step where a run reports its calls, and the processes would settle on neither."""
    asked = []
    monkeypatch.setattr(multihost_utils, 'reached_preemption_sync_point', asked.append)
    three_steps(tmp_path)
    assert not asked


def test_checkpoints_at_multiples_are_kept_for_good(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1, keep_every_steps=3)
    for step in range(1, 9):
        checkpoints.save(state_on(1, step), {})
    checkpoints.close()
    assert checkpoints.steps() == [3, 6, 8]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of two megabytes."""
    place = tmp_path / 'disk'
    place.mkdir()
    mount = ['mount', '-t', 'tmpfs', '-o', 'size=2m', 'tmpfs', place]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip('mounting a tmpfs needs root')
    yield place
    subprocess.run(['umount', '-l', place], check=True)


def noise_state(step):
    noise = jax.random.normal(jax.random.key(step), (300, 400))  # half a megabyte that no codec shrinks
    return {'step': jnp.int32(step), 'params': {'kernel': noise}, 'opt_state': {}, 'extra': {}}


def fill(checkpoints):
    """Saves as a loop does, which asks after each step."""
    for step in range(1, 10):
        checkpoints.save(noise_state(step), {})
        until = time.monotonic() + 60
        while checkpoints._saving and time.monotonic() < until:
            checkpoints.check()
            time.sleep(0.01)


def test_a_full_disk_stops_the_run_and_hurts_nothing(small_disk, caplog):
    checkpoints = Checkpoints(small_disk, keep=10)
    with pytest.raises(SaveError) as caught:
        fill(checkpoints)
    last = manifest.saved_steps(epath.Path(checkpoints.directory))[-1]
    failed = last + 1
    assert not [record for record in caplog.records if record.exc_info]  # no stack of orbax's threads
    assert last >= 1 and 'disk is full' in str(caught.value) and '\n' not in str(caught.value)
    assert str(caught.value).endswith(f'goes on from checkpoint {last}')
    checkpoints.close()  # says nothing a second time
    for path in small_disk.glob('checkpoints/1'):
        shutil.rmtree(path)  # makes room
    again = Checkpoints(small_disk, keep=10)
    assert again.latest() == last
    again.save(noise_state(failed), {})
    again.close()
    assert manifest.damage(epath.Path(small_disk / 'checkpoints' / str(failed))) is None


def test_only_a_full_disk_is_explained(tmp_path):
    with pytest.raises(SaveError, match='the disk is full'), explain_full_disk(tmp_path):
        raise OSError(errno.ENOSPC, 'No space left on device', 'metrics.jsonl')
    with pytest.raises(PermissionError), explain_full_disk(tmp_path):
        raise PermissionError(errno.EACCES, 'denied')


def test_the_order_of_settings_and_the_average_of_the_weights_come_back(tmp_path):
    """The order of the modalities is a part of a model: orbax would sort the keys of a tree."""
    state = {
        'step': jnp.int32(3),
        'params': {'a': jnp.ones((4, 4))},
        'ema': {'a': jnp.full((4, 4), 0.5)},
        'opt_state': {'m': jnp.ones(3)},
    }
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(state, {'config': {'s2': 1, 's1': 2}})
    checkpoints.wait()
    assert list(checkpoints.meta(3)['config']) == ['s2', 's1']
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = {'a': jax.ShapeDtypeStruct((4, 4), jnp.float32, sharding=device)}
    np.testing.assert_array_equal(checkpoints.params(abstract, 3, 'ema')['a'], 0.5)
    np.testing.assert_array_equal(checkpoints.params(abstract, 3)['a'], 1)
    rest = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), state)
    jax.tree.map(np.testing.assert_array_equal, checkpoints.restore(rest, 3), state)
    plain = {name: value for name, value in state.items() if name != 'ema'} | {'step': jnp.int32(4)}
    checkpoints.save(plain, {})
    checkpoints.wait()
    with pytest.raises(InputError, match='holds no averaged weights'):
        checkpoints.params(abstract, 4, 'ema')
    checkpoints.close()


def test_difference_names_types_and_extra_leaves():
    left = {'a': jnp.zeros(2), 'b': jnp.zeros(1)}
    right = {'a': jnp.zeros(2, jnp.bfloat16), 'c': jnp.zeros(1)}
    assert difference(left, left) == []
    lines = '\n'.join(difference(left, right))
    assert 'bfloat16[2]' in lines and 'c: in the checkpoint only' in lines


@pytest.mark.parametrize(('rows', 'cut'), [(8, False), (2**15, True)])
def test_replicas_share_the_writing_of_large_arrays_only(rows, cut, tmp_path):
    """To cut an array compiles a program for each part; of small ones there are hundreds."""
    compiled = []

    def listen(event, *_, fun_name='', **__):
        compiled.extend([fun_name] * event.endswith('backend_compile_duration'))

    everywhere = NamedSharding(make_mesh(cfg.Parallel(8, 1), jax.devices()), PartitionSpec())
    values = np.arange(8.0 * rows, dtype=np.float32).reshape(rows, 8)
    state = {
        'step': jnp.int32(1),
        'params': {'x': jax.device_put(values, everywhere)},
        'opt_state': {},
        'extra': {},
    }
    checkpoints = Checkpoints(tmp_path, keep=1)
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        checkpoints.save(state, {})
        checkpoints.wait()
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert bool(compiled) == cut
    np.testing.assert_array_equal(checkpoints.restore(abstract(state), 1)['params']['x'], values)
    checkpoints.close()
