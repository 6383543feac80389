import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from fusmae_jax.checkpoint import Checkpoints, difference, find, open_step
from fusmae_jax.errors import InputError
from fusmae_jax.parallel.mesh import make_mesh
from tests.conftest import cfg


def state_on(devices, step=1, scale=1.0):
    mesh = make_mesh(cfg.Parallel(1, devices), jax.devices()[:devices])
    where = NamedSharding(mesh, PartitionSpec('fsdp'))
    kernel = jax.device_put(scale * jnp.arange(32.0).reshape(8, 4), where)
    return {
        'step': jnp.int32(step),
        'params': {'kernel': kernel},
        'opt_state': ({'mu': kernel * 2}, jnp.int32(step)),
        'extra': {},
    }


def abstract(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


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


def test_difference_names_types_and_extra_leaves():
    left = {'a': jnp.zeros(2), 'b': jnp.zeros(1)}
    right = {'a': jnp.zeros(2, jnp.bfloat16), 'c': jnp.zeros(1)}
    assert difference(left, left) == []
    lines = '\n'.join(difference(left, right))
    assert 'bfloat16[2]' in lines and 'c: in the checkpoint only' in lines


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
