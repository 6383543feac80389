"""Attention between sensors: how much tokens of one pay to those of another, block by block.

Formed from the queries and keys that every block names among its intermediates: the weights themselves exist
only inside the attention.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from fusmae_jax.config.run import Config
from fusmae_jax.errors import InputError
from fusmae_jax.input.contract import Contract
from fusmae_jax.input.prepare import Patches, make_prepare
from fusmae_jax.models import fusmae
from fusmae_jax.models.fusion import context_of
from fusmae_jax.models.fusmae import FusMAE
from fusmae_jax.parallel.rules import Params

CLS = 'cls'


class Shares(NamedTuple):
    """Attention of the tokens of one group in one block, of each record."""

    # Group that is attended to -> (b,), mean over heads and the valid tokens of the attending group; these
    # sum to 1 over all groups, or to 0 where no such token is valid.
    mass: dict[str, Array]
    tokens: dict[str, Array]  # the same for equal weights: the share of the valid keys that each group has
    there: Array  # (b,) bool: the attending group has a valid token


def mass(
    query: Float[Array, 'b n h e'],
    key: Float[Array, 'b m h e'],
    query_valid: Bool[Array, 'b n'],
    key_groups: Mapping[str, Bool[Array, 'b m']],
) -> Shares:
    """The shares of softmax(Q K^T / sqrt(e)), eq. (5), that go to each group of keys.

    Args:
        query: of the attending tokens.
        key: of the tokens that they can attend to.
        query_valid: which of the attending tokens hold anything.
        key_groups: group -> which keys are valid tokens of it; no key is in two.
    """
    key_valid = jnp.any(jnp.stack(list(key_groups.values())), axis=0)
    weights = mean_weights(query, key, key_valid)
    each = query_valid[..., None] & jnp.any(key_valid, axis=1)[:, None, None]
    there = jnp.any(each, axis=(1, 2))
    count = jnp.maximum(jnp.sum(each, axis=(1, 2), dtype=jnp.float32), 1)
    received = jnp.sum(jnp.where(each, weights, 0), axis=1) / count[:, None]  # (b, m)
    keys = jnp.maximum(jnp.sum(key_valid, axis=1, dtype=jnp.float32), 1)
    return Shares(
        {name: jnp.sum(jnp.where(of_group, received, 0), axis=1) for name, of_group in key_groups.items()},
        {name: jnp.sum(of_group, axis=1, dtype=jnp.float32) / keys for name, of_group in key_groups.items()},
        there,
    )


def mean_weights(
    query: Float[Array, 'b n h e'], key: Float[Array, 'b m h e'], key_valid: Bool[Array, 'b m']
) -> Float[Array, 'b n m']:
    """softmax(Q K^T / sqrt(e)) over the valid keys, eq. (5), the mean over heads."""
    scores = jnp.einsum('bnhe,bmhe->bhnm', query, key, preferred_element_type=jnp.float32)
    # Softmax in float32 as inside the model's own attention.
    scores = scores * jnp.float32(query.shape[-1] ** -0.5)
    scores = jnp.where(key_valid[:, None, None, :], scores, jnp.finfo(jnp.float32).min)
    return jnp.mean(jax.nn.softmax(scores, axis=-1), axis=1)


def captured(
    model: FusMAE, patches: Mapping[str, Patches]
) -> tuple[dict[str, Array], dict[str, Bool[Array, 'b n']]]:
    """The intermediates of all patches, none masked, and which tokens of each sensor hold anything."""
    stages = model.encode(patches, capture=True).stages
    names = [name for name in model.model.modalities if name in patches]
    valid = {name: patches[name].any_valid for name in names}
    if model.model.fusion.absent == 'zero_image':  # the mean image of a sensor that is not there is valid
        valid = {name: v | ~jnp.any(v, axis=1, keepdims=True) for name, v in valid.items()}
    return stages, valid


def blocks(model: FusMAE, patches: Mapping[str, Patches]) -> list[dict[str, Shares]]:
    """For each encoder block, the shares of each group of tokens: the sensors, and CLS where it takes part.

    Nothing is masked. Block 1 of XAE is cross-attention before CLS is there: each sensor's tokens attend to
    those of the others alone (or to its own, by the rule for absent sensors). Traceable.
    """
    stages, valid = captured(model, patches)
    always = jnp.ones((next(iter(valid.values())).shape[0], 1), bool)
    groups = valid | {CLS: always}
    shares = []
    if model.model.fusion.encoder == 'xae':
        shares.append(_cross(model, stages, valid))
    else:
        shares.append(_joint(stages['block1/query'], stages['block1/key'], groups))
    for query, key in zip(stages.get('blocks/query', ()), stages.get('blocks/key', ())):
        shares.append(_joint(query, key, groups))
    return shares


def _joint(query: Array, key: Array, groups: Mapping[str, Array]) -> dict[str, Shares]:
    """The tokens of all groups stand in one sequence, group after group."""
    lengths = {name: v.shape[1] for name, v in groups.items()}
    spread = {
        name: jnp.concatenate([v if other == name else jnp.zeros_like(w) for other, w in groups.items()], 1)
        for name, v in groups.items()
    }
    shares, start = {}, 0
    for name, valid in groups.items():
        shares[name] = mass(query[:, start : (start := start + lengths[name])], key, valid, spread)
    return shares


def _cross(model: FusMAE, stages: Mapping[str, Array], valid: Mapping[str, Array]) -> dict[str, Shares]:
    """Which sensor a key is of follows from the context that the block itself would choose."""
    shares = {}
    for name, attending in valid.items():
        tagged = {
            other: jnp.full((*v.shape, 1), i, jnp.float32) for i, (other, v) in enumerate(valid.items())
        }
        tags, there = context_of(name, tagged, valid, model.model.fusion.absent)
        groups = {other: there & (tags[..., 0] == i) for i, other in enumerate(valid)}
        shares[name] = mass(stages[f'block1/query/{name}'], stages[f'block1/key/{name}'], attending, groups)
    return shares


def attention(config: Config, whole: Config, contract: Contract, dtype: Any) -> Callable[..., Any]:
    """The traceable function (params, batch) -> what `blocks` gives.

    Raises:
        InputError: a model whose tokens hold all sensors at once.
    """
    if whole.model.fusion.encoder == 'stack':
        raise InputError(
            "attention: with model.fusion.encoder='stack' a token holds all sensors, so none attends to "
            'another; set attention_records=0'
        )
    prepare, graphdef = make_prepare(config, contract, None), fusmae.graph(whole.model, dtype)

    def run(params: Params, batch: Mapping[str, Array]) -> list[dict[str, Shares]]:
        return blocks(nnx.merge(graphdef, params), prepare(batch, None))

    return run
