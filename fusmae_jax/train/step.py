"""One training step and one evaluation step, compiled ahead of time for a mesh."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array

from fusmae_jax.config.run import Config
from fusmae_jax.input.contract import Contract
from fusmae_jax.input.pipeline import POSITION, prefix_of
from fusmae_jax.parallel.mesh import batch_sharding, replicated
from fusmae_jax.train.accumulate import make_gradient
from fusmae_jax.train.objective import Metrics, Objective, Sums, error_sums, reconstructions
from fusmae_jax.train.state import State

StepFn = Callable[[State, Mapping[str, Array]], tuple[State, Metrics]]


def make_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    seed: int,
    accumulation: int = 1,
    ema: float = 0.0,
) -> StepFn:
    """The traceable function (state, batch) -> (state, metrics).

    `accumulation` cuts the batch into micro-batches; `ema` is the decay of the averaged weights in the state.
    A step whose loss or gradient is not finite changes nothing but the counters: `skipped` is 1 in its
    metrics, and `skips_in_row` tells how many there were without a good one between.
    """

    grad = make_gradient(objective, accumulation)

    def step(state: State, batch: Mapping[str, Array]) -> tuple[State, Metrics]:
        key = jax.random.key(seed)
        (loss, (metrics, extra)), grads = grad(state['params'], state['extra'], batch, key)
        norm = optax.tree.norm(grads)
        updates, opt_state = optimizer.update(grads, state['opt_state'], state['params'])
        # The update too: a finite gradient times an absurd rate would poison the parameters for good.
        finite = jnp.isfinite(loss) & jnp.isfinite(norm) & jnp.isfinite(optax.tree.norm(updates))
        new = {
            'params': optax.apply_updates(state['params'], updates),
            'opt_state': opt_state,
            'extra': extra,
        }
        if ema:
            new['ema'] = jax.tree.map(lambda old, x: old + (1 - ema) * (x - old), state['ema'], new['params'])
        kept = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, {name: state[name] for name in new})
        bad = 1 - finite.astype(jnp.int32)
        skips = {'total': state['skips']['total'] + bad, 'in_row': (state['skips']['in_row'] + 1) * bad}
        metrics |= {
            'grad_norm': norm,
            'learning_rate': schedule(state['step'] - state['skips']['total']),
            'skipped': bad,
            'skips_in_row': skips['in_row'],
        }
        return kept | {'step': state['step'] + 1, 'skips': skips}, metrics

    return step


def lower_step(step: StepFn, state: State, batch: Mapping[str, Any], mesh: Mesh) -> Any:
    """Lowers a step for states and batches (or their abstract forms) on a mesh; the state is donated.

    The result's `.compile()` is what the loop runs: it can never be traced again.
    """
    where = jax.tree.map(lambda leaf: leaf.sharding, state)
    jitted = jax.jit(
        step,
        in_shardings=(where, batch_sharding(mesh)),
        out_shardings=(where, replicated(mesh)),
        donate_argnums=0,
    )
    with jax.set_mesh(mesh):
        return jitted.lower(state, batch)


def abstract_batch(
    contract: Contract, fields: tuple[str, ...], rows: Mapping[str, int], mesh: Mesh
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and types of what `pipeline.to_devices` returns."""
    where = batch_sharding(mesh)
    shapes: dict[str, tuple[tuple[int, ...], Any]] = {
        f'{prefix}{POSITION}': ((count,), jnp.uint32) for prefix, count in rows.items()
    }
    for name in fields:
        prefix = prefix_of(name)
        group = contract.each[prefix].groups[name.removeprefix(prefix)]
        shapes[name] = ((rows[prefix], *group.size, len(group.bands)), jnp.dtype(group.dtype))
    return {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=where) for name, (shape, dtype) in shapes.items()
    }


def make_eval_step(config: Config, contract: Contract, dtype: Any, mesh: Mesh, total: int) -> Callable:
    """The jitted function (params, batch, key) -> per modality (sum of squared errors, weight).

    No augmentation; records at positions of `total` or more, which fill up the last batch, do not count.
    """
    forward = reconstructions(config, contract, None, dtype)

    def evaluate(params: Any, batch: Mapping[str, Array], key: Array) -> Sums:
        masked, predictions = forward(params, batch, key)
        return error_sums(config, masked, predictions, batch[POSITION] < total)[0]

    jitted = jax.jit(evaluate, out_shardings=replicated(mesh))

    def run(params: Any, batch: Mapping[str, Array], key: Array) -> Sums:
        with jax.set_mesh(mesh):
            return jitted(params, batch, key)

    return run
