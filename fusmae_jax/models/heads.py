"""The linear head on pooled encoder output."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

INIT_STD = 0.01  # of the kernel; the bias starts at 0
Head = dict[str, Array]  # kernel (d, c) and bias (c,)


def init_head(key: Array, width: int, classes: int) -> Head:
    """A fresh head, float32; traceable."""
    kernel = INIT_STD * jax.random.normal(key, (width, classes), jnp.float32)
    return {'kernel': kernel, 'bias': jnp.zeros(classes, jnp.float32)}


def logits(head: Head, features: Float[Array, 'b d']) -> Float[Array, 'b c']:
    """The scores of every class, in full float32 on every kind of device."""
    # A few classes cost nothing, and metrics that rank see every rounding.
    scores = jnp.dot(features.astype(jnp.float32), head['kernel'], precision='highest')
    return scores + head['bias'][None]
