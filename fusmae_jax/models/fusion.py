"""Fusion by cross-attention: XAttnEncoder, eqs (2)-(3), and XAttnDecoder, eqs (10)-(11).

Both take any number of modalities; each attends to the tokens of all the others (for two, eq. (4)). A
modality is absent where all of its slots are invalid; `absent` says what then takes its place as the
partner of the others: `self` gives CA(x, x), `bypass` no cross-attention term.

The `joint` methods take a joint sequence, whose slots belong to one modality or another from sample to
sample: every direction runs over all slots, with the keys of the others, and each slot keeps its own.
"""

from collections.abc import Mapping

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from fusmae_jax.config.run import Model
from fusmae_jax.models.attention import CrossAttention
from fusmae_jax.models.blocks import constrain_batch
from fusmae_jax.models.layers import Mlp, Policy, layer_norm

Tokens = Mapping[str, Float[Array, 'b _ d']]
Valid = Mapping[str, Bool[Array, 'b _']]


def _pad(x: Array, length: int) -> Array:
    """Zeros (or False) appended along axis 1 up to `length`."""
    return jnp.pad(x, [(0, 0), (0, length - x.shape[1]), *[(0, 0)] * (x.ndim - 2)])


def context_of(
    name: str, tokens: Tokens, valid: Valid, absent: str
) -> tuple[Float[Array, 'b m d'], Bool[Array, 'b m']]:
    """What the tokens of `name` attend to: all other modalities, or by the rule for absent ones.

    Only with `self`, samples without a valid token of another modality get their own tokens instead.
    The choice is a select, so that nothing is projected twice.
    """
    own, own_valid = tokens[name], valid[name]
    others = [key for key in tokens if key != name]
    if not others:
        return own, own_valid if absent == 'self' else jnp.zeros_like(own_valid)
    context = jnp.concatenate([tokens[key] for key in others], axis=1)
    context_valid = jnp.concatenate([valid[key] for key in others], axis=1)
    if absent != 'self':
        return context, context_valid
    length = max(context.shape[1], own.shape[1])
    there = jnp.any(context_valid, axis=1)[:, None]
    return (
        jnp.where(there[..., None], _pad(context, length), _pad(own, length)),
        jnp.where(there, _pad(context_valid, length), _pad(own_valid, length)),
    )


def joint_keys(name: str, own: Valid, absent: str) -> Bool[Array, 'b k']:
    """Which slots of a joint sequence the tokens of `name` attend to; the rule of `context_of`."""
    others = [valid for key, valid in own.items() if key != name]
    keys = jnp.any(jnp.stack(others), axis=0) if others else jnp.zeros_like(own[name])
    if absent != 'self':
        return keys
    return jnp.where(jnp.any(keys, axis=1, keepdims=True), keys, own[name])


class XAttnEncoder(nnx.Module):
    """The first encoder block of Fus-MAE: fus = x + CA(x, others), out = fus + MLP(fus), eqs (2)-(3).

    Cross-attention has its own weights for each querying modality (or one set for all, with
    `fusion.shared_directions`); the MLP is shared by all tokens.
    """

    def __init__(self, model: Model, policy: Policy, *, rngs: nnx.Rngs):
        self.absent = model.fusion.absent
        self.shared = model.fusion.shared_directions
        names = ['shared'] if self.shared else list(model.modalities)
        self.cross = nnx.Dict(
            {name: CrossAttention(model.width, model.heads, policy, rngs=rngs) for name in names}
        )
        self.norm = layer_norm(model.width, policy, rngs=rngs)
        self.mlp = Mlp(model.width, int(model.width * model.mlp_ratio), policy, rngs=rngs)

    def __call__(
        self, tokens: Tokens, valid: Valid
    ) -> tuple[Float[Array, 'b n d'], dict[str, Float[Array, 'b _ h e']]]:
        """All tokens after the block, modality after modality, and `query/<name>`, `key/<name>`."""
        fused, inner = [], dict[str, Array]()
        for name, x in tokens.items():
            x = constrain_batch(x)
            cross = self.cross['shared' if self.shared else name]
            attended, qk = cross(x, *context_of(name, tokens, valid, self.absent))
            fused.append(x + attended.astype(x.dtype))
            inner |= {f'{key}/{name}': value for key, value in qk.items()}
        x = jnp.concatenate(fused, axis=1)
        return x + self.mlp(self.norm(x)).astype(x.dtype), inner

    def joint(
        self, x: Float[Array, 'b k d'], own: Valid
    ) -> tuple[Float[Array, 'b k d'], dict[str, Float[Array, 'b k h e']]]:
        """The same over a joint sequence; `own` says which slots hold a token of each modality."""
        x = constrain_batch(x)
        total, inner = jnp.zeros_like(x), dict[str, Array]()
        for name, mine in own.items():
            cross = self.cross['shared' if self.shared else name]
            attended, qk = cross(x, x, joint_keys(name, own, self.absent))
            total = jnp.where(mine[..., None], attended.astype(x.dtype), total)
            inner |= {f'{key}/{name}': value for key, value in qk.items()}
        x = x + total
        return x + self.mlp(self.norm(x)).astype(x.dtype), inner


class FusedLatents(CrossAttention):
    """XAttnDecoder for one modality: z + CA(z, others), then + MLP."""

    def __init__(self, model: Model, policy: Policy, *, rngs: nnx.Rngs):
        super().__init__(model.width, model.heads, policy, rngs=rngs)
        self.norm = layer_norm(model.width, policy, rngs=rngs)
        self.mlp = Mlp(model.width, int(model.width * model.mlp_ratio), policy, rngs=rngs)

    def __call__(
        self, x: Float[Array, 'b n d'], context: Float[Array, 'b m d'], valid: Bool[Array, 'b m']
    ) -> tuple[Float[Array, 'b n d'], dict[str, Array]]:
        """The fused latents, and their queries and keys."""
        x = constrain_batch(x)
        attended, inner = super().__call__(x, context, valid)
        x = x + attended.astype(x.dtype)
        return x + self.mlp(self.norm(x)).astype(x.dtype), inner


class XAttnDecoder(nnx.Dict[FusedLatents]):
    """Feature-level fusion on the latents, eqs (10)-(11), with separate weights for each modality."""

    def __init__(self, model: Model, policy: Policy, *, rngs: nnx.Rngs):
        super().__init__({name: FusedLatents(model, policy, rngs=rngs) for name in model.modalities})
        self.absent = model.fusion.absent

    def __call__(self, latents: Tokens, valid: Valid) -> dict[str, Float[Array, 'b _ d']]:
        """The fused latents; every update reads the latents from before the block."""
        return {
            name: self[name](z, *context_of(name, latents, valid, self.absent))[0]
            for name, z in latents.items()
        }

    def joint(self, latents: Float[Array, 'b k d'], own: Valid) -> dict[str, Float[Array, 'b k d']]:
        """The same over a joint sequence; of the result for a modality only its own slots mean anything."""
        return {name: self[name](latents, latents, joint_keys(name, own, self.absent))[0] for name in own}
