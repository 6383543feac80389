"""Masks of patches: those with fixed counts, and joint sequences with counts that vary.

The paper has two strategies (section 3.3), both with ratio r = 0.75 of n patches a sensor hidden. A mask is a
permutation pi_i of the patches of sensor i, the first k = int(n (1 - r)) of which are visible:

    independent:  pi_1, pi_2, ... each drawn apart, uniformly
    consistent:   pi_1 = pi_2 = ... = pi

Counts are fixed, so all shapes are static, and nothing ever has to be put back in order.

The strategies in `config.run.JOINT` draw counts that vary from sample to sample: `joint_uniform` (the literal
reading of the paper), `dirichlet` (MultiMAE) and `modality`. Their visible patches are exactly K slots over
all sensors. K is fixed, so all shapes are static, and no sensor is padded to the largest count it could get.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fusmae_jax.config.run import Masking


def num_visible(num_patches: int, masking: Masking) -> int:
    """Visible patches of a sensor: `int(n * (1 - ratio))`, as in MAE."""
    return int(num_patches * (1 - masking.ratio))


def num_decoded(num_patches: int, masking: Masking) -> int:
    """Masked patches of a sensor that the decoders predict in training, one at least."""
    return max(1, round((num_patches - num_visible(num_patches, masking)) * masking.decode_ratio))


def sample_order(
    keys: Array, patch_valid: Mapping[str, Bool[Array, 'b n']], masking: Masking
) -> dict[str, Int[Array, 'b n']]:
    """A random order of the patches of each sensor: visible ones first.

    Args:
        keys: one random key for each sample, (b,).
        patch_valid: False for patches without a single valid pixel. They rank last, so they are visible
            only when valid ones have run out. With consistent masks a patch ranks by the number of
            sensors that lack it, so that the order stays equal across sensors.
        masking: the strategy.
    """
    consistent = masking.strategy == 'consistent'
    lacking = {name: (~valid).astype(jnp.float32) for name, valid in patch_valid.items()}
    if consistent:
        total = jnp.sum(jnp.stack(list(lacking.values())), axis=0)
        lacking = dict.fromkeys(lacking, total)
    order = {}
    for index, (name, rank) in enumerate(sorted(lacking.items())):
        sensor_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, 0 if consistent else index)
        noise = jax.vmap(lambda key, n=rank.shape[1]: jax.random.uniform(key, (n,)))(sensor_keys)
        # Noise lies on [0, 1) and ranks are whole numbers, so one sort ranks by both.
        order[name] = jnp.argsort(noise + rank, axis=1)
    return order


class Slots(NamedTuple):
    """The visible patches of each sample. What an invalid slot says of sensor and position means nothing."""

    sensor: Int[Array, 'b k']  # index into the sorted names of the modalities
    position: Int[Array, 'b k']  # raster index of the patch
    valid: Bool[Array, 'b k']


def num_slots(num_patches: int, sensors: int, masking: Masking) -> int:
    """K: as many as fixed counts would show, for each sensor `int(n * (1 - ratio))`."""
    return sensors * num_visible(num_patches, masking)


def sample_slots(
    keys: Array, patch_valid: Mapping[str, Bool[Array, 'b n']], masking: Masking, count: int
) -> Slots:
    """Draws the visible patches: all from one urn, or a share for each sensor, then that many of its patches.

    Shares are rounded to counts; what the rounding or a sensor with too few valid patches leaves open goes
    to any other valid patches, and what goes beyond K is dropped at random. Slots that are still left over
    are invalid.

    Args:
        keys: one random key for each sample, (b,).
        patch_valid: False for patches without a single valid pixel.
        masking: `joint_uniform`: K of the valid patches of all sensors, every set of K as likely, so that
            the count of a sensor is hypergeometric. `dirichlet`: shares from a symmetric Dirichlet
            distribution over the sensors that have a valid patch. `modality`: with probability `hide` one
            of those sensors, each as likely, gets no slot at all, unless it is the only one; the others
            have equal shares.
        count: K.
    """
    names = sorted(patch_valid)
    eligible = jnp.stack([patch_valid[name] for name in names], axis=1)
    _, sensors, patches = eligible.shape
    # One key for each purpose: shares, the hidden sensor, the patches of a sensor, the order of all.
    keys = jax.vmap(lambda key: jax.random.split(key, 4))(keys)
    if masking.strategy == 'modality':
        eligible &= ~_hidden_sensor(keys[:, 1], jnp.any(eligible, axis=2), masking.hide)[..., None]
    first_choice = eligible
    if masking.strategy != 'joint_uniform':
        first_choice &= _shared(keys, eligible, masking, count)
    # Noise on [0, 1) on top of whole numbers: one sort puts first choices first, in random order.
    behind = jnp.where(first_choice, 0.0, jnp.where(eligible, 1.0, 2.0))
    flat = (_uniform(keys[:, 3], (sensors, patches)) + behind).reshape(-1, sensors * patches)
    first = jnp.argsort(flat, axis=1)[:, :count]
    valid = jnp.take_along_axis(eligible.reshape(flat.shape), first, axis=1, mode='clip')
    return Slots(first // patches, first % patches, valid)


def _shared(
    keys: Array, eligible: Bool[Array, 'b s n'], masking: Masking, count: int
) -> Bool[Array, 'b s n']:
    """The patches within the share of their sensor; `eligible` ones come first in it."""
    _, sensors, patches = eligible.shape
    if masking.strategy == 'modality':
        weights = jnp.zeros(eligible.shape[:2])
    else:
        concentration = jnp.full((sensors,), masking.concentration, jnp.float32)
        # Logarithms: a gamma variable of a small concentration is 0 in float32, and shares 0 / 0.
        weights = jax.vmap(lambda key: jax.random.loggamma(key, concentration, dtype=jnp.float32))(keys[:, 0])
    there = jnp.any(eligible, axis=2)
    share = jax.nn.softmax(jnp.where(there, weights, jnp.finfo(jnp.float32).min), axis=1)
    wanted = jnp.round(share * count).astype(jnp.int32)
    noise = _uniform(keys[:, 2], (sensors, patches)) + (~eligible).astype(jnp.float32)
    rank = jnp.argsort(jnp.argsort(noise, axis=2), axis=2)
    return rank < wanted[..., None]


def _uniform(keys: Array, shape: tuple[int, ...]) -> Float[Array, 'b ...']:
    return jax.vmap(lambda key: jax.random.uniform(key, shape, jnp.float32))(keys)


def _hidden_sensor(keys: Array, there: Bool[Array, 'b s'], hide: float) -> Bool[Array, 'b s']:
    """At most one of the sensors that are there, and only where another one remains."""
    sensors = there.shape[1]
    draws = _uniform(keys, (sensors + 1,))
    pick = jnp.argmax(jnp.where(there, draws[:, 1:], -1), axis=1)
    hidden = (draws[:, 0] < hide) & (jnp.sum(there, axis=1) > 1)
    return hidden[:, None] & (jnp.arange(sensors)[None] == pick[:, None])


def slots_by_modality(slots: Slots, names: Sequence[str]) -> dict[str, Bool[Array, 'b k']]:
    """Which slots hold a patch of each modality."""
    index = {name: i for i, name in enumerate(sorted(names))}
    return {name: slots.valid & (slots.sensor == index[name]) for name in names}


def hidden_patches(slots: Slots, names: Sequence[str], num_patches: int) -> dict[str, Bool[Array, 'b n']]:
    """Which patches of each modality, in raster order, no valid slot holds."""
    at = slots.position[..., None] == jnp.arange(num_patches)[None, None]
    return {
        name: ~jnp.any(at & member[..., None], axis=1)
        for name, member in slots_by_modality(slots, names).items()
    }
