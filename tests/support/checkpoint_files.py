"""Checkpoints of small states, and damage done to their files."""

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from fusmae_jax.checkpoints.checkpoints import Checkpoints
from fusmae_jax.config import run as cfg
from fusmae_jax.parallel.mesh import make_mesh


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


def three_steps(folder):
    """Three complete checkpoints, and where the newest lies."""
    checkpoints = Checkpoints(folder, keep=3)
    for step in (1, 2, 3):
        checkpoints.save(state_on(2, step, scale=step), {'config': {}}, val_loss=1.0)
    checkpoints.close()
    return folder / 'checkpoints' / '3'


def largest(folder):
    return max((path for path in folder.rglob('*') if path.is_file()), key=lambda path: path.stat().st_size)
