"""The encoder: patch projections, block 1 (fusing or plain), the stack of blocks, the final norm.

With images I_i (height, width, bands of modality i) cut into n patches, positions E (n, d), and ++ joining
sequences (equations of the paper):

    z_0,i = Conv2d_i(I_i) + E                              (1)  n tokens a modality, or those that are visible
    z_0   = XAttnEncoder(z_0,1, z_0,2) ++ z_CLS            (6)  `fusion.encoder='xae'`; see `models.fusion`
    z_N   = E_N(z_0,1, z_0,2)                              (7)  N blocks, XAttnEncoder being the first
          = z_N,1 ++ z_N,2                                 (8)  the latents of each modality

A stream is what one projection makes tokens of and one decoder predicts: a modality or, with
`fusion.encoder='stack'`, the bands of all of them in one patch (SatViT).
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from fusmae_jax.config.run import Model
from fusmae_jax.input.prepare import Patches
from fusmae_jax.models.blocks import Block, Paths, run_stack, stack, with_tokens
from fusmae_jax.models.fusion import XAttnEncoder
from fusmae_jax.models.layers import Arithmetic, layer_norm, linear, trunc_normal
from fusmae_jax.models.positions import sincos_2d

STACK = 'stack'


class Encoder(nnx.Module):
    """Patches of any non-empty subset of the modalities (or all of them stacked) to tokens.

    A strided convolution is a matrix product for each patch, so visible patches are gathered first and
    only those are projected. Block 1 is XAttnEncoder, after which CLS is appended (eq. 6), or a plain
    block on all tokens with CLS. The blocks after it are stored stacked.
    """

    def __init__(self, model: Model, arithmetic: Arithmetic, *, rngs: nnx.Rngs):
        self.model, self.arithmetic = nnx.static(model), nnx.static(arithmetic)
        self.patch = nnx.Dict(
            {name: linear(size, model.width, arithmetic, rngs=rngs) for name, size in streams(model).items()}
        )
        if model.positions == 'learned':
            shape = (model.num_patches, model.width)
            self.position_table = nnx.Param(trunc_normal(rngs(), shape, arithmetic.wide_dtype))
        self.cls = nnx.Param(trunc_normal(rngs(), (model.width,), arithmetic.wide_dtype))

        def block(rngs: nnx.Rngs) -> Block:
            return Block(model.width, model.heads, model.mlp_ratio, arithmetic, rngs=rngs)

        if model.fusion.encoder == 'xae':
            self.block1: Any = XAttnEncoder(model, arithmetic, rngs=rngs)
        else:
            self.block1 = block(rngs)
        if model.depth > 1:
            self.blocks = stack(model.depth - 1, block, rngs)
        if model.final_norm:
            self.norm = layer_norm(model.width, arithmetic, rngs=rngs, wide=True)

    def positions(self, ids: Int[Array, 'b k'] | None) -> Float[Array, '... k d']:
        """Positional embeddings of the given patches, or of all of them in raster order."""
        wide = self.arithmetic.wide_dtype
        if self.model.positions == 'sincos':
            table = jnp.asarray(sincos_2d(self.model.grid, self.model.width), wide)
            return table[None] if ids is None else jnp.take(table, ids, axis=0, mode='clip')
        if ids is None:
            return jnp.asarray(self.position_table[...])[None]
        # The gradient of a gather is a scatter; that of this product is another product.
        chosen = jax.nn.one_hot(ids, self.model.num_patches, dtype=wide)
        return jnp.einsum('bkn,nd->bkd', chosen, self.position_table[...], precision='highest')

    def __call__(
        self,
        patches: Mapping[str, Float[Array, 'b _ _']],
        valid: Mapping[str, Bool[Array, 'b _']],
        ids: Mapping[str, Int[Array, 'b _']] | None = None,
        *,
        paths: Paths | None = None,
        capture: bool = False,
    ) -> tuple[dict[str, Float[Array, 'b _ d']], Float[Array, 'b _'], dict[str, Array]]:
        """Encodes patches.

        Args:
            patches: flattened patches (rows, columns, bands) of each stream that is there.
            valid: False for slots that hold nothing; no token attends to them.
            ids: raster index of each patch; None when all patches come in raster order.
            paths: factors of the branches of the blocks after the first (`blocks.sample_paths`).
            capture: also return intermediates.

        Returns:
            Tokens of each stream, the CLS token (of width 0 where the model has none), and named
            intermediates (empty without `capture`).
        """
        residual = self.arithmetic.residual_dtype
        stages: dict[str, Array] = {}
        tokens: dict[str, Array] = {}
        for name, x in patches.items():
            projected = self.patch[name](x).astype(self.arithmetic.wide_dtype)
            position = self.positions(None if ids is None else ids[name])
            tokens[name] = (projected + jnp.broadcast_to(position, projected.shape)).astype(residual)
            stages |= {f'patch/{name}': projected, f'tokens/{name}': tokens[name]}
        names = list(tokens)
        cls = self._cls(tokens[names[0]])
        slots = jnp.concatenate([*(valid[name] for name in names), jnp.ones(cls.shape[:2], bool)], axis=1)

        if self.model.fusion.encoder == 'xae':
            x, inner = self.block1(tokens, valid)
            # CLS comes after block 1, eq. (6): it belongs to no modality and would have no partner there.
            x = jnp.concatenate([x, cls], axis=1)
        else:
            x, inner = self.block1(jnp.concatenate([*tokens.values(), cls], axis=1), slots)
        x, rest = self._after_block1(x, inner, slots, capture, paths)
        # Static slices; jnp.split would do, but the lengths are known only modality by modality.
        latents, start = {}, 0
        for name in names:
            latents[name] = x[:, start : (start := start + tokens[name].shape[1])]
        stages |= rest | {f'latents/{name}': z for name, z in latents.items()} | {'cls': x[:, -1]}
        cls = x[:, -1] if self.model.cls else x[:, -1, :0]
        return latents, cls, stages if capture else {}

    def joint(
        self,
        patches: Mapping[str, Float[Array, 'b k _']],
        members: Mapping[str, Bool[Array, 'b k']],
        position: Int[Array, 'b k'],
        *,
        capture: bool = False,
    ) -> tuple[Float[Array, 'b k d'], Float[Array, 'b d'], dict[str, Array]]:
        """Encodes a joint sequence, whose slots belong to one modality or another from sample to sample.

        Every modality's projection runs over all slots, and each slot keeps its own: a small price beside the
        blocks, which see K tokens and no more.

        Args:
            patches: for each modality what each slot holds, were it one of that modality's.
            members: which slots are.
            position: raster index of the patch of each slot.
            capture: also return intermediates.

        Returns:
            The tokens of the slots, the CLS token, and named intermediates (empty without `capture`).
        """
        x = self.positions(position)
        for name, values in patches.items():
            # Projected in every slot, then selected: the gradient of a gather by sensor would be a scatter.
            x = x + jnp.where(
                members[name][..., None], self.patch[name](values).astype(self.arithmetic.wide_dtype), 0
            )
        x = x.astype(self.arithmetic.residual_dtype)
        stages, cls = {'tokens': x}, self._cls(x)
        valid = jnp.any(jnp.stack(list(members.values())), axis=0)
        slots = jnp.concatenate([valid, jnp.ones(cls.shape[:2], bool)], axis=1)

        if self.model.fusion.encoder == 'xae':
            x, inner = self.block1.joint(x, members)
            x = jnp.concatenate([x, cls], axis=1)
        else:
            x, inner = self.block1(jnp.concatenate([x, cls], axis=1), slots)
        x, rest = self._after_block1(x, inner, slots, capture)
        stages |= rest | {'latents': x[:, :-1], 'cls': x[:, -1]}
        return x[:, :-1], x[:, -1], stages if capture else {}

    def _cls(self, tokens: Float[Array, 'b _ d']) -> Float[Array, 'b _ d']:
        count = int(self.model.cls)  # no token, where there is none, joins those of the blocks
        return jnp.broadcast_to(
            self.cls[...].astype(self.arithmetic.residual_dtype), (tokens.shape[0], count, self.model.width)
        )

    def _after_block1(
        self,
        x: Float[Array, 'b n d'],
        inner: Mapping[str, Array],
        slots: Bool[Array, 'b n'],
        capture: bool,
        paths: Paths | None = None,
    ) -> tuple[Float[Array, 'b n d'], dict[str, Array]]:
        """The blocks after the first and the final norm; the intermediates of all blocks."""
        stages = {'block1': x} | {f'block1/{key}': value for key, value in inner.items()}
        if self.model.depth > 1:
            keep = with_tokens if capture else None
            x, inner = run_stack(self.blocks, x, slots, self.model, paths=paths, keep=keep)
            stages |= {f'blocks/{key}': value for key, value in inner.items()}
        x = self.norm(x) if self.model.final_norm else x.astype(self.arithmetic.wide_dtype)
        return x, stages


def streams(model: Model) -> dict[str, int]:
    """Name -> numbers in one patch."""
    sizes = {name: model.patch_dim(name) for name in model.modalities}
    return {STACK: sum(sizes.values())} if model.fusion.encoder == 'stack' else sizes


def stack_patches(
    model: Model, patches: Mapping[str, Patches]
) -> tuple[Float[Array, 'b n p'], Bool[Array, 'b n']]:
    """The patches of all modalities in one, and where at least one of them has a valid pixel.

    A patch without a valid pixel, and every patch of a modality that is not given, is 0: the sensor's mean
    where inputs are standardised, black where they are scaled to [0, 1] as DINO-MM's.
    """
    valid = {name: p.any_valid for name, p in patches.items()}
    values = {name: jnp.where(valid[name][..., None], p.values, 0) for name, p in patches.items()}
    some = next(iter(values.values()))
    for name in model.modalities:
        if name not in values:
            values[name] = jnp.zeros((*some.shape[:2], model.patch_dim(name)), some.dtype)
    stacked = jnp.concatenate([values[name] for name in model.modalities], axis=2)
    return stacked, jnp.any(jnp.stack(list(valid.values())), axis=0)


def split_stack(model: Model, stacked: Float[Array, 'b n p']) -> dict[str, Float[Array, 'b n _']]:
    """The part of each modality in stacked patches."""
    parts, start = {}, 0
    for name in model.modalities:
        parts[name] = stacked[..., start : (start := start + model.patch_dim(name))]
    return parts
