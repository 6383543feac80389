"""The train state: nested dicts of arrays, created in place on the mesh.

`step` counts batches, `skips` the updates that were not finite; `ema`, if there is one, averages `params`.
NNX modules exist only inside traced functions; as arguments of a step they would cost several milliseconds
of host time each.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jax.typing import DTypeLike

from fusmae_jax.config.run import Config
from fusmae_jax.errors import InputError
from fusmae_jax.parallel.rules import Params, path_name, shardings
from fusmae_jax.train.objective import Objective

State = dict[str, Any]


class Given(NamedTuple):
    """Parameters that a run starts from, by path; on the devices, laid out as the parameters are."""

    values: dict[str, jax.Array]
    masks: dict[str, jax.Array]  # of those that are given in part: where (bool, the same shape)

    def into(self, params: Any) -> Any:
        """Fresh parameters with the given ones in their place; traceable."""

        def choose(path: Any, fresh: jax.Array) -> jax.Array:
            name = path_name(path)
            value = self.values.get(name, fresh)
            return jnp.where(self.masks[name], value, fresh) if name in self.masks else value

        return jax.tree_util.tree_map_with_path(choose, params)


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
    begun = objective.shapes or functools.partial(jax.eval_shape, objective.init, jax.random.key(0))
    shapes = jax.eval_shape(lambda params, extra: _whole(params, extra, optimizer, ema), *begun())
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
    given: Given | None = None,
) -> State:
    """A fresh state; every array is created where it lives.

    With `given`, whose buffers are used up, those parameters are taken and the others drawn: what is taken
    whole is not drawn first.
    """
    where = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(objective, optimizer, mesh, ema))
    # A key of its own: the training keys are fold_in(key(seed), position).
    key = jax.random.fold_in(jax.random.key(seed), 2**32 - 1)
    if given is None:
        return jax.jit(lambda key: _init(objective, optimizer, key, ema), out_shardings=where)(key)

    def make(values: dict[str, jax.Array], masks: dict[str, jax.Array], key: jax.Array) -> State:
        return _init(objective, optimizer, key, ema, Given(values, masks))

    return jax.jit(make, out_shardings=where, donate_argnums=0)(*given, key)


def _init(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    ema: bool,
    given: Given | None = None,
) -> State:
    params, extra = objective.init(key)
    if given is not None:
        params = given.into(params)
        extra = objective.restart(params, extra)
    return _whole(params, extra, optimizer, ema)


def _whole(params: Params, extra: Any, optimizer: optax.GradientTransformation, ema: bool) -> State:
    """The state before the first step."""
    # A copy: a donated state must not hold one buffer twice.
    average = {'ema': jax.tree.map(jnp.copy, params)} if ema else {}
    return average | {
        'step': jnp.zeros((), jnp.int32),
        'params': params,
        'opt_state': optimizer.init(params),
        'extra': extra,
        'skips': {'total': jnp.zeros((), jnp.int32), 'in_row': jnp.zeros((), jnp.int32)},
    }
