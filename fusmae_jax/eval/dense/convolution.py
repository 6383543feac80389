"""Layers of convolutional heads: parameters as nested dicts of arrays, and traceable functions of them."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

EPS = 1e-6


def init_layer(key: Array, shape: tuple[int, int, int, int]) -> Any:
    """A convolution (He et al. 2015) and the norm after it.

    `shape` is rows, columns, channels in, channels out.
    """
    deviation = math.sqrt(2 / (shape[0] * shape[1] * shape[2]))
    channels = shape[3]
    return {
        'kernel': deviation * jax.random.normal(key, shape, jnp.float32),
        'bias': jnp.zeros(channels, jnp.float32),
        'norm': {'scale': jnp.ones(channels, jnp.float32), 'bias': jnp.zeros(channels, jnp.float32)},
    }


def convolved(layer: Any, x: Float[Array, 'b h w i']) -> Float[Array, 'b h w o']:
    """Convolution, layer norm over the channels, GELU."""
    layout = ('NHWC', 'HWIO', 'NHWC')
    x = jax.lax.conv_general_dilated(x, layer['kernel'], (1, 1), 'SAME', dimension_numbers=layout)
    return _activated(layer, x)


def init_doubling(key: Array, channels: int) -> Any:
    """A transposed convolution of 2 x 2 with a stride of 2, and the norm after it."""
    layer = init_layer(key, (2, 2, channels, channels))
    # Each pixel of the result has one pixel of the input, not four.
    return layer | {'kernel': 2 * layer['kernel']}


def doubled(layer: Any, x: Float[Array, 'b h w c']) -> Float[Array, 'b _ _ c']:
    """Transposed convolution to twice the size, layer norm over the channels, GELU."""
    batch, rows, columns, channels = x.shape
    x = jnp.einsum('bhwi,rsio->bhrwso', x, layer['kernel'])
    return _activated(layer, x.reshape(batch, 2 * rows, 2 * columns, channels))


def _activated(layer: Any, x: Float[Array, 'b h w c']) -> Float[Array, 'b h w c']:
    x = x + layer['bias']
    mean = jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean((x - mean) ** 2, axis=-1, keepdims=True)
    x = (x - mean) * jax.lax.rsqrt(variance + EPS)
    return jax.nn.gelu(x * layer['norm']['scale'] + layer['norm']['bias'])


def halved(x: Float[Array, 'b h w c']) -> Float[Array, 'b _ _ c']:
    """The maximum of every 2 x 2 pixels; of an odd last row or column that of what there is."""
    _, rows, columns, _ = x.shape
    x = jnp.pad(x, ((0, 0), (0, rows % 2), (0, columns % 2), (0, 0)), constant_values=-jnp.inf)
    # Pair by pair: the gradient of a maximum over axes looks for the pixels that equal it, and divides by
    # their number. Where the compiler computes them once more, rounded otherwise, that is 0.
    upper, lower = x[:, ::2], x[:, 1::2]
    x = jnp.where(upper >= lower, upper, lower)
    left, right = x[:, :, ::2], x[:, :, 1::2]
    return jnp.where(left >= right, left, right)


def resized(x: Float[Array, 'b h w c'], size: tuple[int, int]) -> Float[Array, 'b oh ow c']:
    """Bilinear, pixel centres at half-integers, widened where it shrinks."""
    if x.shape[1:3] == size:
        return x
    return jax.image.resize(x, (x.shape[0], *size, x.shape[3]), 'bilinear')
