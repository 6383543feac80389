"""Balance of the sensors by uncertainty: each error is divided by a variance that is learned with it.

After Kendall, Gal and Cipolla (CVPR 2018), for regression and up to a factor 2:

    L = sum_i w_i (exp(-s_i) L_i + s_i),    s_i = log of the variance of sensor i

At s_i = 0, where it starts, L has the gradient of the plain loss. For given errors it is least at
s_i = log L_i: a sensor then counts by its relative error, and one that is easy to predict (smooth elevation)
as much as one that is not (speckle). The s_i are extra state of the objective and not parameters: they follow
their own gradient, 1 - exp(-s_i) L_i, in steps of their own rate, once a batch. So an encoder, its moments
and how it is read are the same with and without them.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

EXTRA = 'log_variance'
LIMIT = 10.0  # of a log-variance: a sensor that is predicted exactly would pull its own to minus infinity

Scalars = Mapping[str, Float[Array, '']]


def start(loss_weights: Mapping[str, float]) -> dict[str, Any]:
    """The extra state before the first step."""
    return {EXTRA: {name: jnp.zeros((), jnp.float32) for name in loss_weights}}


def weighted(means: Scalars, log_variance: Scalars, loss_weights: Mapping[str, float]) -> Float[Array, '']:
    """The balanced loss of mean squared errors; one that is NaN, of a sensor that is not there, adds none."""
    first, *rest = (
        loss_weights[name] * (jnp.exp(-s) * jnp.where(jnp.isnan(means[name]), 0, means[name]) + s)
        for name, s in log_variance.items()
    )
    return sum(rest, first)


def weights(log_variance: Scalars) -> dict[str, Array]:
    """What the error of each modality is multiplied with, as metrics."""
    return {f'weight/{name}': jnp.exp(-s) for name, s in log_variance.items()}


def step(extra: Any, metrics: Mapping[str, Array], rate: float) -> Any:
    """The extra state after a batch with the errors `loss/<modality>`; one that is NaN moves nothing."""
    moved = {}
    for name, s in extra[EXTRA].items():
        error = metrics[f'loss/{name}']
        gradient = jnp.where(jnp.isnan(error), 0, 1 - jnp.exp(-s) * error)
        moved[name] = jnp.clip(s - rate * gradient, -LIMIT, LIMIT)
    return extra | {EXTRA: moved}
