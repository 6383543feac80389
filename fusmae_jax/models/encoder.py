"""The encoder: patch projections, block 1 (fusing or plain), the stack of blocks, the final norm."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from fusmae_jax.config import Model
from fusmae_jax.models.blocks import Block, run_stack, stack
from fusmae_jax.models.fusion import XAttnEncoder
from fusmae_jax.models.layers import Policy, layer_norm, linear
from fusmae_jax.models.posembed import sincos_2d


class Encoder(nnx.Module):
    """Patches of any non-empty subset of the modalities to tokens, eqs (1)-(8).

    A strided convolution is a matrix product for each patch, so visible patches are gathered first and
    only those are projected. Block 1 is XAttnEncoder, after which CLS is appended (eq. 6), or a plain
    block on all tokens with CLS. The blocks after it are stored stacked.
    """

    def __init__(self, model: Model, policy: Policy, *, rngs: nnx.Rngs):
        self.model, self.policy = nnx.static(model), nnx.static(policy)
        self.patch = nnx.Dict(
            {name: linear(model.patch_dim(name), model.width, policy, rngs=rngs) for name in model.modalities}
        )
        if model.positions == 'learned':
            table = jax.random.truncated_normal(rngs(), -2, 2, (model.num_patches, model.width), policy.wide)
            self.position_table = nnx.Param(0.02 * table)
        self.cls = nnx.Param(0.02 * jax.random.truncated_normal(rngs(), -2, 2, (model.width,), policy.wide))

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
            patches: flattened patches (rows, columns, bands) of each modality that is there.
            valid: False for slots that hold nothing; no token attends to them.
            ids: raster index of each patch; None when all patches come in raster order.
            capture: also return intermediates.

        Returns:
            Tokens of each modality, the CLS token, and named intermediates (empty without `capture`).
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
        batch = tokens[names[0]].shape[0]
        cls = jnp.broadcast_to(self.cls[...].astype(wide), (batch, 1, self.model.width))
        slots = jnp.concatenate([*(valid[name] for name in names), jnp.ones((batch, 1), bool)], axis=1)

        if self.model.fusion.encoder == 'xae':
            x, inner = self.block1(tokens, valid)
            x = jnp.concatenate([x, cls], axis=1)
        else:
            x, inner = self.block1(jnp.concatenate([*tokens.values(), cls], axis=1), slots)
        stages |= {'block1': x} | {f'block1/{key}': value for key, value in inner.items()}
        if self.model.depth > 1:
            x, inner = run_stack(self.blocks, x, slots, self.model, capture=capture)
            stages |= {f'blocks/{key}': value for key, value in inner.items()}
        if self.model.final_norm:
            x = self.norm(x)
        # Static slices; jnp.split would do, but the lengths are known only modality by modality.
        latents, start = {}, 0
        for name in names:
            latents[name] = x[:, start : (start := start + tokens[name].shape[1])]
        stages |= {f'latents/{name}': z for name, z in latents.items()} | {'cls': x[:, -1]}
        return latents, x[:, -1], stages if capture else {}
