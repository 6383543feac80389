"""DINO's vision transformer and projection head, over stacked bands (DINO-MM).

The parameters of the backbone have the names of `models.encoder.Encoder` with `fusion.encoder='stack'`, so
that `as_encoder` makes one of them; only the table of positions has a first row more, that of CLS.
"""

import itertools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from fusmae_jax.config.dino import Dino, DinoHead
from fusmae_jax.config.run import Model
from fusmae_jax.input.patchify import patchify
from fusmae_jax.models.blocks import Block, constrain_batch, stack
from fusmae_jax.models.layers import Policy, layer_norm, linear
from fusmae_jax.models.streams import STACK


def cubic_matrix(old: int, new: int, offset: float = 0.0) -> Float[np.ndarray, 'new old']:
    """Cubic convolution (a = -0.75, half-pixel centres, clamped border) from `old` to `new` samples.

    With an `offset`, `new + offset` instead of `new` samples would span the old ones: DINO's code adds 0.1 to
    the scale that it hands to PyTorch, against a rounding error, and so shifts its positions a little.
    """
    if old == new:
        return np.eye(old)
    a = -0.75
    centre = (np.arange(new) + 0.5) * old / (new + offset) - 0.5
    matrix = np.zeros((new, old))
    for tap in range(-1, 3):
        index = np.floor(centre) + tap
        t = np.abs(centre - index)
        near = ((a + 2) * t - (a + 3)) * t * t + 1
        far = ((a * t - 5 * a) * t + 8 * a) * t - 4 * a
        weight = np.where(t <= 1, near, np.where(t < 2, far, 0))
        np.add.at(matrix, (np.arange(new), np.clip(index, 0, old - 1).astype(int)), weight)
    return matrix


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


def sample_paths(keys: Array, depth: int, rate: float) -> Float[Array, 'depth b 2']:
    """Factors of the two branches of every block for stochastic depth: 0, or 1 / (share that is kept).

    The rate rises linearly from 0 at the first block. One random key for each image (b,).
    """
    keep = 1 - jnp.linspace(0, rate, depth)[None, :, None]
    drawn = jax.vmap(lambda key: jax.random.uniform(key, (depth, 2)))(keys)
    return jnp.moveaxis(jnp.where(drawn < keep, 1 / keep, 0), 0, 1)


class Backbone(nnx.Module):
    """DINO's ViT: one projection of all bands, CLS first, learned positions, pre-norm blocks, a last norm."""

    def __init__(self, model: Model, offset: float, policy: Policy, *, rngs: nnx.Rngs):
        self.model, self.policy, self.offset = nnx.static(model), nnx.static(policy), offset
        size = sum(model.patch_dim(name) for name in model.modalities)
        self.patch = nnx.Dict({STACK: linear(size, model.width, policy, rngs=rngs)})
        rows = 1 + model.num_patches
        self.position_table = nnx.Param(jax.random.normal(rngs(), (rows, model.width), policy.wide))
        self.cls = nnx.Param(jax.random.normal(rngs(), (model.width,), policy.wide))

        def block(rngs: nnx.Rngs) -> Block:
            return Block(model.width, model.heads, model.mlp_ratio, policy, rngs=rngs)

        self.block1 = block(rngs)
        if model.depth > 1:
            self.blocks = stack(model.depth - 1, block, rngs)
        self.norm = layer_norm(model.width, policy, rngs=rngs)

    def __call__(
        self,
        images: Float[Array, 'b h w c'],
        paths: Float[Array, 'depth b 2'] | None = None,
        *,
        last: int = 1,
    ) -> Float[Array, 'b _']:
        """The CLS tokens of the last blocks, each after the final norm, side by side.

        Args:
            images: bands in the order of the model's modalities, in multiples of the patch size.
            paths: factors of `sample_paths`, or None to keep every branch.
            last: of how many blocks; the linear evaluation of DINO-MM takes 4.
        """
        model, wide = self.model, self.policy.wide
        x = self.patch[STACK](stack_patches(images, model)).astype(wide)
        grid = (images.shape[1] // model.patch_size, images.shape[2] // model.patch_size)
        table = self.position_table[...]
        x = x + resize_positions(table[1:], model.grid, grid, self.offset)[None]
        cls = jnp.broadcast_to((self.cls[...] + table[0])[None, None], (len(x), 1, model.width))
        x = jnp.concatenate([cls, x], axis=1)
        if paths is None:
            paths = jnp.ones((model.depth, len(images), 2), wide)
        valid = jnp.ones(x.shape[:2], bool)

        def body(x: Array, part: tuple[Block, Array]) -> tuple[Array, Array]:
            block, path = part
            x = constrain_batch(x)
            attended, _ = block.attention(block.norm1(x), valid)
            x = x + path[:, 0, None, None] * attended.astype(wide)
            x = x + path[:, 1, None, None] * block.mlp(block.norm2(x)).astype(wide)
            return x, x[:, 0]

        if model.remat != 'none':
            keep = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if model.remat == 'dots' else None
            body = jax.checkpoint(body, prevent_cse=not model.scan, policy=keep)
        x, tokens = body(x, (self.block1, paths[0]))
        tokens = tokens[None]
        if model.depth > 1:
            unroll = 1 if model.scan else model.depth - 1
            _, rest = jax.lax.scan(body, x, (self.blocks, paths[1:]), unroll=unroll)
            tokens = jnp.concatenate([tokens, rest])
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

    def __init__(self, width: int, head: DinoHead, policy: Policy, *, rngs: nnx.Rngs):
        sizes = [width, *[head.hidden] * (head.layers - 1), head.bottleneck]
        pairs = enumerate(itertools.pairwise(sizes))
        self.mlp = nnx.Dict({f'layer{i}': linear(a, b, policy, rngs=rngs) for i, (a, b) in pairs})
        self.layers = head.layers
        self.last = linear(head.bottleneck, head.out_dim, policy, bias=False, rngs=rngs)
        self.policy = nnx.static(policy)

    def __call__(self, x: Float[Array, 'b d']) -> Float[Array, 'b k']:
        """Logits, each the cosine between a feature and a column."""
        wide, dtype = self.policy.wide, self.policy.dtype
        for index in range(self.layers):
            if index:
                x = jax.nn.gelu(x.astype(wide), approximate=self.policy.numerics.gelu == 'tanh')
            x = self.mlp[f'layer{index}'](x.astype(dtype))
        x = _unit(x.astype(wide), 1)
        columns = _unit(self.last.kernel[...], 0)
        precision = self.policy.numerics.matmul_precision
        return jnp.matmul(x.astype(dtype), columns.astype(dtype), precision=precision).astype(wide)


def _unit(x: Array, axis: int) -> Array:
    square = jnp.sum(jnp.square(x), axis=axis, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(square, 1e-24))


class DinoModel(nnx.Module):
    """Backbone and head; student and teacher are two sets of its parameters."""

    def __init__(self, model: Model, dino: Dino, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        policy = Policy(model.numerics, dtype)
        self.backbone = Backbone(model, dino.position_offset, policy, rngs=rngs)
        self.head = ProjectionHead(model.width, dino.head, policy, rngs=rngs)


def graph(model: Model, dino: Dino, dtype: DTypeLike = jnp.float32) -> nnx.GraphDef:
    """The structure for `nnx.merge(graph(...), params)` inside traced functions."""
    return nnx.split(nnx.eval_shape(lambda: DinoModel(model, dino, rngs=nnx.Rngs(0), dtype=dtype)))[0]


def init_params(model: Model, dino: Dino, key: Array, dtype: DTypeLike = jnp.float32) -> dict:
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
        own = jax.random.fold_in(key, index)
        if f'patch/{STACK}/' in name or name == 'head/last/kernel':
            limit = 1 / math.sqrt(fan_in if 'patch' in name else leaf.shape[0])
            leaf = jax.random.uniform(own, leaf.shape, leaf.dtype, -limit, limit)
        elif name.endswith(('kernel', 'cls', 'position_table')):
            leaf = 0.02 * jax.random.normal(own, leaf.shape, leaf.dtype)
        drawn.append(leaf)
    return jax.tree.unflatten(jax.tree.structure(params), drawn)


def as_encoder(backbone: Mapping[str, Any], model: Model, grid: tuple[int, int], offset: float) -> dict:
    """Parameters of `Encoder` with `fusion.encoder='stack'` that compute what the backbone does.

    The encoder appends CLS instead of putting it first, which attention does not notice, and takes inputs on
    [-1, 1] (`normalisation='mean_2sigma'`), so the projection takes up the step to [0, 1]. A sensor that is
    not there is -1 on that scale.

    Args:
        backbone: `params['backbone']`, of the student or of the teacher.
        model: the model that was trained; its grid is that of the positions.
        grid: patches along rows and columns of the images to encode.
        offset: `dino.position_offset`.
    """
    table = jnp.asarray(backbone['position_table'])
    kernel, bias = (backbone['patch'][STACK][name] for name in ('kernel', 'bias'))
    patch = {'kernel': kernel / 2, 'bias': bias + jnp.sum(kernel, axis=0) / 2}
    moved = {
        'patch': {STACK: patch},
        'cls': backbone['cls'] + table[0],
        'position_table': resize_positions(table[1:], model.grid, grid, offset),
    }
    return {**backbone, **moved}
