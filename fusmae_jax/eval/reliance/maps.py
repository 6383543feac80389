"""Attention maps: where one patch looks, in each encoder block, over the patches of every sensor."""

from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fusmae_jax.eval.reliance.attention import captured, mean_weights
from fusmae_jax.input.prepare import Patches
from fusmae_jax.models.fusion import context_of
from fusmae_jax.models.fusmae import FusMAE

Maps = dict[str, dict[str, Float[Array, 'b n']]]


def maps(model: FusMAE, patches: Mapping[str, Patches], token: Int[Array, '']) -> list[Maps]:
    """For each encoder block, what one patch of each sensor attends to; nothing is masked. Traceable.

    Args:
        model: of one token for each sensor and patch.
        patches: of each sensor that is given.
        token: the patch, counted row by row.

    Returns:
        A mapping a block: attending sensor -> attended sensor -> (b, n), the mean over heads. All maps of an
        attending sensor and the share of CLS, which has no place, sum to 1. Block 1 of XAE is
        cross-attention, whose map of the attending sensor itself is 0 (but by the rule for absent sensors).
    """
    stages, valid = captured(model, patches)
    result = []
    if model.model.fusion.encoder == 'xae':
        result.append({name: _cross(name, stages, valid, model.model.fusion.absent, token) for name in valid})
    else:
        result.append(_joint(stages['block1/query'], stages['block1/key'], valid, token))
    for query, key in zip(stages.get('blocks/query', ()), stages.get('blocks/key', ())):
        result.append(_joint(query, key, valid, token))
    return result


def _joint(query: Array, key: Array, valid: Mapping[str, Array], token: Array) -> Maps:
    """The tokens of all sensors stand in one sequence, sensor after sensor, CLS last."""
    always = jnp.ones((query.shape[0], 1), bool)
    key_valid = jnp.concatenate([*valid.values(), always], axis=1)
    result: Maps = {}
    start = 0
    for name, asking_valid in valid.items():
        asking = jnp.take(query, start + token, axis=1)[:, None]
        weights, first = mean_weights(asking, key, key_valid)[:, 0], 0
        result[name] = {}
        for other, there in valid.items():
            result[name][other] = weights[:, first : (first := first + there.shape[1])]
        start += asking_valid.shape[1]
    return result


def _cross(
    name: str, stages: Mapping[str, Array], valid: Mapping[str, Array], absent: str, token: Array
) -> dict[str, Array]:
    """Which patch of which sensor a key is follows from the context that the block itself would choose."""
    tagged = {
        other: jnp.stack(
            jnp.broadcast_arrays(
                jnp.full(v.shape, i, jnp.float32), jnp.arange(v.shape[1], dtype=jnp.float32)
            ),
            axis=-1,
        )
        for i, (other, v) in enumerate(valid.items())
    }
    tags, there = context_of(name, tagged, valid, absent)
    asking = jnp.take(stages[f'block1/query/{name}'], token, axis=1)[:, None]
    weights = mean_weights(asking, stages[f'block1/key/{name}'], there)[:, 0]
    weights = jnp.where(there, weights, 0)
    result = {}
    for i, (other, v) in enumerate(valid.items()):
        patch = tags[..., 1][..., None] == jnp.arange(v.shape[1])
        here = patch & (tags[..., 0] == i)[..., None]
        result[other] = jnp.einsum('bm,bmn->bn', weights, here.astype(jnp.float32))
    return result
