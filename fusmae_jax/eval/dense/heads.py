"""Heads on maps of tokens: parameters as nested dicts of arrays, and the traceable functions of them.

`linear`   one linear layer a token
`shuffle`  one linear layer a token that gives all pixels of its patch (pixel shuffle, arXiv 1609.05158)
`pup`      a 1 x 1 projection, then as often as the patch size can be halved: twice the size, a 3 x 3
           convolution, layer norm over the channels, GELU; a linear layer (as SETR's progressive upsampling,
           arXiv 2012.15840, with layer norm in place of batch norm)

What they give is brought to the grid of the labels by bilinear interpolation of the scores.
"""

import math
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fusmae_jax.models import heads

Kind = Literal['linear', 'shuffle', 'pup']
KINDS: tuple[str, ...] = get_args(Kind)
EPS = 1e-6


class HeadShape(NamedTuple):
    """What decides the parameters of a head."""

    kind: Kind
    features: int  # numbers a token
    classes: int
    patch: int  # model pixels on the side of a token
    width: int  # channels of the decoder


def init(key: Array, shape: HeadShape) -> Any:
    """Fresh parameters, float32; traceable."""
    if shape.kind == 'linear':
        return heads.init_head(key, shape.features, shape.classes)
    if shape.kind == 'shuffle':
        return heads.init_head(key, shape.features, shape.classes * shape.patch**2)
    keys = jax.random.split(key, stages(shape.patch) + 2)
    params = {'project': _layer(keys[0], (1, 1, shape.features, shape.width))}
    for number, one in enumerate(keys[1:-1]):
        params[f'stage{number}'] = _layer(one, (3, 3, shape.width, shape.width))
    return params | {'out': heads.init_head(keys[-1], shape.width, shape.classes)}


def stages(patch: int) -> int:
    """How often a decoder doubles the size of a map of tokens: until it is not coarser than the pixels."""
    return math.ceil(math.log2(patch))


def _layer(key: Array, shape: tuple[int, int, int, int]) -> Any:
    """A convolution (He et al. 2015) and the norm after it."""
    deviation = math.sqrt(2 / (shape[0] * shape[1] * shape[2]))
    channels = shape[3]
    return {
        'kernel': deviation * jax.random.normal(key, shape, jnp.float32),
        'bias': jnp.zeros(channels, jnp.float32),
        'norm': {'scale': jnp.ones(channels, jnp.float32), 'bias': jnp.zeros(channels, jnp.float32)},
    }


def apply(params: Any, features: Float[Array, 'b h w d'], shape: HeadShape) -> Float[Array, 'b _ _ c']:
    """The scores of every class: a place a token, or a place a model pixel."""
    x = features.astype(jnp.float32)
    batch, rows, columns, width = x.shape
    if shape.kind in ('linear', 'shuffle'):
        scores = heads.logits(params, x.reshape(-1, width)).reshape(batch, rows, columns, -1)
        return scores if shape.kind == 'linear' else _shuffled(scores, shape.patch)
    x = _activated(params['project'], x)
    for number in range(stages(shape.patch)):
        x = _activated(params[f'stage{number}'], resized(x, (2 * x.shape[1], 2 * x.shape[2])))
    scores = heads.logits(params['out'], x.reshape(-1, shape.width))
    return scores.reshape(*x.shape[:3], shape.classes)


def _shuffled(scores: Float[Array, 'b h w _'], patch: int) -> Float[Array, 'b _ _ c']:
    """From all pixels of a patch side by side, row by row, to their places."""
    batch, rows, columns, width = scores.shape
    x = scores.reshape(batch, rows, columns, patch, patch, width // patch**2)
    return x.swapaxes(2, 3).reshape(batch, rows * patch, columns * patch, -1)


def _activated(layer: Any, x: Float[Array, 'b h w i']) -> Float[Array, 'b h w o']:
    layout = ('NHWC', 'HWIO', 'NHWC')
    x = jax.lax.conv_general_dilated(x, layer['kernel'], (1, 1), 'SAME', dimension_numbers=layout)
    x = x + layer['bias']
    mean = jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean((x - mean) ** 2, axis=-1, keepdims=True)
    x = (x - mean) * jax.lax.rsqrt(variance + EPS)
    return jax.nn.gelu(x * layer['norm']['scale'] + layer['norm']['bias'])


def resized(x: Float[Array, 'b h w c'], size: tuple[int, int]) -> Float[Array, 'b oh ow c']:
    """Bilinear, pixel centres at half-integers, widened where it shrinks."""
    if x.shape[1:3] == size:
        return x
    return jax.image.resize(x, (x.shape[0], *size, x.shape[3]), 'bilinear')
