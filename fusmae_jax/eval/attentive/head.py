"""Heads of the attentive probe: queries, their means of tokens, and a linear layer. Traceable.

    a_qi = softmax_i(u_q . z_i / sqrt(d)),    y = W [sum_i a_1i z_i, ..., sum_i a_Qi z_i] + b

over the tokens z_i of a record that hold anything, those of all sensors in one sequence. The u_q are learned
with W and b and start at 0, where every query is the mean of the tokens and the head is that of a linear
probe. A projection of the keys would add nothing: u_q may be any vector.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from fusmae_jax.models import heads


def init(key: Array, queries: int, width: int, classes: int) -> Any:
    """Fresh parameters, float32."""
    # Equal at the start, they part because the rows of the layer behind them are not.
    return {
        'query': jnp.zeros((queries, width), jnp.float32),
        'linear': heads.init_head(key, queries * width, classes),
    }


def attention(
    query: Float[Array, 'q d'], tokens: Float[Array, 'b n d'], seen: Bool[Array, 'b n']
) -> Float[Array, 'b q n']:
    """The weights of each query; 0 for tokens that hold nothing, but in records that have no other."""
    scores = jnp.einsum('qd,bnd->bqn', query, tokens, precision='highest')
    scores = scores * jnp.float32(tokens.shape[2] ** -0.5)
    scores = jnp.where(seen[:, None], scores, jnp.finfo(jnp.float32).min)
    return jax.nn.softmax(scores, axis=2)


def logits(head: Any, tokens: Float[Array, 'b n d'], seen: Bool[Array, 'b n']) -> Float[Array, 'b c']:
    """The scores of every class; of a record without a token, for which all are 0, the bias."""
    weights = attention(head['query'], tokens, seen)
    means = jnp.einsum('bqn,bnd->bqd', weights, tokens, precision='highest')
    return heads.logits(head['linear'], means.reshape(len(means), -1))
