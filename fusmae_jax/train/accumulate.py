"""Gradient accumulation: the batch in micro-batches, one after the other, with the numbers of the whole.

A mean over valid pixels is not the mean of the means of the micro-batches. So their weights (how many numbers
count) are found first, which needs no model, and each micro-batch then divides by those of the whole batch.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array

from fusmae_jax.parallel.mesh import AXES
from fusmae_jax.parallel.rules import constrain_like_parameters
from fusmae_jax.train.objective import Batch, Metrics, Objective

Gradient = tuple[tuple[Array, tuple[Metrics, Any]], Any]


def make_gradient(objective: Objective, count: int) -> Callable[[Any, Any, Batch, Array], Gradient]:
    """The traceable function (params, extra, batch, key) -> ((loss, (metrics, extra)), gradient).

    Args:
        objective: with `weights`, unless `count` is 1.
        count: micro-batches. Loss, metrics and gradient are means over them.
    """
    whole = jax.value_and_grad(objective.loss, has_aux=True)
    if count == 1:
        return whole
    weigh = objective.weights
    assert weigh is not None, 'train.setup refuses such an objective'

    def gradient(params: Any, extra: Any, batch: Batch, key: Array) -> Gradient:
        micro = jax.tree.map(lambda x: split(x, count), dict(batch))
        weights = _mean(jax.lax.map(lambda part: weigh(part, key), micro))

        def body(carry: tuple[Any, Any], part: Batch) -> tuple[tuple[Any, Any], tuple[Array, Metrics]]:
            extra, total = carry
            (loss, (metrics, extra)), grads = whole(params, extra, part, key, weights)
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
