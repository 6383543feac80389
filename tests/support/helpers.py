"""Random batches and patches for the tests."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fusmae_jax.input.contract import Contract
from fusmae_jax.input.prepare import Patches
from fusmae_jax.models.fusmae import param_shapes
from fusmae_jax.shipped.data.bigearthnet_mm.schema import GROUPS

CONTRACT = Contract(dataset='test', version='1', groups=GROUPS)


def raw_batch(size: int, seed: int = 0) -> dict[str, np.ndarray]:
    """A batch as the pipeline delivers it, with the fields of BigEarthNet-MM."""
    rng = np.random.default_rng(seed)
    batch = {'position': np.arange(size, dtype=np.uint32)}
    for name, group in GROUPS.items():
        shape = (size, *group.size, len(group.bands))
        if group.dtype == 'float32':
            batch[name] = rng.normal(-13, 5, shape).astype(np.float32)
        else:
            batch[name] = rng.integers(1, 4000, shape).astype(np.uint16)
    return batch


def random_patches(model, batch: int, seed: int = 0, dtype=jnp.float32) -> dict[str, Patches]:
    """Normal values, all valid."""
    rng, result = np.random.default_rng(seed), {}
    for name in model.modalities:
        shape = (batch, model.num_patches, model.patch_dim(name))
        result[name] = Patches(
            jax.device_put(rng.normal(size=shape).astype(dtype)), jax.device_put(np.ones(shape, bool))
        )
    return result


def random_order(model, batch: int, seed: int = 1) -> dict[str, jax.Array]:
    """An independent permutation for each sample and modality."""
    rng, rows = np.random.default_rng(seed), np.tile(np.arange(model.num_patches, dtype=np.int32), (batch, 1))
    return {name: jnp.asarray(rng.permuted(rows, axis=1)) for name in model.modalities}


def weights(model, seed=0):
    """Random weights, drawn by NumPy: compiling the initialisation of a model takes seconds."""
    return drawn(param_shapes(model), seed)


def module_of(make, seed=0):
    """The module that `make` builds, but for the weights, which are `drawn`."""
    graphdef, state = nnx.split(nnx.eval_shape(make))
    return nnx.merge(graphdef, drawn(nnx.to_pure_dict(state), seed))


def compiled(module, *arguments, method='__call__', **settings):
    """What a module gives, as one program: run as it stands, each operation is compiled by itself."""
    # The arguments are constants of the program: handed over, a mapping would come in another order.
    return nnx.jit(lambda m: getattr(m, method)(*arguments, **settings))(module)


def drawn(shapes, seed=0):
    """Random weights of these shapes: scales about 1, everything else about 0."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        middle = 1.0 if path[-1].key == 'scale' else 0.0
        # By `jnp.asarray` it would be a program for each shape.
        return jax.device_put(rng.normal(middle, 0.2, leaf.shape).astype(leaf.dtype))

    return jax.tree_util.tree_map_with_path(draw, shapes)


def fresh_state(setup, seed=0):
    """The state of a setup before its first step, but for the weights, which are `drawn`."""
    state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), setup.abstract_state())
    state['params'] = drawn(state['params'], seed)
    if 'ema' in state:
        state['ema'] = state['params']
    return placed(state, setup)


def placed(values, setup):
    """A state from the host's memory, where the state of a setup lives."""
    where = jax.tree.map(lambda leaf: leaf.sharding, setup.abstract_state())
    # A copy: a step gives the buffers of its state away, and on a CPU they may be those of the host.
    return jax.device_put(jax.tree.map(np.copy, values), where)
