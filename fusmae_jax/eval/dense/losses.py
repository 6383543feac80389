"""Losses of maps: cross-entropy, focal, soft Dice and their sum, or the squared error of numbers.

Over labelled pixels alone. Traceable.
"""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from fusmae_jax.input.label_maps import IGNORE

Loss = Literal['cross_entropy', 'focal', 'dice', 'cross_entropy+dice']
LOSSES: tuple[str, ...] = get_args(Loss)
SMOOTH = 1.0  # pixels, added to both sides of a Dice coefficient
LEAST = 1e-6  # 1 - p, below which the focal weight falls no further


def loss(
    logits: Float[Array, 'b h w c'], labels: UInt8[Array, 'b h w'], kind: Loss, gamma: float
) -> Float[Array, '']:
    """The loss of a batch; 0, with a gradient of 0, where it has no labelled pixel.

    `cross_entropy`       -log p of the true class, mean over labelled pixels
    `focal`               the same times (1 - p)^gamma (Lin et al. 2017, arXiv 1708.02002)
    `dice`                1 - (2 sum p t + 1) / (sum p + sum t + 1), sums over the labelled pixels of the
                          batch, mean over the classes that occur in it (Milletari et al. 2016, 1606.04797)
    `cross_entropy+dice`  their sum

    Args:
        logits: scores of every class, on the grid of the labels.
        labels: class numbers; IGNORE where there is none.
        kind: one of the four.
        gamma: of the focal loss.
    """
    there = labels != IGNORE
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    truth = jax.nn.one_hot(labels, logits.shape[-1], dtype=jnp.float32)  # of IGNORE: nothing but 0
    total = jnp.zeros(())
    if kind != 'dice':
        hit = jnp.sum(truth * log_p, axis=-1)
        each = -hit
        if kind == 'focal' and gamma:
            # The slope of a power below 1 has no end at 0.
            each *= jnp.clip(-jnp.expm1(hit), LEAST, 1) ** gamma
        total += jnp.sum(jnp.where(there, each, 0)) / jnp.maximum(jnp.sum(there), 1)
    if kind in ('dice', 'cross_entropy+dice'):
        p = jnp.where(there[..., None], jnp.exp(log_p), 0)
        both, predicted, actual = (jnp.sum(x, axis=(0, 1, 2)) for x in (p * truth, p, truth))
        miss = 1 - (2 * both + SMOOTH) / (predicted + actual + SMOOTH)
        occurs = actual > 0
        total += jnp.sum(jnp.where(occurs, miss, 0)) / jnp.maximum(jnp.sum(occurs), 1)
    return total


def squared(predicted: Float[Array, 'b h w 1'], numbers: Float[Array, 'b h w']) -> Float[Array, '']:
    """The mean squared error over the pixels with a number; 0, with a gradient of 0, where none has one."""
    there = jnp.isfinite(numbers)
    # The inner `where` keeps NaN away from the gradient.
    miss = jnp.where(there, predicted[..., 0].astype(jnp.float32) - jnp.where(there, numbers, 0), 0)
    return jnp.sum(miss**2) / jnp.maximum(jnp.sum(there), 1)
