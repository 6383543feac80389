"""Heads on maps of tokens: parameters as nested dicts of arrays, and the traceable functions of them.

`linear`   one linear layer a token
`shuffle`  one linear layer a token that gives all pixels of its patch (pixel shuffle, arXiv 1609.05158)
`pup`      a 1 x 1 projection, then as often as the patch size can be halved: twice the size, a 3 x 3
           convolution, layer norm over the channels, GELU; a linear layer (as SETR's progressive upsampling,
           arXiv 2012.15840, with layer norm in place of batch norm)
`upernet`  pyramid pooling and a top-down path over one block or four (`upernet.py`)

What they give is brought to the grid of the labels by bilinear interpolation of the scores.
"""

import math
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fusmae_jax.eval.dense import upernet
from fusmae_jax.eval.dense.convolution import convolved, init_layer, resized
from fusmae_jax.models import heads

Kind = Literal['linear', 'shuffle', 'pup', 'upernet']
KINDS: tuple[str, ...] = get_args(Kind)
CONVOLUTIONAL = ('pup', 'upernet')  # kinds with a width of their own


class HeadShape(NamedTuple):
    """What decides the parameters of a head."""

    kind: Kind
    features: int  # numbers a token, of all blocks
    classes: int
    patch: int  # model pixels on the side of a token
    width: int  # channels of the decoder
    blocks: int = 1  # whose tokens stand side by side


def init(key: Array, shape: HeadShape) -> Any:
    """Fresh parameters, float32; traceable."""
    if shape.kind == 'linear':
        return heads.init_head(key, shape.features, shape.classes)
    if shape.kind == 'shuffle':
        return heads.init_head(key, shape.features, shape.classes * shape.patch**2)
    if shape.kind == 'upernet':
        return upernet.init(key, shape.features // shape.blocks, shape.classes, shape.width)
    keys = jax.random.split(key, stages(shape.patch) + 2)
    params = {'project': init_layer(keys[0], (1, 1, shape.features, shape.width))}
    for number, one in enumerate(keys[1:-1]):
        params[f'stage{number}'] = init_layer(one, (3, 3, shape.width, shape.width))
    return params | {'out': heads.init_head(keys[-1], shape.width, shape.classes)}


def stages(patch: int) -> int:
    """How often a decoder doubles the size of a map of tokens: until it is not coarser than the pixels."""
    return math.ceil(math.log2(patch))


def apply(params: Any, features: Float[Array, 'b h w d'], shape: HeadShape) -> Float[Array, 'b _ _ c']:
    """The scores of every class: a place a token, a model pixel, or a quarter of a token's side."""
    x = features.astype(jnp.float32)
    batch, rows, columns, width = x.shape
    if shape.kind in ('linear', 'shuffle'):
        scores = heads.logits(params, x.reshape(-1, width)).reshape(batch, rows, columns, -1)
        return scores if shape.kind == 'linear' else _shuffled(scores, shape.patch)
    if shape.kind == 'upernet':
        return upernet.apply(params, x, shape.blocks)
    x = convolved(params['project'], x)
    for number in range(stages(shape.patch)):
        x = convolved(params[f'stage{number}'], resized(x, (2 * x.shape[1], 2 * x.shape[2])))
    scores = heads.logits(params['out'], x.reshape(-1, shape.width))
    return scores.reshape(*x.shape[:3], shape.classes)


def _shuffled(scores: Float[Array, 'b h w _'], patch: int) -> Float[Array, 'b _ _ c']:
    """From all pixels of a patch side by side, row by row, to their places."""
    batch, rows, columns, width = scores.shape
    x = scores.reshape(batch, rows, columns, patch, patch, width // patch**2)
    return x.swapaxes(2, 3).reshape(batch, rows * patch, columns * patch, -1)
