"""Fusion by cross-attention: XAttnEncoder at the encoder's input, XAttnDecoder on its output.

For two modalities with tokens x and y, where ++ joins sequences (equations of the paper):

    XAttnEncoder:  fus(x, y) = (x ++ y) + (CA(x, y) ++ CA(y, x))                     (2)
                   out       = fus(x, y) + MLP(fus(x, y))                            (3)
                   CA(x, y)  = Attention(Q_x, K_y, V_y)                              (4)
                             = softmax(Q_x K_y^T / sqrt(d_q)) V_y, head by head      (5)
    XAttnDecoder:  z'_i      = z_i + CA(z_i, z_j)                                    (10)
                   out_i     = z'_i + MLP(z'_i)                                      (11)

Q, K and V are linear in layer-normalised tokens, d_q is the width of a head, z_i are the encoder's latents of
modality i. Here there may be any number of modalities: y (z_j) is all the others in one sequence. A modality
is absent where all of its slots are invalid; `absent` says what then takes its place as the partner of the
others: `self` gives CA(x, x), `bypass` no cross-attention term.

The `joint` forms take a joint sequence, whose slots belong to one modality or another from sample to sample:
every direction runs over all slots, with the keys of the others, and each slot keeps its own.
"""

from collections.abc import Mapping

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from fusmae_jax.config.run import Model
from fusmae_jax.models.attention import CrossAttention
from fusmae_jax.models.blocks import constrain_batch
from fusmae_jax.models.layers import Arithmetic, Mlp, layer_norm

Tokens = Mapping[str, Float[Array, 'b _ d']]
Valid = Mapping[str, Bool[Array, 'b _']]


class XAttnEncoder(nnx.Module):
    """The first encoder block of Fus-MAE, eqs (2)-(3).

    Cross-attention has its own weights for each querying modality (or one set for all, with
    `fusion.shared_directions`); the MLP is shared by all tokens.
    """

    def __init__(self, model: Model, arithmetic: Arithmetic, *, rngs: nnx.Rngs):
        self.absent = model.fusion.absent
        self.shared = model.fusion.shared_directions
        names = ['shared'] if self.shared else list(model.modalities)
        self.cross = nnx.Dict(
            {name: CrossAttention(model.width, model.heads, arithmetic, rngs=rngs) for name in names}
        )
        self.norm = layer_norm(model.width, arithmetic, rngs=rngs)
        self.mlp = Mlp(model.width, int(model.width * model.mlp_ratio), arithmetic, rngs=rngs)

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
        x, normed = self.norm.after(jnp.concatenate(fused, axis=1))
        return x + self.mlp(normed).astype(x.dtype), inner

    def joint(
        self, x: Float[Array, 'b k d'], members: Valid
    ) -> tuple[Float[Array, 'b k d'], dict[str, Float[Array, 'b k h e']]]:
        """The same over a joint sequence; `members` says which slots hold a token of each modality."""
        x = constrain_batch(x)
        total, inner = jnp.zeros_like(x), dict[str, Array]()
        for name, mine in members.items():
            cross = self.cross['shared' if self.shared else name]
            attended, qk = cross(x, x, joint_keys(name, members, self.absent))
            # A slot belongs to one modality at most, so a select is the sum over directions.
            total = jnp.where(mine[..., None], attended.astype(x.dtype), total)
            inner |= {f'{key}/{name}': value for key, value in qk.items()}
        x, normed = self.norm.after(x, total)
        return x + self.mlp(normed).astype(x.dtype), inner


class XAttnDecoder(nnx.Module):
    """Feature-level fusion of the latents of one modality with those of the others, eqs (10)-(11)."""

    def __init__(self, model: Model, arithmetic: Arithmetic, *, rngs: nnx.Rngs):
        self.cross = CrossAttention(model.width, model.heads, arithmetic, rngs=rngs)
        self.norm = layer_norm(model.width, arithmetic, rngs=rngs)
        self.mlp = Mlp(model.width, int(model.width * model.mlp_ratio), arithmetic, rngs=rngs)

    def __call__(
        self, z: Float[Array, 'b n d'], context: Float[Array, 'b m d'], valid: Bool[Array, 'b m']
    ) -> Float[Array, 'b n d']:
        """The fused latents; `context` are those of the others, of which `valid` ones are attended to."""
        z = constrain_batch(z)
        z, normed = self.norm.after(z, self.cross(z, context, valid)[0])
        return z + self.mlp(normed).astype(z.dtype)


def fuse_latents(
    blocks: Mapping[str, XAttnDecoder], latents: Tokens, valid: Valid, absent: str
) -> dict[str, Float[Array, 'b _ d']]:
    """The latents of each modality after its XAttnDecoder.

    Every block reads the latents from before all of them, so that their order does not matter.
    """
    return {name: blocks[name](z, *context_of(name, latents, valid, absent)) for name, z in latents.items()}


def fuse_joint_latents(
    blocks: Mapping[str, XAttnDecoder], latents: Float[Array, 'b k d'], members: Valid, absent: str
) -> dict[str, Float[Array, 'b k d']]:
    """The same over a joint sequence; of the result for a modality only its own slots mean anything."""
    return {name: blocks[name](latents, latents, joint_keys(name, members, absent)) for name in members}


def context_of(
    name: str, tokens: Tokens, valid: Valid, absent: str
) -> tuple[Float[Array, 'b m d'], Bool[Array, 'b m']]:
    """What the tokens of `name` attend to: all other modalities, or by the rule for absent ones.

    Only with `self`, samples without a valid token of another modality get their own tokens instead.
    The choice is a select, so that nothing is projected twice.
    """
    self_tokens, self_valid = tokens[name], valid[name]
    others = [key for key in tokens if key != name]
    # Of one modality alone: invalid keys, of which the cross-attention makes exactly 0.
    if not others:
        return self_tokens, self_valid if absent == 'self' else jnp.zeros_like(self_valid)
    context = jnp.concatenate([tokens[key] for key in others], axis=1)
    context_valid = jnp.concatenate([valid[key] for key in others], axis=1)
    if absent != 'self':
        return context, context_valid
    # A select needs equal lengths: the shorter one gets slots that are not valid.
    length = max(context.shape[1], self_tokens.shape[1])
    there = jnp.any(context_valid, axis=1)[:, None]
    return (
        jnp.where(there[..., None], _pad(context, length), _pad(self_tokens, length)),
        jnp.where(there, _pad(context_valid, length), _pad(self_valid, length)),
    )


def _pad(x: Array, length: int) -> Array:
    """Zeros (or False) appended along axis 1 up to `length`."""
    return jnp.pad(x, [(0, 0), (0, length - x.shape[1]), *[(0, 0)] * (x.ndim - 2)])


def joint_keys(name: str, members: Valid, absent: str) -> Bool[Array, 'b k']:
    """Which slots of a joint sequence the tokens of `name` attend to; the rule of `context_of`."""
    others = [valid for key, valid in members.items() if key != name]
    keys = jnp.any(jnp.stack(others), axis=0) if others else jnp.zeros_like(members[name])
    if absent != 'self':
        return keys
    return jnp.where(jnp.any(keys, axis=1, keepdims=True), keys, members[name])
