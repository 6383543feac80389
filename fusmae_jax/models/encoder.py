"""The encoder: patch projections, block 1 (fusing or plain), the stack of blocks, the final norm."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from fusmae_jax.config.run import Model
from fusmae_jax.models.blocks import Block, run_stack, stack
from fusmae_jax.models.fusion import XAttnEncoder
from fusmae_jax.models.layers import Policy, layer_norm, linear, trunc_normal
from fusmae_jax.models.posembed import sincos_2d
from fusmae_jax.models.streams import streams


class Encoder(nnx.Module):
    """Patches of any non-empty subset of the modalities (or all of them stacked) to tokens, eqs (1)-(8).

    A strided convolution is a matrix product for each patch, so visible patches are gathered first and
    only those are projected. Block 1 is XAttnEncoder, after which CLS is appended (eq. 6), or a plain
    block on all tokens with CLS. The blocks after it are stored stacked.
    """

    def __init__(self, model: Model, policy: Policy, *, rngs: nnx.Rngs):
        self.model, self.policy = nnx.static(model), nnx.static(policy)
        self.patch = nnx.Dict(
            {name: linear(size, model.width, policy, rngs=rngs) for name, size in streams(model).items()}
        )
        if model.positions == 'learned':
            shape = (model.num_patches, model.width)
            self.position_table = nnx.Param(trunc_normal(rngs(), shape, policy.wide))
        self.cls = nnx.Param(trunc_normal(rngs(), (model.width,), policy.wide))

        def block(rngs: nnx.Rngs) -> Block:
            return Block(model.width, model.heads, model.mlp_ratio, policy, rngs=rngs)

        if model.fusion.encoder == 'xae':
            self.block1: Any = XAttnEncoder(model, policy, rngs=rngs)
        else:
            self.block1 = block(rngs)
        if model.depth > 1:
            self.blocks = stack(model.depth - 1, block, rngs)
        if model.final_norm:
            self.norm = layer_norm(model.width, policy, rngs=rngs)

    def positions(self, ids: Int[Array, 'b k'] | None, count: int) -> Float[Array, '... k d']:
        """Positional embeddings of the given patches, or of all of them in raster order."""
        wide = self.policy.wide
        if self.model.positions == 'sincos':
            table = jnp.asarray(sincos_2d(self.model.grid, self.model.width), wide)
            return table[None] if ids is None else jnp.take(table, ids, axis=0, mode='clip')
        if ids is None:
            return self.position_table[...][None]
        # The gradient of a gather is a scatter; that of this product is another product.
        chosen = jax.nn.one_hot(ids, self.model.num_patches, dtype=wide)
        return jnp.einsum('bkn,nd->bkd', chosen, self.position_table[...], precision='highest')

    def __call__(
        self,
        patches: Mapping[str, Float[Array, 'b _ p']],
        valid: Mapping[str, Bool[Array, 'b _']],
        ids: Mapping[str, Int[Array, 'b _']] | None = None,
        *,
        capture: bool = False,
    ) -> tuple[dict[str, Float[Array, 'b _ d']], Float[Array, 'b d'], dict[str, Array]]:
        """Encodes patches.

        Args:
            patches: flattened patches (rows, columns, bands) of each stream that is there.
            valid: False for slots that hold nothing; no token attends to them.
            ids: raster index of each patch; None when all patches come in raster order.
            capture: also return intermediates.

        Returns:
            Tokens of each stream, the CLS token (of width 0 where the model has none), and named
            intermediates (empty without `capture`).
        """
        wide = self.policy.wide
        stages: dict[str, Array] = {}
        tokens: dict[str, Array] = {}
        for name, x in patches.items():
            projected = self.patch[name](x).astype(wide)
            position = self.positions(None if ids is None else ids[name], x.shape[1])
            tokens[name] = projected + jnp.broadcast_to(position, projected.shape)
            stages |= {f'patch/{name}': projected, f'tokens/{name}': tokens[name]}
        names = list(tokens)
        cls = self._cls(tokens[names[0]])
        slots = jnp.concatenate([*(valid[name] for name in names), jnp.ones(cls.shape[:2], bool)], axis=1)

        if self.model.fusion.encoder == 'xae':
            x, inner = self.block1(tokens, valid)
            x = jnp.concatenate([x, cls], axis=1)
        else:
            x, inner = self.block1(jnp.concatenate([*tokens.values(), cls], axis=1), slots)
        x, rest = self._after_block1(x, inner, slots, capture)
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
        own: Mapping[str, Bool[Array, 'b k']],
        position: Int[Array, 'b k'],
        *,
        capture: bool = False,
    ) -> tuple[Float[Array, 'b k d'], Float[Array, 'b d'], dict[str, Array]]:
        """Encodes a joint sequence, whose slots belong to one modality or another from sample to sample.

        Every modality's projection runs over all slots, and each slot keeps its own: a small price beside the
        blocks, which see K tokens and no more.

        Args:
            patches: for each modality what each slot holds, were it one of that modality's.
            own: which slots are.
            position: raster index of the patch of each slot.
            capture: also return intermediates.

        Returns:
            The tokens of the slots, the CLS token, and named intermediates (empty without `capture`).
        """
        x = self.positions(position, position.shape[1])
        for name, values in patches.items():
            x = x + jnp.where(own[name][..., None], self.patch[name](values).astype(self.policy.wide), 0)
        stages, cls = {'tokens': x}, self._cls(x)
        valid = jnp.any(jnp.stack(list(own.values())), axis=0)
        slots = jnp.concatenate([valid, jnp.ones(cls.shape[:2], bool)], axis=1)

        if self.model.fusion.encoder == 'xae':
            x, inner = self.block1.joint(x, own)
            x = jnp.concatenate([x, cls], axis=1)
        else:
            x, inner = self.block1(jnp.concatenate([x, cls], axis=1), slots)
        x, rest = self._after_block1(x, inner, slots, capture)
        stages |= rest | {'latents': x[:, :-1], 'cls': x[:, -1]}
        return x[:, :-1], x[:, -1], stages if capture else {}

    def _cls(self, tokens: Float[Array, 'b _ d']) -> Float[Array, 'b _ d']:
        count = int(self.model.cls)  # no token, where there is none, joins those of the blocks
        return jnp.broadcast_to(
            self.cls[...].astype(self.policy.wide), (len(tokens), count, self.model.width)
        )

    def _after_block1(
        self, x: Float[Array, 'b n d'], inner: Mapping[str, Array], slots: Bool[Array, 'b n'], capture: bool
    ) -> tuple[Float[Array, 'b n d'], dict[str, Array]]:
        """The blocks after the first and the final norm; the intermediates of all blocks."""
        stages = {'block1': x} | {f'block1/{key}': value for key, value in inner.items()}
        if self.model.depth > 1:
            x, inner = run_stack(self.blocks, x, slots, self.model, capture=capture)
            stages |= {f'blocks/{key}': value for key, value in inner.items()}
        if self.model.final_norm:
            x = self.norm(x)
        return x, stages
