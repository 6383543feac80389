"""MultiMAE's decoder: the grid of one modality attends to the visible tokens of all of them.

After the published MultiMAE: latents are projected; each gets its position and the learned embedding of its
modality, CLS neither; the queries are the modality's own visible tokens and its mask tokens. Cross-attention
without a residual around it, an MLP with one, then self-attention blocks on the queries.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from fusmae_jax.config.run import Model
from fusmae_jax.models.attention import CrossAttention
from fusmae_jax.models.blocks import Block, constrain_batch, run_for, stack
from fusmae_jax.models.layers import Arithmetic, Mlp, layer_norm, linear, trunc_normal
from fusmae_jax.models.positions import sincos_2d


class Context(NamedTuple):
    """The visible tokens of all modalities in one sequence."""

    latents: Float[Array, 'b c d']
    members: dict[str, Bool[Array, 'b c']]  # which of them are valid tokens of each modality
    position: Int[Array, 'b c']  # raster index of their patches
    cls: Float[Array, 'b d']


def join(
    latents: Mapping[str, Array], valid: Mapping[str, Array], ids: Mapping[str, Array], cls: Array
) -> Context:
    """The context of tokens that are given modality by modality."""
    members = {
        name: jnp.concatenate([v if n == name else jnp.zeros_like(v) for n, v in valid.items()], axis=1)
        for name in valid
    }
    position = jnp.concatenate([ids[name] for name in latents], axis=1)
    return Context(jnp.concatenate(list(latents.values()), axis=1), members, position, cls)


class ModalityEmbedding(nnx.Module):
    """A learned vector for all tokens of a modality, as a bias of their projection."""

    def __init__(self, width: int, arithmetic: Arithmetic, *, rngs: nnx.Rngs):
        self.bias = nnx.Param(trunc_normal(rngs(), (width,), arithmetic.wide_dtype))


class MultiMaeDecoder(nnx.Module):
    """Visible latents of all modalities to the pixels of the hidden patches of one."""

    def __init__(self, model: Model, name: str, arithmetic: Arithmetic, *, rngs: nnx.Rngs):
        settings = model.decoder
        self.model, self.name, self.arithmetic = nnx.static(model), name, nnx.static(arithmetic)
        width, hidden = settings.width, int(settings.width * model.mlp_ratio)
        self.project = linear(model.width, width, arithmetic, rngs=rngs)
        self.mask_token = nnx.Param(jnp.zeros((width,), arithmetic.wide_dtype))
        self.modality = nnx.Dict(
            {key: ModalityEmbedding(width, arithmetic, rngs=rngs) for key in model.modalities}
        )
        self.cross = CrossAttention(width, settings.heads, arithmetic, rngs=rngs)
        self.norm2 = layer_norm(width, arithmetic, rngs=rngs)
        self.mlp = Mlp(width, hidden, arithmetic, rngs=rngs)
        if settings.depth:
            self.blocks = stack(
                settings.depth,
                lambda rngs: Block(width, settings.heads, model.mlp_ratio, arithmetic, rngs=rngs),
                rngs,
            )
        if settings.final_norm:
            self.norm = layer_norm(width, arithmetic, rngs=rngs)
        self.predict = linear(width, model.patch_dim(name), arithmetic, rngs=rngs)

    def __call__(
        self,
        context: Context,
        part: slice,
        masked: Int[Array, 'b m'],
        hidden: Bool[Array, 'b m'] | None = None,
        *,
        capture: bool = False,
    ) -> tuple[Float[Array, 'b m p'], dict[str, Array]]:
        """Predictions for the patches `masked`, in the wide type.

        Args:
            context: the visible tokens; with `decoder.cls` CLS is one of them.
            part: where in it the modality's own tokens can stand; they are queries too.
            masked: raster index of each mask token.
            hidden: False for mask tokens that stand for nothing hidden; no token attends to them.
            capture: also return intermediates.
        """
        wide = self.arithmetic.wide_dtype
        tokens, keys, valid = self._context(context)
        table = jnp.asarray(sincos_2d(self.model.grid, self.model.decoder.width), wide)
        empty = self.mask_token[...].astype(wide) + self.modality[self.name].bias[...].astype(wide)
        empty = empty[None, None] + jnp.take(table, masked, axis=0, mode='clip')
        queries = constrain_batch(jnp.concatenate([tokens[:, part], empty], axis=1))
        stages = {'tokens': queries}
        # No residual around it, as published; the MLP after it has one.
        x, inner = self.cross(queries, keys, valid)
        x, normed = self.norm2.after(x.astype(self.arithmetic.residual_dtype))
        x = x + self.mlp(normed).astype(x.dtype)
        stages |= {'cross': x} | {f'cross/{key}': value for key, value in inner.items()}
        visible = context.members[self.name][:, part]
        hidden = jnp.ones(masked.shape, bool) if hidden is None else hidden
        attended = jnp.concatenate([visible, hidden], axis=1)
        asked = slice(visible.shape[1], attended.shape[1])
        blocks = self.blocks if self.model.decoder.depth else None
        x, inner = run_for(asked, blocks, x, attended, self.model, capture=capture)
        stages |= {f'blocks/{key}': value for key, value in inner.items()}
        if self.model.decoder.final_norm:
            x = self.norm(x)
        predictions = self.predict(x).astype(wide)
        return predictions, stages | {'predictions': predictions} if capture else {}

    def _context(
        self, context: Context
    ) -> tuple[Float[Array, 'b c w'], Float[Array, 'b e w'], Bool[Array, 'b e']]:
        """The projected tokens with their embeddings; and the keys with their validity, CLS among them."""
        wide, settings = self.arithmetic.wide_dtype, self.model.decoder
        table = jnp.asarray(sincos_2d(self.model.grid, settings.width), wide)
        tokens = self.project(context.latents).astype(wide)
        tokens = tokens + jnp.take(table, context.position, axis=0, mode='clip')
        for name, member in context.members.items():
            embedding = self.modality[name].bias[...].astype(wide)[None, None]
            tokens = tokens + jnp.where(member[..., None], embedding, 0)
        valid = jnp.any(jnp.stack(list(context.members.values())), axis=0)
        if not settings.cls:
            return tokens, tokens, valid
        cls = self.project(context.cls[:, None]).astype(wide)
        there = jnp.ones((len(cls), 1), bool)
        return tokens, jnp.concatenate([tokens, cls], axis=1), jnp.concatenate([valid, there], axis=1)
