"""A head on features of four depths: pyramid pooling, a top-down path, and their fusion (UPerNet).

Xiao et al. 2018, "Unified Perceptual Parsing for Scene Understanding" (arXiv 1807.10221), with layer norm and
GELU in place of batch norm and ReLU. Its four maps have different sizes; those of a ViT are all as large as
its grid, so that the blocks are scaled by 4, 2, 1 and 1/2, from the first to the last: transposed
convolutions, nothing, a maximum of 2 x 2. Of one block alone all four are made (as Li et al. 2022, arXiv
2203.16527, do for detection).

With the scaled maps x_1 ... x_4, every one first projected to the width of the head:

    p_4 = conv3([x_4, pool_1(x_4), pool_2(x_4), pool_3(x_4), pool_6(x_4)])
    p_i = conv1(x_i) + up(p_(i+1)),  i = 3, 2, 1
    y   = conv3([conv3(p_1), up(conv3(p_2)), up(conv3(p_3)), up(p_4)])

and a linear layer on y, on a grid four times as fine as that of the tokens. pool_k is a mean over k x k bins,
a 1 x 1 convolution and the way back to the size of x_4.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fusmae_jax.eval.dense.convolution import (
    convolved,
    doubled,
    halved,
    init_doubling,
    init_layer,
    resized,
)
from fusmae_jax.models import heads

MAPS = 4
BINS = (1, 2, 3, 6)
BLOCKS = (1, MAPS)  # as many as it can be given


def init(key: Array, features: int, classes: int, width: int) -> Any:
    """Fresh parameters.

    Args:
        key: random.
        features: numbers a token, of one block.
        classes: how many.
        width: channels of every map in the head.
    """
    shapes = {f'project{i}': (1, 1, features, width) for i in range(MAPS)}
    shapes |= {f'pool{bins}': (1, 1, width, width) for bins in BINS}
    shapes['pooled'] = (3, 3, (1 + len(BINS)) * width, width)
    shapes |= {f'lateral{i}': (1, 1, width, width) for i in range(MAPS - 1)}
    shapes |= {f'smooth{i}': (3, 3, width, width) for i in range(MAPS - 1)}
    shapes['fuse'] = (3, 3, MAPS * width, width)
    keys = iter(jax.random.split(key, len(shapes) + 4))
    params = {name: init_layer(next(keys), shape) for name, shape in shapes.items()}
    params |= {f'double{i}': init_doubling(next(keys), width) for i in range(3)}
    return params | {'out': heads.init_head(next(keys), width, classes)}


def apply(params: Any, x: Float[Array, 'b h w d'], blocks: int) -> Float[Array, 'b _ _ c']:
    """The scores of every class, four times as fine as the tokens.

    Args:
        params: of `init`.
        x: tokens by their place, of `blocks` blocks side by side.
        blocks: 1 or 4.
    """
    maps = jnp.split(x, blocks, axis=-1) * (MAPS // blocks)
    x1, x2, x3, x4 = (convolved(params[f'project{i}'], one) for i, one in enumerate(maps))
    x1 = doubled(params['double1'], doubled(params['double0'], x1))
    x2 = doubled(params['double2'], x2)
    p4 = path = _pyramid(params, halved(x4))
    joined = [resized(p4, _size(x1))]
    for i, one in ((2, x3), (1, x2), (0, x1)):
        path = convolved(params[f'lateral{i}'], one) + resized(path, _size(one))
        joined.append(resized(convolved(params[f'smooth{i}'], path), _size(x1)))
    y = convolved(params['fuse'], jnp.concatenate(joined[::-1], axis=-1))
    scores = heads.logits(params['out'], y.reshape(-1, y.shape[-1]))
    return scores.reshape(*y.shape[:3], -1)


def _pyramid(params: Any, x: Float[Array, 'b h w c']) -> Float[Array, 'b h w c']:
    size = _size(x)
    parts = [x]
    for bins in BINS:
        rows, columns = (jnp.asarray(pooling(length, bins)) for length in size)
        mean = jnp.einsum('rh,sw,bhwc->brsc', rows, columns, x)
        parts.append(resized(convolved(params[f'pool{bins}'], mean), size))
    return convolved(params['pooled'], jnp.concatenate(parts, axis=-1))


def pooling(length: int, bins: int) -> np.ndarray:
    """(bins, length): means over bins from floor(i l / n) to ceil((i + 1) l / n), which may overlap."""
    place, number = np.arange(length), np.arange(bins)[:, None]
    inside = (place >= number * length // bins) & (place < -(-(number + 1) * length // bins))
    return (inside / inside.sum(axis=1, keepdims=True)).astype(np.float32)


def _size(x: Array) -> tuple[int, int]:
    return x.shape[1], x.shape[2]
