"""The masked reconstruction loss, as sums and weights over the global batch.

    L   = sum_i w_i L_i                                  w_i: `loss_weight` of modality i, 1 in the paper
    L_i = sum_(hidden, valid) (I^_i - I_i)^2 / #(hidden, valid)

The sum runs over the numbers (pixels of all bands) that are valid in patches that were hidden, of all records
of the global batch: the paper's mean squared error over the reconstructed tokens only, sensor by sensor.
With `loss.norm_pix` the targets I_i are normalised patch by patch, as in MAE.
"""

from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fusmae_jax.input.prepare import Patches

# As in MAE. Added to the variance: a patch of one value has none.
NORM_PIX_EPS = 1e-6


def masked_targets(patches: Patches, order: Int[Array, 'b n'], visible: int) -> Patches:
    """The patches that were hidden, in the order of the predictions."""
    ids = order[:, visible:, None]
    values, valid = (jnp.take_along_axis(x, ids, axis=1, mode='clip') for x in patches)
    return Patches(values, valid)


def normalise_patches(targets: Patches) -> Float[Array, 'b m p']:
    """Each patch to zero mean and unit variance over its valid numbers (norm_pix of MAE).

    The variance is the unbiased one, as in MAE; a patch with fewer than two valid numbers becomes 0.
    """
    keep = targets.valid.astype(targets.values.dtype)
    count = jnp.sum(keep, axis=2, keepdims=True)
    mean = jnp.sum(targets.values * keep, axis=2, keepdims=True) / jnp.maximum(count, 1)
    centred = (targets.values - mean) * keep
    variance = jnp.sum(centred**2, axis=2, keepdims=True) / jnp.maximum(count - 1, 1)
    return centred / jnp.sqrt(variance + NORM_PIX_EPS)


def normalise_together(targets: Mapping[str, Patches]) -> dict[str, Float[Array, 'b m _']]:
    """norm_pix for stacked bands: the patches of all modalities at a place have one mean and variance."""
    together = Patches(*(jnp.concatenate(parts, axis=2) for parts in zip(*targets.values())))
    stacked, values, start = normalise_patches(together), {}, 0
    for name, target in targets.items():
        values[name] = stacked[..., start : (start := start + target.values.shape[2])]
    return values


def squared_error(
    predictions: Float[Array, 'b m p'], targets: Float[Array, 'b m p'], valid: Bool[Array, 'b m p']
) -> tuple[Float[Array, ''], Float[Array, '']]:
    """Sum of squared errors over valid numbers, and how many there are.

    Kept apart so that sums over micro-batches and devices can be added before the division.
    """
    # A select and no product with 0: a prediction that overflowed there would give inf x 0, which is NaN.
    error = jnp.where(valid, predictions - targets.astype(predictions.dtype), 0)
    return jnp.sum(error**2), jnp.sum(valid, dtype=error.dtype)


def combine(
    sums: Mapping[str, tuple[Float[Array, ''], Float[Array, '']]], loss_weights: Mapping[str, float]
) -> tuple[Float[Array, ''], dict[str, Float[Array, '']]]:
    """The loss, a weighted sum over modalities of mean squared errors, and those means.

    A modality without a single valid masked number adds nothing to the loss; its mean is NaN.
    """
    # The inner select keeps 0 / 0 out of the gradient, where an outer one alone would let it in.
    there = {name: weight > 0 for name, (_, weight) in sums.items()}
    means = {name: total / jnp.where(there[name], weight, 1) for name, (total, weight) in sums.items()}
    first, *rest = (loss_weights[name] * mean for name, mean in means.items())
    return sum(rest, first), {name: jnp.where(there[name], mean, jnp.nan) for name, mean in means.items()}
