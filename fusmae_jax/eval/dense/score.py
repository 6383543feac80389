"""Scores of maps: from features and a head to confusion matrices or errors, on the grid of the labels.

Traceable.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from fusmae_jax.eval.dense import heads
from fusmae_jax.eval.dense.convolution import resized
from fusmae_jax.eval.dense.heads import HeadShape


def scores(
    head: Any, features: Float[Array, 'b h w d'], shape: HeadShape, size: tuple[int, int]
) -> Float[Array, 'b oh ow c']:
    """The scores of every class at each pixel of the labels."""
    return resized(heads.apply(head, features, shape), size)


def confusion(logits: Float[Array, 'b h w c'], labels: UInt8[Array, 'b h w']) -> Float[Array, 'b c c']:
    """Pixels by truth and prediction, without those that have no label; exact up to 2^24 of a record.

    Of a record with scores that are not finite all is NaN: the model has diverged.
    """
    classes, batch = logits.shape[-1], len(logits)
    # Those without a label are all 0 in the first.
    truth = jax.nn.one_hot(labels.reshape(batch, -1), classes, dtype=jnp.float32)
    guess = jax.nn.one_hot(jnp.argmax(logits, axis=-1).reshape(batch, -1), classes, dtype=jnp.float32)
    counts = jnp.einsum('bpt,bpg->btg', truth, guess, precision='highest')
    finite = jnp.all(jnp.isfinite(logits), axis=(1, 2, 3))
    return jnp.where(finite[:, None, None], counts, jnp.nan)


def errors(predicted: Float[Array, 'b h w 1'], numbers: Float[Array, 'b h w']) -> Float[Array, 'b 2']:
    """Of each record the sums of squared and of absolute errors, over the pixels with a number.

    Of a record with predictions that are not finite both are NaN: the model has diverged.
    """
    there, guess = jnp.isfinite(numbers), predicted[..., 0].astype(jnp.float32)
    miss = jnp.where(there, guess - jnp.where(there, numbers, 0), 0)
    # Row by row: a single long sum of float32 would lose digits.
    sums = jnp.stack([jnp.sum(jnp.sum(x, axis=2), axis=1) for x in (miss**2, jnp.abs(miss))], axis=1)
    finite = jnp.all(jnp.isfinite(guess), axis=(1, 2))
    return jnp.where(finite[:, None], sums, jnp.nan)
