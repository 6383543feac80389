"""Self-attention, and cross-attention, over slots of which some may be invalid.

    CA(x, y) = Attention(Q_x, K_y, V_y)                                      (4)
             = softmax(Q_x K_y^T / sqrt(d_q)) V_y                            (5)

for each head, whose width is d_q; the heads stand side by side and go through one more linear layer.

There are three implementations, with the same rule for slots that hold nothing: the weight of an invalid key
is exactly 0, and the result where no key is valid is exactly 0 (a masked softmax alone would give the mean of
V). `xla` is plain products, in every type; `cudnn` and `pallas` are fused kernels for half precision on a
GPU, which keep the scores out of the memory.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax._src import lib as jax_lib
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from fusmae_jax.errors import InputError
from fusmae_jax.models.kernels.attention import Layout, fused_attention, supports
from fusmae_jax.models.kernels.triton import is_half
from fusmae_jax.models.layers import Arithmetic, layer_norm, linear
from fusmae_jax.parallel.mesh import target_platform

CUDNN_WIDTH = 128  # of a head at most, with a backward pass, on every GPU that it supports
Kept = tuple[Array, Array, Array, Array]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def attend(
    query: Float[Array, 'b n h e'],
    key: Float[Array, 'b m h e'],
    value: Float[Array, 'b m h e'],
    key_valid: Bool[Array, 'b m'],
    precision: str = 'default',
) -> Float[Array, 'b n h e']:
    """Softmax(Q K^T / sqrt(e)) V over the valid keys, eq. (5); softmax in float32 or wider.

    b samples, n queries, m keys, h heads of width e = d_q. (jax.nn.dot_product_attention has a float32
    softmax for float64 too.)
    """
    return _attend_forward(query, key, value, key_valid, precision)[0]


def _attend_forward(
    query: Array, key: Array, value: Array, key_valid: Array, precision: str
) -> tuple[Array, Kept]:
    wide = jnp.promote_types(query.dtype, jnp.float32)
    scores = jnp.einsum('bnhe,bmhe->bhnm', query, key, precision=precision, preferred_element_type=wide)
    # Scaled in the wide type, not in the query: the compute type would round it once more.
    scores = scores * jnp.asarray(query.shape[-1] ** -0.5, wide)
    there = key_valid[:, None, None, :]
    # The least finite number and not -inf: a row without any valid key would be NaN.
    weights = jax.nn.softmax(jnp.where(there, scores, jnp.finfo(wide).min), axis=-1)
    weights = jnp.where(there, weights, 0).astype(value.dtype)
    out = jnp.einsum('bhnm,bmhe->bnhe', weights, value, precision=precision)
    return out, (query, key, value, weights)


def _attend_backward(precision: str, kept: Kept, gradient: Array) -> tuple[Array, Array, Array, None]:
    # With weights P, dP = dO V^T and dS = P * (dP - sum(dP * P)): dV = P^T dO, dQ = dS K, dK = dS^T Q.
    # By hand, since the derivative of a product with a wide result is a product of wide operands: slow, and
    # Q and K would be written out in the wide type for it.
    query, key, value, weights = kept
    wide = jnp.promote_types(query.dtype, jnp.float32)
    inner = jnp.einsum('bnhe,bmhe->bhnm', gradient, value, precision=precision, preferred_element_type=wide)
    p = weights.astype(wide)
    inner = p * (inner - jnp.sum(inner * p, axis=-1, keepdims=True))
    inner = (inner * jnp.asarray(query.shape[-1] ** -0.5, wide)).astype(query.dtype)
    return (
        jnp.einsum('bhnm,bmhe->bnhe', inner, key, precision=precision),
        jnp.einsum('bhnm,bnhe->bmhe', inner, query, precision=precision),
        jnp.einsum('bhnm,bnhe->bmhe', weights, gradient, precision=precision),
        None,
    )


attend.defvjp(_attend_forward, _attend_backward)


def attend_cudnn(
    query: Float[Array, 'b n h e'],
    key: Float[Array, 'b m h e'],
    value: Float[Array, 'b m h e'],
    key_valid: Bool[Array, 'b m'],
) -> Float[Array, 'b n h e']:
    """The same by cuDNN, in half precision."""
    length = query.shape[1]
    # cuDNN takes even lengths alone.
    query, key, value, key_valid = (
        jnp.pad(x, [(0, 0), (0, x.shape[1] % 2), *[(0, 0)] * (x.ndim - 2)])
        for x in (query, key, value, key_valid)
    )
    mask = jnp.broadcast_to(key_valid[:, None, None], (len(query), 1, query.shape[1], key.shape[1]))
    out = jax.nn.dot_product_attention(query, key, value, mask=mask, implementation='cudnn')[:, :length]
    return jnp.where(jnp.any(key_valid, axis=1)[:, None, None, None], out, 0)


@functools.cache
def has_cudnn() -> bool:
    """Whether cuDNN is installed: a plan for a GPU that is not here may be made without it."""
    # Private to jax, and None without its plugin for GPUs; no public name tells.
    versions = getattr(jax_lib, 'cuda_versions', None)
    try:
        return bool(versions and versions.cudnn_get_version())
    except RuntimeError:
        return False


def implementation_for(setting: str, dtype: DTypeLike, head_width: int, keys: int) -> str:
    """'xla', 'cudnn' or 'pallas': what `model.attention` comes to for heads of a type and width.

    Raises InputError where the setting names an implementation that cannot compute them.
    """
    on_gpu = is_half(dtype) and target_platform() == 'gpu'
    cudnn = on_gpu and head_width % 8 == 0 and head_width <= CUDNN_WIDTH
    if setting == 'auto':
        fused = on_gpu and supports(dtype, head_width, keys)
        return 'pallas' if fused else 'cudnn' if cudnn and has_cudnn() else 'xla'
    if setting == 'cudnn' and not cudnn:
        raise InputError(
            f'model.attention=cudnn computes in bfloat16 on a GPU, heads of a multiple of 8 up to 128, found '
            f'{jnp.dtype(dtype)} on {target_platform()} with heads of {head_width}; set model.attention=auto'
        )
    if setting == 'cudnn' and not has_cudnn():
        raise InputError('model.attention=cudnn: cuDNN is not installed here; set model.attention=auto')
    if setting == 'pallas' and not supports(dtype, head_width, keys):
        raise InputError(
            f'model.attention=pallas computes in bfloat16, heads of 16, 32, 64 or 128, up to 256 keys; '
            f'found {jnp.dtype(dtype)}, heads of {head_width} and {keys} keys; set model.attention=auto'
        )
    return setting


def _attention(
    queries: Float[Array, 'b n _'],
    context: Float[Array, 'b m _'],
    valid: Bool[Array, 'b m'],
    layout: Layout,
    arithmetic: Arithmetic,
) -> tuple[Float[Array, 'b n d'], dict[str, Array]]:
    """From fused products of linear layers to the attended tokens, and the queries and keys by head."""
    query, key, value = split_heads(queries, context, layout)
    how = implementation_for(arithmetic.attention, queries.dtype, layout.head_width, context.shape[1])
    with jax.named_scope('attend'):
        if how == 'pallas':
            out = fused_attention(queries, None if context is queries else context, valid, layout)
        elif how == 'cudnn':
            out = attend_cudnn(query, key, value, valid)
        else:
            out = attend(query, key, value, valid, arithmetic.numerics.matmul_precision)
    return out.reshape(*queries.shape[:2], -1), {'query': query, 'key': key}


def split_heads(
    queries: Float[Array, 'b n _'], context: Float[Array, 'b m _'], layout: Layout
) -> tuple[Float[Array, 'b n h e'], Float[Array, 'b m h e'], Float[Array, 'b m h e']]:
    """Queries, keys and values by head, from the rows in which they stand side by side."""
    width = layout.heads * layout.head_width

    def part(x: Array, start: int) -> Array:
        return x[..., start : start + width].reshape(*x.shape[:2], layout.heads, -1)

    return part(queries, 0), part(context, layout.key), part(context, layout.value)


class SelfAttention(nnx.Module):
    """Multi-head self-attention with a fused query, key and value projection."""

    def __init__(self, width: int, heads: int, arithmetic: Arithmetic, *, rngs: nnx.Rngs):
        self.layout = Layout(heads, width // heads, width, 2 * width)
        self.arithmetic = nnx.static(arithmetic)
        bias = arithmetic.numerics.qkv_bias
        self.qkv = linear(width, 3 * width, arithmetic, parts=3, bias=bias, rngs=rngs)
        self.out = linear(width, width, arithmetic, rngs=rngs)

    def __call__(
        self, x: Float[Array, 'b n d'], valid: Bool[Array, 'b n'], only: slice | None = None
    ) -> tuple[Float[Array, 'b q d'], dict[str, Array]]:
        """The attended tokens, and the queries and keys (b, q or n, heads, d / heads).

        Of `only` some tokens, if it is given; all n are their keys and values.
        """
        if only is None:
            queries = keys = self.qkv(x)
            layout = self.layout
        else:
            width = x.shape[-1]
            queries = self.qkv(x[:, only], slice(0, width))
            keys = self.qkv(x, slice(width, 3 * width))
            layout = self.layout._replace(key=0, value=width)
        attended, inner = _attention(queries, keys, valid, layout, self.arithmetic)
        return self.out(attended), inner


class CrossAttention(nnx.Module):
    """CA(x, y) of eqs (4)-(5) for normalised x and y: queries from x, keys and values from y."""

    def __init__(self, width: int, heads: int, arithmetic: Arithmetic, *, rngs: nnx.Rngs):
        self.layout = Layout(heads, width // heads, 0, width)
        self.arithmetic = nnx.static(arithmetic)
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
        queries, keys = self.query(self.query_norm(x)), self.kv(self.context_norm(context))
        attended, inner = _attention(queries, keys, valid, self.layout, self.arithmetic)
        # Once more behind the output layer, whose bias would otherwise stand in for an absent sensor.
        return jnp.where(jnp.any(valid, axis=1)[:, None, None], self.out(attended), 0), inner
