import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from fusmae_jax.checkpoints.checkpoints import Checkpoints
from fusmae_jax.config import run as cfg
from fusmae_jax.parallel.mesh import make_mesh
from tests.support.checkpoint_files import abstract


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
