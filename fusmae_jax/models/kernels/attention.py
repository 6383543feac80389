"""Attention for short sequences on a GPU as one kernel each way, whose scores never reach the memory.

A Pallas kernel for Triton. It reads the fused product of a linear layer in place: queries, keys and values of
all heads stand side by side in a row, so nothing is split, transposed or joined around it, and its backward
pass writes the gradient of that product in one array. One program has the keys and values of one head of one
sample in registers; hence the limit on their number.

With scores s = Q K^T / sqrt(e), weights P = softmax(s) over the valid keys and O = P V, the backward pass
computes P anew from Q and K and

    dV = P^T dO,   dP = dO V^T,   dS = P * (dP - sum(dP * P)) / sqrt(e),   dQ = dS K,   dK = dS^T Q.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pltriton
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from fusmae_jax.models.kernels.triton import how, is_half, power_of_two, window
from fusmae_jax.parallel.mesh import on_each_device, target_platform

MOST_KEYS = 256
HEAD_WIDTHS = (16, 32, 64, 128)
LEAST = 16  # rows or columns of a product on tensor cores
INVALID = -1e30  # a score; finite, since -inf - -inf is no number


class Layout(NamedTuple):
    """Where the heads stand in the rows of the two arrays that a call reads."""

    heads: int
    head_width: int
    key: int  # first column of the keys in the second array
    value: int

    def columns(self, part: int, head: Any) -> Any:
        """The columns of a head in the part that starts at `part`."""
        return window(part + head * self.head_width, self.head_width)


class Tile(NamedTuple):
    """Queries that are worked on at a time, and warps that share the work."""

    rows: int
    warps: int


# By the number of keys, rounded up to a power of two: what fits the registers without spilling, as `ptxas -v`
# says of the compiled kernels for sm_90a with heads of 64 and 32 (all but 20 bytes of the backward pass with
# 128 keys of 32). Of tiles that fit, one with many rows: each program reads all keys and values once.
FORWARD = {16: Tile(16, 4), 32: Tile(32, 4), 64: Tile(64, 4), 128: Tile(64, 4), 256: Tile(64, 8)}
BACKWARD = {16: Tile(16, 4), 32: Tile(32, 4), 64: Tile(32, 4), 128: Tile(32, 8), 256: Tile(16, 8)}


def supports(dtype: DTypeLike, head_width: int, keys: int) -> bool:
    """Whether the kernel takes heads of this type and width, and so many keys."""
    if target_platform() != 'gpu':
        return keys <= MOST_KEYS  # interpreted, it takes every type and width
    return is_half(dtype) and head_width in HEAD_WIDTHS and keys <= MOST_KEYS


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def fused_attention(
    queries: Float[Array, 'b n _'],
    context: Float[Array, 'b m _'] | None,
    valid: Bool[Array, 'b m'],
    layout: Layout,
) -> Float[Array, 'b n d']:
    """Attention from the queries, in the first columns of `queries`, to the keys and values in `context`.

    None for self-attention, whose keys and values stand behind the queries. Weights of invalid keys are
    exactly 0; so is the result of a sample without a valid one.
    """
    return _forward(queries, context, valid, layout)


def _forward(queries: Array, context: Array | None, valid: Array, layout: Layout) -> Array:
    length = queries.shape[1]
    width = layout.heads * layout.head_width
    tile = FORWARD[power_of_two(valid.shape[1], LEAST)]

    def call(*arrays: Array) -> Array:
        batch = len(arrays[0])
        return pl.pallas_call(
            functools.partial(_forward_kernel, layout=layout, rows=tile.rows),
            grid=(batch, layout.heads, -(-length // tile.rows)),
            in_specs=[_whole(x) for x in arrays],
            out_specs=pl.BlockSpec((None, length, width), lambda b, *_: (b, 0, 0)),
            out_shape=jax.ShapeDtypeStruct((batch, length, width), queries.dtype),
            **how('attention_forward', tile.warps),
        )(*arrays)

    return on_each_device(call, *_sources(queries, context), valid.astype(jnp.int8))


def _backward(
    layout: Layout, kept: tuple[Array, Array | None, Array], gradient: Array
) -> tuple[Array, Array | None, None]:
    queries, context, valid = kept
    tile = BACKWARD[power_of_two(valid.shape[1], LEAST)]

    def call(*arrays: Array) -> Any:
        sources = arrays[:-2]
        return pl.pallas_call(
            functools.partial(_backward_kernel, layout=layout, rows=tile.rows, count=len(sources)),
            grid=(len(sources[0]), layout.heads),
            in_specs=[_whole(x) for x in arrays],
            out_specs=[_whole(x) for x in sources],
            out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in sources],
            **how('attention_backward', tile.warps),
        )(*arrays)

    arrays = (*_sources(queries, context), valid.astype(jnp.int8), gradient)
    gradients = on_each_device(call, *arrays)
    return gradients[0], None if context is None else gradients[1], None


def _sources(queries: Array, context: Array | None) -> list[Array]:
    """The arrays to read. One and the same twice would be two to a model of what the kernel moves."""
    return [queries] if context is None else [queries, context]


fused_attention.defvjp(lambda q, c, v, layout: (_forward(q, c, v, layout), (q, c, v)), _backward)


def _forward_kernel(*refs: Any, layout: Layout, rows: int) -> None:
    """The result of one head for `rows` queries."""
    *sources, valid_ref, out_ref = refs
    head, start = pl.program_id(1), pl.program_id(2) * rows
    key, value, valid = _keys(sources[-1], valid_ref, layout, head)
    query = _load(sources[0], start, rows, layout.columns(0, head))
    weights = _weights(query, key, valid, layout)
    out = pltriton.dot(weights.astype(value.dtype), value)
    _store(out_ref, start, layout.columns(0, head), out)


def _backward_kernel(*refs: Any, layout: Layout, rows: int, count: int) -> None:
    """The gradients of one head, `rows` queries at a time; `count` arrays to read and to write."""
    sources, out_refs = refs[:count], refs[-count:]
    valid_ref, gradient_ref = refs[count : count + 2]
    head, query_ref = pl.program_id(1), sources[0]
    key, value, valid = _keys(sources[-1], valid_ref, layout, head)

    def body(index: Any, sums: tuple[Array, Array]) -> tuple[Array, Array]:
        key_sum, value_sum = sums
        query = _load(query_ref, index * rows, rows, layout.columns(0, head))
        gradient = _load(gradient_ref, index * rows, rows, layout.columns(0, head))
        weights = _weights(query, key, valid, layout)
        value_sum += pltriton.dot(weights.astype(gradient.dtype), gradient, trans_a=True)
        inner = pltriton.dot(gradient, value, trans_b=True)
        inner = weights * (inner - jnp.sum(inner * weights, axis=1)[:, None])
        inner = (inner * layout.head_width**-0.5).astype(query.dtype)
        _store(out_refs[0], index * rows, layout.columns(0, head), pltriton.dot(inner, key))
        return key_sum + pltriton.dot(inner, query, trans_a=True), value_sum

    zero = jnp.zeros(key.shape, jnp.promote_types(key.dtype, jnp.float32))
    tiles = -(-query_ref.shape[0] // rows)
    key_sum, value_sum = jax.lax.fori_loop(0, tiles, body, (zero, zero))
    _store(out_refs[-1], 0, layout.columns(layout.key, head), key_sum)
    _store(out_refs[-1], 0, layout.columns(layout.value, head), value_sum)


def _keys(context_ref: Any, valid_ref: Any, layout: Layout, head: Any) -> tuple[Array, Array, Array]:
    """Keys and values of a head, filled up with zeros to a power of two, and which of them count."""
    count = context_ref.shape[0]
    padded = power_of_two(count, LEAST)
    key = _load(context_ref, 0, padded, layout.columns(layout.key, head))
    value = _load(context_ref, 0, padded, layout.columns(layout.value, head))
    valid = pltriton.load(valid_ref.at[window(0, padded)], mask=jnp.arange(padded) < count, other=0)
    return key, value, valid != 0


def _weights(query: Array, key: Array, valid: Array, layout: Layout) -> Array:
    """softmax(Q K^T / sqrt(e)) over the valid keys, in float32; all zero if there is none."""
    scores = pltriton.dot(query, key, trans_b=True) * layout.head_width**-0.5
    scores = jnp.where(valid[None], scores, INVALID)
    powers = jnp.where(valid[None], jnp.exp(scores - jnp.max(scores, axis=1)[:, None]), 0.0)
    # At least 1 wherever there is a valid key.
    return powers / jnp.maximum(jnp.sum(powers, axis=1), 0.5)[:, None]


def _load(ref: Any, start: Any, rows: int, columns: Any) -> Array:
    """Rows from `start` on, zeros where there are none left."""
    there = (start + jnp.arange(rows) < ref.shape[0])[:, None] & (jnp.arange(columns.size) >= 0)[None]
    return pltriton.load(ref.at[window(start, rows), columns], mask=there, other=0.0)


def _store(ref: Any, start: Any, columns: Any, values: Array) -> None:
    """Writes those rows that are there."""
    there = (start + jnp.arange(len(values)) < ref.shape[0])[:, None] & (jnp.arange(columns.size) >= 0)[None]
    pltriton.store(ref.at[window(start, len(values)), columns], values.astype(ref.dtype), mask=there)


def _whole(x: Array) -> pl.BlockSpec:
    """One sample of an array at a time."""
    return pl.BlockSpec((None, *x.shape[1:]), lambda b, *_: (b, *[0] * (x.ndim - 1)))
