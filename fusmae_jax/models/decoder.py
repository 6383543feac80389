"""The light MAE decoder of one stream of tokens, on tokens in shuffled order.

    I^_i = D_i(z_N,i)                                                        (9)

z_N,i are the latents of the visible patches of stream i, after XAttnDecoder where there is one. D_i projects
them to its own width, puts mask tokens beside them, adds positions, runs its blocks, and projects the mask
tokens to the pixels I^_i of the hidden patches. Only those are computed, from the last block on, where the
visible tokens are keys and values and nothing more: the loss asks for no others.
"""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from fusmae_jax.config.run import Model
from fusmae_jax.models.blocks import Block, run_for, stack
from fusmae_jax.models.layers import Arithmetic, layer_norm, linear, trunc_normal
from fusmae_jax.models.positions import sincos_2d


class Decoder(nnx.Module):
    """Visible latents and mask tokens to the pixels of the masked patches.

    Tokens stay in the order of the mask, visible ones first: self-attention does not care about order,
    positions are gathered by index, and the predictions are the slice behind the visible tokens.
    """

    def __init__(self, model: Model, patch_dim: int, arithmetic: Arithmetic, *, rngs: nnx.Rngs):
        settings = model.decoder
        self.model, self.arithmetic = nnx.static(model), nnx.static(arithmetic)
        self.project = linear(model.width, settings.width, arithmetic, rngs=rngs)
        self.mask_token = nnx.Param(trunc_normal(rngs(), (settings.width,), arithmetic.wide_dtype))
        if settings.depth:
            self.blocks = stack(
                settings.depth,
                lambda rngs: Block(settings.width, settings.heads, model.mlp_ratio, arithmetic, rngs=rngs),
                rngs,
            )
        if settings.final_norm:
            self.norm = layer_norm(settings.width, arithmetic, rngs=rngs)
        self.predict = linear(settings.width, patch_dim, arithmetic, rngs=rngs)

    def __call__(
        self,
        latents: Float[Array, 'b k d'],
        valid: Bool[Array, 'b k'],
        order: Int[Array, 'b n'],
        cls: Float[Array, 'b d'] | None = None,
        hidden: Bool[Array, 'b m'] | None = None,
        *,
        capture: bool = False,
    ) -> tuple[Float[Array, 'b m p'], dict[str, Array]]:
        """Predictions (b, m, rows * columns * bands) for `order[:, k:]`, in the wide type.

        Args:
            latents: of the visible patches `order[:, :k]`.
            valid: False for visible slots that hold nothing here; they are not attended to.
            order: raster index of each token, the visible slots first, then the mask tokens.
            cls: the CLS latent; takes part, without a position, when `decoder.cls` is set.
            hidden: False for mask tokens that stand for nothing hidden; they are not attended to.
            capture: also return each block's tokens.
        """
        settings, wide = self.model.decoder, self.arithmetic.wide_dtype
        batch, visible, _ = latents.shape
        masked = order.shape[1] - visible
        table = jnp.asarray(sincos_2d(self.model.grid, settings.width), wide)
        mask_tokens = jnp.broadcast_to(self.mask_token[...].astype(wide), (batch, masked, settings.width))
        x = jnp.concatenate([self.project(latents).astype(wide), mask_tokens], axis=1)
        # The table is a constant, so no scatter stands behind this gather in the backward pass.
        x = x + jnp.take(table, order, axis=0, mode='clip')
        hidden = jnp.ones((batch, masked), bool) if hidden is None else hidden
        valid = jnp.concatenate([valid, hidden], axis=1)
        x = x.astype(self.arithmetic.residual_dtype)
        if settings.cls and cls is not None:
            # Last, so that the slices of visible and hidden tokens stay where they are.
            x = jnp.concatenate([x, self.project(cls[:, None]).astype(x.dtype)], axis=1)
            valid = jnp.concatenate([valid, jnp.ones((batch, 1), bool)], axis=1)
        stages, asked = {'tokens': x}, slice(visible, visible + masked)
        blocks = self.blocks if settings.depth else None
        x, inner = run_for(asked, blocks, x, valid, self.model, capture=capture)
        stages |= {f'blocks/{key}': value for key, value in inner.items()}
        if settings.final_norm:
            x = self.norm(x)
        predictions = self.predict(x).astype(wide)
        return predictions, stages | {'predictions': predictions} if capture else {}
