"""Token streams: what one projection makes tokens of, and one decoder predicts.

A stream is a modality or, with `fusion.encoder='stack'`, the bands of all of them in one patch (SatViT).
"""

from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from fusmae_jax.config.run import Model
from fusmae_jax.input.patchify import Patches

STACK = 'stack'


def streams(model: Model) -> dict[str, int]:
    """Name -> numbers in one patch."""
    sizes = {name: model.patch_dim(name) for name in model.modalities}
    return {STACK: sum(sizes.values())} if model.fusion.encoder == 'stack' else sizes


def stack_patches(
    model: Model, patches: Mapping[str, Patches]
) -> tuple[Float[Array, 'b n p'], Bool[Array, 'b n']]:
    """The patches of all modalities in one, and where at least one of them has a valid pixel.

    A patch without a valid pixel, and every patch of a modality that is not given, is the sensor's mean,
    which is 0.
    """
    valid = {name: jnp.any(p.valid, axis=2) for name, p in patches.items()}
    values = {name: jnp.where(valid[name][..., None], p.values, 0) for name, p in patches.items()}
    some = next(iter(values.values()))
    for name in model.modalities:
        if name not in values:
            values[name] = jnp.zeros((*some.shape[:2], model.patch_dim(name)), some.dtype)
    stacked = jnp.concatenate([values[name] for name in model.modalities], axis=2)
    return stacked, jnp.any(jnp.stack(list(valid.values())), axis=0)


def split_stack(model: Model, stacked: Float[Array, 'b n p']) -> dict[str, Float[Array, 'b n _']]:
    """The part of each modality in stacked patches."""
    parts, start = {}, 0
    for name in model.modalities:
        parts[name] = stacked[..., start : (start := start + model.patch_dim(name))]
    return parts
