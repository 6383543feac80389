"""Self-attention, and cross-attention, over slots of which some may be invalid.

    CA(x, y) = Attention(Q_x, K_y, V_y)                                      (4)
             = softmax(Q_x K_y^T / sqrt(d_q)) V_y                            (5)

for each head, whose width is d_q; the heads stand side by side and go through one more linear layer.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from fusmae_jax.models.layers import Arithmetic, layer_norm, linear


def attend(
    query: Float[Array, 'b n h e'],
    key: Float[Array, 'b m h e'],
    value: Float[Array, 'b m h e'],
    key_valid: Bool[Array, 'b m'],
    precision: str = 'default',
) -> Float[Array, 'b n h e']:
    """Softmax(Q K^T / sqrt(e)) V over the valid keys, eq. (5); softmax in float32 or wider.

    b samples, n queries, m keys, h heads of width e = d_q.

    An invalid key has weight exactly 0. Where no key is valid the result is exactly 0; a masked softmax
    alone would give the mean of V. (jax.nn.dot_product_attention has a float32 softmax for float64 too.)
    """
    wide = jnp.promote_types(query.dtype, jnp.float32)
    scores = jnp.einsum('bnhe,bmhe->bhnm', query, key, precision=precision, preferred_element_type=wide)
    # Scaled in the wide type, not in the query: the compute type would round it once more.
    scores = scores * jnp.asarray(query.shape[-1] ** -0.5, wide)
    # The least finite number and not -inf: a row without any valid key would be NaN, in its gradient too.
    scores = jnp.where(key_valid[:, None, None, :], scores, jnp.finfo(wide).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    out = jnp.einsum('bhnm,bmhe->bnhe', weights, value, precision=precision)
    return jnp.where(jnp.any(key_valid, axis=1)[:, None, None, None], out, 0)


def _heads(x: Float[Array, 'b n d'], parts: int, heads: int) -> list[Float[Array, 'b n h e']]:
    batch, length, _ = x.shape
    return [part.reshape(batch, length, heads, -1) for part in jnp.split(x, parts, axis=-1)]


class SelfAttention(nnx.Module):
    """Multi-head self-attention with a fused query, key and value projection."""

    def __init__(self, width: int, heads: int, arithmetic: Arithmetic, *, rngs: nnx.Rngs):
        self.heads, self.precision = heads, arithmetic.numerics.matmul_precision
        bias = arithmetic.numerics.qkv_bias
        self.qkv = linear(width, 3 * width, arithmetic, parts=3, bias=bias, rngs=rngs)
        self.out = linear(width, width, arithmetic, rngs=rngs)

    def __call__(
        self, x: Float[Array, 'b n d'], valid: Bool[Array, 'b n']
    ) -> tuple[Float[Array, 'b n d'], dict[str, Array]]:
        """The attended tokens, and the queries and keys (b, n, heads, d / heads)."""
        query, key, value = _heads(self.qkv(x), 3, self.heads)
        attended = attend(query, key, value, valid, self.precision)
        return self.out(attended.reshape(x.shape)), {'query': query, 'key': key}


class CrossAttention(nnx.Module):
    """CA(x, y) of eqs (4)-(5) for normalised x and y: queries from x, keys and values from y."""

    def __init__(self, width: int, heads: int, arithmetic: Arithmetic, *, rngs: nnx.Rngs):
        self.heads, self.precision = heads, arithmetic.numerics.matmul_precision
        bias = arithmetic.numerics.qkv_bias
        self.query_norm = layer_norm(width, arithmetic, rngs=rngs)
        self.context_norm = layer_norm(width, arithmetic, rngs=rngs)
        self.query = linear(width, width, arithmetic, bias=bias, rngs=rngs)
        self.kv = linear(width, 2 * width, arithmetic, parts=2, bias=bias, rngs=rngs)
        self.out = linear(width, width, arithmetic, rngs=rngs)

    def __call__(
        self, x: Float[Array, 'b n d'], context: Float[Array, 'b m d'], valid: Bool[Array, 'b m']
    ) -> tuple[Float[Array, 'b n d'], dict[str, Array]]:
        """The cross-attention term; exactly 0, output bias included, where no context token is valid."""
        (query,) = _heads(self.query(self.query_norm(x)), 1, self.heads)
        key, value = _heads(self.kv(self.context_norm(context)), 2, self.heads)
        attended = self.out(attend(query, key, value, valid, self.precision).reshape(x.shape))
        # Once more behind the output layer, whose bias would otherwise stand in for an absent sensor.
        attended = jnp.where(jnp.any(valid, axis=1)[:, None, None], attended, 0)
        return attended, {'query': query, 'key': key}
