"""DINO's vision transformer and projection head, over stacked bands (DINO-MM).

The parameters of the backbone have the names of `models.encoder.Encoder` with `fusion.encoder='stack'`, so
that `train.dino_encoder.encoder_params` makes one of them; only the table of positions has a first row more,
that of CLS.
"""

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from fusmae_jax.config.dino import Dino, DinoHead
from fusmae_jax.config.run import Model
from fusmae_jax.input.prepare import patchify
from fusmae_jax.models.blocks import Block, Paths, run_stack, stack
from fusmae_jax.models.encoder import STACK
from fusmae_jax.models.layers import Arithmetic, gelu, layer_norm, linear
from fusmae_jax.models.positions import cubic_matrix


def resize_positions(
    table: Float[Array, 'n d'], old: tuple[int, int], new: tuple[int, int], offset: float
) -> Float[Array, 'm d']:
    """A table of patch positions on another grid; a matrix product, whose gradient is one too."""
    if old == new:
        return table
    rows, columns = (jnp.asarray(cubic_matrix(a, b, offset), table.dtype) for a, b in zip(old, new))
    x = table.reshape(*old, -1)
    x = jnp.einsum('ir,rcd->icd', rows, x, precision='highest')
    return jnp.einsum('jc,icd->ijd', columns, x, precision='highest').reshape(new[0] * new[1], -1)


class Backbone(nnx.Module):
    """DINO's ViT: one projection of all bands, CLS first, learned positions, pre-norm blocks, a last norm."""

    def __init__(self, model: Model, offset: float, arithmetic: Arithmetic, *, rngs: nnx.Rngs):
        self.model, self.arithmetic, self.offset = nnx.static(model), nnx.static(arithmetic), offset
        size = sum(model.patch_dim(name) for name in model.modalities)
        self.patch = nnx.Dict({STACK: linear(size, model.width, arithmetic, rngs=rngs)})
        rows = 1 + model.num_patches
        self.position_table = nnx.Param(jax.random.normal(rngs(), (rows, model.width), arithmetic.wide_dtype))
        self.cls = nnx.Param(jax.random.normal(rngs(), (model.width,), arithmetic.wide_dtype))

        def block(rngs: nnx.Rngs) -> Block:
            return Block(model.width, model.heads, model.mlp_ratio, arithmetic, rngs=rngs)

        self.block1 = block(rngs)
        if model.depth > 1:
            self.blocks = stack(model.depth - 1, block, rngs)
        self.norm = layer_norm(model.width, arithmetic, rngs=rngs, wide=True)

    def __call__(
        self,
        images: Float[Array, 'b h w c'],
        paths: Paths | None = None,
        *,
        last: int = 1,
    ) -> Float[Array, 'b _']:
        """The CLS tokens of the last blocks, each after the final norm, side by side.

        Args:
            images: bands in the order of the model's modalities, in multiples of the patch size.
            paths: factors of `blocks.sample_paths` of all blocks, or None to keep every branch.
            last: of how many blocks; the linear evaluation of DINO-MM takes 4.
        """
        model, wide = self.model, self.arithmetic.wide_dtype
        x = self.patch[STACK](stack_patches(images, model)).astype(wide)
        grid = (images.shape[1] // model.patch_size, images.shape[2] // model.patch_size)
        table = self.position_table[...]
        x = x + resize_positions(table[1:], model.grid, grid, self.offset)[None]
        cls = jnp.broadcast_to((self.cls[...] + table[0])[None, None], (len(x), 1, model.width))
        x = jnp.concatenate([cls, x], axis=1).astype(self.arithmetic.residual_dtype)
        valid = jnp.ones(x.shape[:2], bool)
        x, _ = self.block1(x, valid, None if paths is None else paths[0])
        tokens = x[None, :, 0]
        if model.depth > 1:
            rest = None if paths is None else paths[1:]
            # Of the last block nothing but CLS is read.
            _, later = run_stack(
                self.blocks, x, valid, model, paths=rest, keep=lambda x, _: x[:, 0], only=slice(0, 1)
            )
            tokens = jnp.concatenate([tokens, later])
        # last, b, d to b, last * d
        return jnp.moveaxis(self.norm(tokens[-last:]), 0, 1).reshape(len(images), -1)


def stack_patches(images: Float[Array, 'b h w c'], model: Model) -> Float[Array, 'b n p']:
    """Patches of stacked bands, modality by modality, as `fusion.encoder='stack'` has them."""
    parts, start = [], 0
    for modality in model.modalities.values():
        parts.append(images[..., start : (start := start + len(modality.bands))])
    return jnp.concatenate([patchify(part, model.patch_size) for part in parts], axis=-1)


class ProjectionHead(nnx.Module):
    """DINO's head: an MLP with GELU, an L2 norm, and a linear layer whose columns have length 1."""

    def __init__(self, width: int, head: DinoHead, arithmetic: Arithmetic, *, rngs: nnx.Rngs):
        sizes = [width, *[head.hidden] * (head.layers - 1), head.bottleneck]
        pairs = enumerate(itertools.pairwise(sizes))
        self.mlp = nnx.Dict({f'layer{i}': linear(a, b, arithmetic, rngs=rngs) for i, (a, b) in pairs})
        self.layers = head.layers
        self.last = linear(head.bottleneck, head.out_dim, arithmetic, bias=False, rngs=rngs)
        self.arithmetic = nnx.static(arithmetic)

    def __call__(self, x: Float[Array, 'b d']) -> Float[Array, 'b k']:
        """Logits, each the cosine between a feature and a column."""
        wide, dtype = self.arithmetic.wide_dtype, self.arithmetic.compute_dtype
        for index in range(self.layers):
            if index:
                x = gelu(x, wide, self.arithmetic.numerics.gelu == 'tanh')
            x = self.mlp[f'layer{index}'](x.astype(dtype))
        x = _unit(x.astype(wide), 1)
        columns = _unit(self.last.kernel[...], 0)
        precision = self.arithmetic.numerics.matmul_precision
        return jnp.matmul(x.astype(dtype), columns.astype(dtype), precision=precision).astype(wide)


def _unit(x: Array, axis: int) -> Array:
    square = jnp.sum(jnp.square(x), axis=axis, keepdims=True)
    # Bounded inside the root: a bound on the root itself would leave a gradient of 0 / 0 at zero.
    return x * jax.lax.rsqrt(jnp.maximum(square, 1e-24))


class DinoModel(nnx.Module):
    """Backbone and head; student and teacher are two sets of its parameters."""

    def __init__(self, model: Model, dino: Dino, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        arithmetic = Arithmetic.of(model, dtype)
        self.backbone = Backbone(model, dino.position_offset, arithmetic, rngs=rngs)
        self.head = ProjectionHead(model.width, dino.head, arithmetic, rngs=rngs)


def graph(model: Model, dino: Dino, dtype: DTypeLike = jnp.float32) -> nnx.GraphDef:
    """The structure for `nnx.merge(graph(...), params)` inside traced functions."""
    return nnx.split(nnx.eval_shape(lambda: DinoModel(model, dino, rngs=nnx.Rngs(0), dtype=dtype)))[0]


def init_params(model: Model, dino: Dino, key: Array, dtype: DTypeLike = jnp.float32) -> dict[str, Any]:
    """Fresh parameters as nested dicts, drawn as DINO's code does; traceable.

    Linear kernels, CLS and positions are normal with deviation 0.02, biases 0; the patch projection and the
    last layer are uniform in +-1 / sqrt(inputs), which is PyTorch's default.
    """
    params = nnx.to_pure_dict(nnx.state(DinoModel(model, dino, rngs=nnx.Rngs(key), dtype=dtype), nnx.Param))
    leaves = jax.tree_util.tree_leaves_with_path(params)
    fan_in = params['backbone']['patch'][STACK]['kernel'].shape[0]
    drawn = []
    for index, (path, leaf) in enumerate(leaves):
        name = jax.tree_util.keystr(path, simple=True, separator='/')
        leaf_key = jax.random.fold_in(key, index)
        if f'patch/{STACK}/' in name or name == 'head/last/kernel':
            limit = 1 / math.sqrt(fan_in if 'patch' in name else leaf.shape[0])
            leaf = jax.random.uniform(leaf_key, leaf.shape, leaf.dtype, -limit, limit)
        elif name.endswith(('kernel', 'cls', 'position_table')):
            leaf = 0.02 * jax.random.normal(leaf_key, leaf.shape, leaf.dtype)
        drawn.append(leaf)
    return jax.tree.unflatten(jax.tree.structure(params), drawn)
