"""The train state: nested dicts of arrays, created in place on the mesh.

`step` counts batches, `skips` the updates that were not finite; `ema`, if there is one, averages `params`.
NNX modules exist only inside traced functions; as arguments of a step they would cost several milliseconds
of host time each.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jax.typing import DTypeLike

from fusmae_jax.config.run import Config
from fusmae_jax.errors import InputError
from fusmae_jax.parallel.rules import shardings
from fusmae_jax.train.objective import Objective

State = dict[str, Any]


def compute_dtype(config: Config) -> DTypeLike:
    """The type of matrix products: 'auto' is bfloat16 on accelerators and float32 on CPU."""
    name = config.train.compute_dtype
    if name == 'auto':
        name = 'float32' if jax.default_backend() == 'cpu' else 'bfloat16'
    if name == 'float64' and jax.dtypes.canonicalize_dtype(name) != jnp.dtype(name):
        raise InputError(
            "config.train.compute_dtype='float64' needs the environment variable JAX_ENABLE_X64=1"
        )
    return jnp.dtype(name)


def abstract_state(
    objective: Objective, optimizer: optax.GradientTransformation, mesh: Mesh, ema: bool = False
) -> State:
    """Shapes, types and shardings of the state; no memory is used."""
    return jax.tree.map(lambda leaf: leaf, _abstract(objective, optimizer, mesh, ema))


# A start asks for it half a dozen times, and each would trace the model.
@functools.lru_cache(maxsize=4)
def _abstract(objective: Objective, optimizer: optax.GradientTransformation, mesh: Mesh, ema: bool) -> State:
    shapes = jax.eval_shape(lambda key: _init(objective, optimizer, key, ema), jax.random.key(0))
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        shardings(shapes, mesh),
    )


def init_state(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    seed: int,
    ema: bool = False,
) -> State:
    """A fresh state; every array is created where it lives."""
    where = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(objective, optimizer, mesh, ema))
    make = jax.jit(lambda key: _init(objective, optimizer, key, ema), out_shardings=where)
    # A key of its own: the training keys are fold_in(key(seed), position).
    return make(jax.random.fold_in(jax.random.key(seed), 2**32 - 1))


def _init(objective: Objective, optimizer: optax.GradientTransformation, key: jax.Array, ema: bool) -> State:
    params, extra = objective.init(key)
    # A copy: a donated state must not hold one buffer twice.
    average = {'ema': jax.tree.map(jnp.copy, params)} if ema else {}
    return average | {
        'step': jnp.zeros((), jnp.int32),
        'params': params,
        'opt_state': optimizer.init(params),
        'extra': extra,
        'skips': {'total': jnp.zeros((), jnp.int32), 'in_row': jnp.zeros((), jnp.int32)},
    }
