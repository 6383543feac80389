"""Modality dropout: sensors that are declared absent at random while an encoder is fine-tuned.

A head that has only ever seen all sensors of an encoder leans on the one that gives most, and is lost without
it. Here sensor i of a record is dropped with probability p_i, independently of the others. If that leaves a
record without any sensor, one of those that were there comes back, each as likely.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array

from fusmae_jax.errors import InputError, nearest
from fusmae_jax.input.prepare import Patches

STREAM = 2  # of the random numbers of a record; what draws without it is not moved by it


def dropped(
    patches: Mapping[str, Patches], keys: Array, shares: Sequence[tuple[str, float]]
) -> dict[str, Patches]:
    """The same patches, where the sensors of some records hold nothing; traceable.

    Args:
        patches: of the sensors that are given.
        keys: a random key for each record, (b,).
        shares: (sensor, probability); those of sensors that are not given mean nothing.
    """
    chances = {name: share for name, share in shares if name in patches}
    if not chances or len(patches) < 2:
        return dict(patches)
    names, probability = list(patches), [chances.get(name, 0.0) for name in patches]
    there = jnp.stack([jnp.any(p.valid, axis=(1, 2)) for p in patches.values()], axis=1)
    keys = jax.vmap(jax.random.fold_in, (0, None))(keys, STREAM)
    draws = jax.vmap(lambda key: jax.random.uniform(key, (len(names),), jnp.float32))(keys)
    limit = jnp.asarray(probability, jnp.float32)[None]
    gone = (draws < limit) | ~there
    # Of a sensor that was dropped, draw / probability is uniform: none of them comes back more often.
    back = jnp.argmax(jnp.where(there, draws / jnp.maximum(limit, jnp.float32(1e-9)), -1), axis=1)
    gone &= ~(jnp.all(gone, axis=1)[:, None] & (jnp.arange(len(names))[None] == back[:, None]) & there)
    kept = {name: ~gone[:, i, None, None] for i, name in enumerate(names)}
    return {
        name: Patches(jnp.where(kept[name], p.values, 0), p.valid & kept[name]) for name, p in patches.items()
    }


def check_names(shares: Sequence[tuple[str, float]], known: Sequence[str], system: str) -> None:
    """Raises InputError for a sensor that an encoder does not have."""
    for name, _ in shares:
        if name not in known:
            raise InputError(f'modality_dropout: {name!r} is not in {system}; {nearest(name, known)}')
