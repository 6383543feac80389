"""Parameters for patches whose numbers stand in another order than the model's.

The model's order is rows, columns, bands. On some machines images are cut much faster into patches in another
(`patchify_columns`). The rows of the patch projections and the columns of the predictions then follow, which
changes no result but by the order in which sums are added up. What is stored is always in the model's order.
"""

import re
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from fusmae_jax.config.run import Model
from fusmae_jax.input.prepare import patchify, patchify_columns
from fusmae_jax.models.encoder import STACK
from fusmae_jax.parallel.mesh import target_platform
from fusmae_jax.parallel.rules import Params, path_name

INPUT = re.compile(r'(^|/)patch/(?P<stream>[^/]+)/kernel$')
OUTPUT = re.compile(r'(^|/)(?P<stream>[^/]+)/predict/(kernel|bias)$')


def columns_first() -> bool:
    """Whether the step that is being traced reads its patches as `patchify_columns` cuts them."""
    return target_platform() == 'tpu'


def cut(image: Array, patch_size: int) -> Array:
    """The patches of images (b, h, w, bands) in the order that the machine cuts them in soonest."""
    return (patchify_columns if columns_first() else patchify)(image, patch_size)


def matched(params: Params, model: Model) -> Params:
    """The parameters that go with the patches of `cut`."""
    return for_columns(params, model) if columns_first() else params


def for_columns(params: Params, model: Model) -> Params:
    """Parameters that do with patches of `patchify_columns` what `params` do with those of `patchify`.

    Predictions are in that order too; gradients reach `params` in the model's.
    """

    def moved(path: Any, x: Array) -> Array:
        name = path_name(path)
        if match := INPUT.search(name):
            return _columns(x, 0, model, match['stream'])
        if match := OUTPUT.search(name):
            return _columns(x, x.ndim - 1, model, match['stream'])
        return x

    return jax.tree_util.tree_map_with_path(moved, params)


def _columns(x: Array, axis: int, model: Model, stream: str) -> Array:
    """One axis of a parameter, (rows, columns, bands) of each sensor in turn, as (columns, bands, rows)."""
    size = model.patch_size
    parts, start = [], 0
    for name in model.modalities if stream == STACK else (stream,):
        part = jax.lax.slice_in_dim(x, start, start := start + model.patch_dim(name), axis=axis)
        shape = (*x.shape[:axis], size, size, -1, *x.shape[axis + 1 :])
        part = jnp.moveaxis(part.reshape(shape), axis, axis + 2)
        parts.append(part.reshape(*x.shape[:axis], -1, *x.shape[axis + 1 :]))
    return jnp.concatenate(parts, axis=axis) if len(parts) > 1 else parts[0]
