"""LayerNorm of a sum on a GPU, as one kernel each way.

    s = x + branch,   y = (s - mean(s)) / sqrt(variance(s) + eps) * scale + bias

The forward kernel reads x and the branch once, and writes s (the residual stream) and y. The backward kernel
reads s and both gradients once, normalises anew, and writes the gradient of the sum; what it adds up over
rows for scale and bias, each program keeps in registers until its last row. Left to the compiler these are
two kernels forward and up to five backward, all bound by the memory.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pltriton
from jaxtyping import Array, Float

from fusmae_jax.models.kernels.triton import how, power_of_two, window
from fusmae_jax.parallel.mesh import on_each_device

ROWS, WARPS = 4, 4  # rows that a program works on at a time, and warps that share them
PROGRAMS = 528  # of a backward kernel, four for each of the 132 processors of an H100 or H200
MOST_WIDTH = 4096  # of a row, which has to fit the registers


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def fused_add_norm(
    x: Float[Array, 'b n d'],
    branch: Float[Array, 'b n d'] | None,
    scale: Float[Array, ' d'],
    bias: Float[Array, ' d'],
    eps: float,
    out_dtype: Any,
) -> tuple[Float[Array, 'b n d'], Float[Array, 'b n d']]:
    """s, in the type of x, and y, in `out_dtype`; without a branch s is x itself."""
    return _forward(x, branch, scale, bias, eps, out_dtype)


def _forward(
    x: Array, branch: Array | None, scale: Array, bias: Array, eps: float, out_dtype: Any
) -> tuple[Array, Array]:
    def call(*arrays: Array) -> list[Array]:
        *rows, scale, bias = arrays
        flat = [_flat(part) for part in rows]
        count, width = flat[0].shape
        types = [x.dtype, out_dtype] if len(rows) == 2 else [out_dtype]
        outputs = pl.pallas_call(
            functools.partial(_forward_kernel, eps=eps),
            grid=(-(-count // ROWS),),
            in_specs=[_all_of(part) for part in (*flat, scale, bias)],
            out_specs=[_all_of(flat[0])] * len(types),
            out_shape=[jax.ShapeDtypeStruct((count, width), kind) for kind in types],
            **how('add_norm_forward', WARPS),
        )(*flat, scale, bias)
        return [part.reshape(rows[0].shape) for part in outputs]

    if branch is None:
        return x, on_each_device(call, x, shared=(scale, bias))[0]
    total, normed = on_each_device(call, x, branch, shared=(scale, bias))
    return total, normed


def _keep(
    x: Array, branch: Array | None, scale: Array, bias: Array, eps: float, out_dtype: Any
) -> tuple[tuple[Array, Array], tuple[Array, Array, Array | None]]:
    total, normed = _forward(x, branch, scale, bias, eps, out_dtype)
    # Of the branch only whether there is one, and its type.
    return (total, normed), (total, scale, None if branch is None else branch[:0])


def _backward(
    eps: float, out_dtype: Any, kept: tuple[Array, Array, Array | None], gradients: tuple[Array, Array]
) -> tuple[Array, Array | None, Array, Array]:
    total, scale, branch = kept

    def call(total: Array, of_total: Array, of_normed: Array, scale: Array) -> list[Array]:
        flat = [_flat(part) for part in (total, of_total, of_normed)]
        count, width = flat[0].shape
        programs = min(PROGRAMS, -(-count // ROWS))
        types = [total.dtype] if branch is None else [total.dtype, branch.dtype]
        sums = jax.ShapeDtypeStruct((programs, width), scale.dtype)
        rows = [jax.ShapeDtypeStruct((count, width), kind) for kind in types]
        outputs = pl.pallas_call(
            functools.partial(_backward_kernel, eps=eps, programs=programs),
            grid=(programs,),
            in_specs=[_all_of(part) for part in (*flat, scale)],
            out_specs=[_all_of(part) for part in (sums, sums, *rows)],
            out_shape=[sums, sums, *rows],
            **how('add_norm_backward', WARPS),
        )(*flat, scale)
        return [*outputs[:2], *(part.reshape(total.shape) for part in outputs[2:])]

    of_scale, of_bias, of_x, *of_branch = on_each_device(call, total, *gradients, shared=(scale,))
    of_scale, of_bias = jnp.sum(of_scale, axis=0), jnp.sum(of_bias, axis=0)
    return of_x, of_branch[0] if of_branch else None, of_scale, of_bias


fused_add_norm.defvjp(_keep, _backward)


def _forward_kernel(*refs: Any, eps: float) -> None:
    """`ROWS` rows of the sum and its normalised form; without a branch only the latter."""
    x_ref, *branch_ref, scale_ref, bias_ref = refs[: 4 if len(refs) == 6 else 3]
    *total_ref, out_ref = refs[4 if len(refs) == 6 else 3 :]
    start = pl.program_id(0) * ROWS
    total = _load(x_ref, start)
    if branch_ref:
        # Rounded to the type of the residual stream before it is normalised: that is what the backward pass
        # will read, and what plain operations normalise.
        total = _wide((total + _load(branch_ref[0], start)).astype(total_ref[0].dtype))
        _store(total_ref[0], start, total)
    y, _ = _standardised(total, x_ref.shape[1], eps)
    _store(out_ref, start, y * _vector(scale_ref)[None] + _vector(bias_ref)[None])


def _backward_kernel(
    total_ref: Any,
    of_total_ref: Any,
    of_normed_ref: Any,
    scale_ref: Any,
    of_scale_ref: Any,
    of_bias_ref: Any,
    *of_rows_refs: Any,
    eps: float,
    programs: int,
) -> None:
    """The gradient of every `programs`-th group of rows, and their part of those of scale and bias."""
    count, width = total_ref.shape
    first, scale = pl.program_id(0), _vector(scale_ref)

    def body(index: Any, sums: tuple[Array, Array]) -> tuple[Array, Array]:
        start = (first + index * programs) * ROWS
        y, inverse = _standardised(_load(total_ref, start), width, eps)
        gradient = _load(of_normed_ref, start)
        # As in models.layers.normalise; columns beyond the width hold zeros, rows beyond the last too.
        g = gradient * scale[None]
        mean, projection = (jnp.sum(part, axis=1)[:, None] / width for part in (g, g * y))
        of_x = inverse * (g - mean - y * projection) + _load(of_total_ref, start)
        for ref in of_rows_refs:
            _store(ref, start, of_x)
        return sums[0] + jnp.sum(gradient * y, axis=0), sums[1] + jnp.sum(gradient, axis=0)

    zero = jnp.zeros(scale.shape, scale.dtype)
    groups = -(-count // (ROWS * programs))
    of_scale, of_bias = jax.lax.fori_loop(0, groups, body, (zero, zero))
    columns = window(0, len(scale))
    there = jnp.arange(len(scale)) < width
    pltriton.store(of_scale_ref.at[first, columns], of_scale, mask=there)
    pltriton.store(of_bias_ref.at[first, columns], of_bias, mask=there)


def _standardised(x: Array, width: int, eps: float) -> tuple[Array, Array]:
    """(x - mean) * inverse, and inverse = 1 / sqrt(variance + eps), over the first `width` columns."""
    mean = jnp.sum(x, axis=1)[:, None] / width
    centred = jnp.where((jnp.arange(x.shape[1]) < width)[None], x - mean, 0.0)
    inverse = jax.lax.rsqrt(jnp.sum(centred * centred, axis=1)[:, None] / width + eps)
    return centred * inverse, inverse


def _load(ref: Any, start: Any) -> Array:
    """`ROWS` rows as float32 or wider, filled up with zeros to a power of two of columns."""
    slices, there = _rows(ref, start)
    return _wide(pltriton.load(ref.at[slices], mask=there, other=0.0))


def _store(ref: Any, start: Any, values: Array) -> None:
    slices, there = _rows(ref, start)
    pltriton.store(ref.at[slices], values.astype(ref.dtype), mask=there)


def _rows(ref: Any, start: Any) -> tuple[Any, Array]:
    count, width = ref.shape
    padded = power_of_two(width)
    there = (start + jnp.arange(ROWS) < count)[:, None] & (jnp.arange(padded) < width)[None]
    return (window(start, ROWS), window(0, padded)), there


def _vector(ref: Any) -> Array:
    padded = power_of_two(ref.shape[0])
    columns = jnp.arange(padded) < ref.shape[0]
    return _wide(pltriton.load(ref.at[window(0, padded)], mask=columns, other=0.0))


def _wide(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _flat(x: Array) -> Array:
    return x.reshape(-1, x.shape[-1])


def _all_of(x: Any) -> pl.BlockSpec:
    """An array as a whole: each program finds its rows itself."""
    return pl.BlockSpec(x.shape, lambda *_: (0,) * len(x.shape))
