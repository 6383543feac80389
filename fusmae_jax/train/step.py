"""One training step and one evaluation step, compiled ahead of time for a mesh; gradient accumulation.

A batch may be cut into micro-batches, one after the other, with the numbers of the whole. A mean over valid
pixels is not the mean of the means of the micro-batches. So their weights (how many numbers count) are found
first, which needs no model, and each micro-batch then divides by those of the whole batch.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array

from fusmae_jax.config.run import Config
from fusmae_jax.input.contract import Contract
from fusmae_jax.input.pipeline import POSITION, prefix_of
from fusmae_jax.parallel.mesh import AXES, batch_sharding, replicated
from fusmae_jax.parallel.rules import Params, constrain_like_parameters
from fusmae_jax.train.objective import Batch, Metrics, Objective, Sums, error_sums, reconstructions
from fusmae_jax.train.state import State

StepFn = Callable[[State, Mapping[str, Array]], tuple[State, Metrics]]
Gradient = tuple[tuple[Array, tuple[Metrics, Any]], Params]


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
        # The same key in every step: what is drawn for a record follows from its global position alone, so a
        # resumed run draws what an uninterrupted one would have.
        key = jax.random.key(seed)
        extra = objective.begin(state['params'], state['extra'])
        (loss, (metrics, extra)), grads = grad(state['params'], extra, batch, key)
        extra, metrics = objective.settle(extra, metrics)
        norm = optax.tree.norm(grads)
        updates, opt_state = optimizer.update(grads, state['opt_state'], state['params'])
        # That of the gradient is enough, and the update, which waits for the answer, is one pass over the
        # state: an update is at most rate x norm / eps, and no configured rate makes that infinite.
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        new = {
            'params': optax.apply_updates(state['params'], updates),
            'opt_state': opt_state,
            'extra': extra,
        }
        if ema:
            new['ema'] = jax.tree.map(lambda old, x: old + (1 - ema) * (x - old), state['ema'], new['params'])
        # A select and no branch: every step is the same program, with the same collectives on every device.
        kept = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, {name: state[name] for name in new})
        bad = 1 - finite.astype(jnp.int32)
        skips = {'total': state['skips']['total'] + bad, 'in_row': (state['skips']['in_row'] + 1) * bad}
        metrics |= {
            'grad_norm': norm,
            # The optimizer counts good steps alone, and so does the rate that it used.
            'learning_rate': schedule(state['step'] - state['skips']['total']),
            'skipped': bad,
            'skips_in_row': skips['in_row'],
        }
        return kept | {'step': state['step'] + 1, 'skips': skips}, metrics

    return step


def make_gradient(objective: Objective, count: int) -> Callable[[Params, Any, Batch, Array], Gradient]:
    """The traceable function (params, extra, batch, key) -> ((loss, (metrics, extra)), gradient).

    Args:
        objective: what to take the gradient of; its `begin` and `settle` are the caller's.
        count: micro-batches. Loss, metrics and gradient are means over them.
    """
    whole = jax.value_and_grad(objective.loss, has_aux=True)
    if count == 1:
        return whole

    def gradient(params: Params, extra: Any, batch: Batch, key: Array) -> Gradient:
        micro = jax.tree.map(lambda x: split(x, count), dict(batch))
        weigh = objective.weights
        weights = (_mean(jax.lax.map(lambda part: weigh(part, key), micro)),) if weigh else ()

        def body(carry: tuple[Any, Any], part: Batch) -> tuple[tuple[Any, Any], tuple[Array, Metrics]]:
            extra, total = carry
            (loss, (metrics, extra)), grads = whole(params, extra, part, key, *weights)
            # Without it the sum would be whole on every device, whatever the parameters are.
            total = constrain_like_parameters(jax.tree.map(jnp.add, total, grads))
            return (extra, total), (loss, metrics)

        start = extra, constrain_like_parameters(jax.tree.map(jnp.zeros_like, params))
        (extra, total), (losses, metrics) = jax.lax.scan(body, start, micro)
        return (jnp.mean(losses), (_mean(metrics), extra)), jax.tree.map(lambda x: x / count, total)

    return gradient


def split(x: Array, count: int) -> Array:
    """(b, ...) to (count, b / count, ...): each device cuts its own rows, so that none has to move."""
    mesh = jax.sharding.get_abstract_mesh()
    devices = 1 if mesh.empty else mesh.size
    parts = x.reshape(devices, count, -1, *x.shape[1:]).swapaxes(0, 1)
    parts = parts.reshape(count, -1, *x.shape[1:])
    return parts if mesh.empty else jax.lax.with_sharding_constraint(parts, PartitionSpec(None, AXES))


def _mean(tree: Any) -> Any:
    return jax.tree.map(lambda x: jnp.mean(x, axis=0), tree)


def lower_step(step: StepFn, state: State, batch: Mapping[str, Any], mesh: Mesh) -> jax.stages.Lowered:
    """Lowers a step for states and batches (or their abstract forms) on a mesh; the state is donated.

    The result's `.compile()` is what the loop runs: it can never be traced again.
    """
    # The same shardings in and out: each buffer is given away to its successor.
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

    def evaluate(params: Params, batch: Mapping[str, Array], key: Array) -> Sums:
        masked, predictions = forward(params, batch, key)
        return error_sums(config, masked, predictions, batch[POSITION] < total)[0]

    jitted = jax.jit(evaluate, out_shardings=replicated(mesh))

    def run(params: Params, batch: Mapping[str, Array], key: Array) -> Sums:
        with jax.set_mesh(mesh):
            return jitted(params, batch, key)

    return run
