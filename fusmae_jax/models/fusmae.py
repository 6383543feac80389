"""Fus-MAE: encoder, feature-level fusion and decoders; pretraining forward and unmasked encoding."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Shaped

from fusmae_jax.config import Model
from fusmae_jax.input.patchify import Patches
from fusmae_jax.models.decoder import Decoder
from fusmae_jax.models.encoder import Encoder
from fusmae_jax.models.fusion import XAttnDecoder
from fusmae_jax.models.layers import Policy


class Encoded(NamedTuple):
    """What `FusMAE.encode` returns."""

    tokens: dict[str, Float[Array, 'b n d']]  # of the modalities that were given, in raster order
    cls: Float[Array, 'b d']
    pooled: Float[Array, 'b d']  # mean over the valid patch tokens of those modalities
    stages: dict[str, Array]  # named intermediates, empty unless asked for


def _take(x: Shaped[Array, 'b n p'], ids: Int[Array, 'b k']) -> Shaped[Array, 'b k p']:
    return jnp.take_along_axis(x, ids[..., None], axis=1, mode='clip')


def _mean_image(
    values: Mapping[str, Array], valid: Mapping[str, Array], gone: Mapping[str, Array]
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Samples (b,) in which a sensor is `gone` get its mean image, which is 0, with every slot valid."""
    values = {name: jnp.where(gone[name][:, None, None], 0, x) for name, x in values.items()}
    return values, {name: v | gone[name][:, None] for name, v in valid.items()}


class FusMAE(nnx.Module):
    """The model family of the paper: XAE, XAD, XAE&D, joint self-attention and the unimodal MAE.

    Which one is decided by `model.fusion` and the number of `model.modalities`.
    """

    def __init__(self, model: Model, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        policy = Policy(model.numerics, dtype)
        self.model = nnx.static(model)
        self.encoder = Encoder(model, policy, rngs=rngs)
        if model.fusion.decoder == 'xad':
            self.xad = XAttnDecoder(model, policy, rngs=rngs)
        self.decoders = nnx.Dict({name: Decoder(model, name, policy, rngs=rngs) for name in model.modalities})

    def __call__(
        self,
        patches: Mapping[str, Patches],
        order: Mapping[str, Int[Array, 'b n']],
        visible: int,
        *,
        capture: bool = False,
    ) -> tuple[dict[str, Float[Array, 'b m p']], dict[str, Array]]:
        """Encodes the visible patches and predicts the masked ones.

        Args:
            patches: all patches of every modality.
            order: a permutation of the raster indices for each modality, visible ones first.
            visible: how many come first.
            capture: also return named intermediates.

        Returns:
            Predictions for `order[name][:, visible:]`, and the intermediates (empty without `capture`).
        """
        # In the order of the configuration: jit sorts the keys of the dicts that it is given.
        patches = {name: patches[name] for name in self.model.modalities}
        ids = {name: order[name][:, :visible] for name in patches}
        taken = {
            name: Patches(_take(p.values, ids[name]), _take(p.valid, ids[name]))
            for name, p in patches.items()
        }
        valid = {name: jnp.any(p.valid, axis=2) for name, p in taken.items()}
        values = {name: p.values for name, p in taken.items()}
        if self.model.fusion.absent == 'zero_image':
            gone = {name: ~jnp.any(p.valid, axis=(1, 2)) for name, p in patches.items()}
            values, valid = _mean_image(values, valid, gone)
        latents, cls, stages = self.encoder(values, valid, ids, capture=capture)
        if self.model.fusion.decoder == 'xad':
            latents = self.xad(latents, valid)
            stages |= {f'xad/{name}': z for name, z in latents.items()} if capture else {}
        predictions = {}
        for name, z in latents.items():
            predictions[name], inner = self.decoders[name](z, valid[name], order[name], cls, capture=capture)
            stages |= {f'decoders/{name}/{key}': value for key, value in inner.items()}
        return predictions, stages

    def encode(self, patches: Mapping[str, Patches], *, capture: bool = False) -> Encoded:
        """Encodes all patches of any non-empty subset of the modalities; nothing is masked.

        A modality that is not given, or has no valid pixel in a sample, is absent there, and
        `model.fusion.absent` says what happens: the same rule, and the same numbers, both ways.
        """
        unknown = [name for name in patches if name not in self.model.modalities]
        if unknown or not patches:
            raise ValueError(
                f'encode needs one or more of {list(self.model.modalities)}, got {list(patches)}'
            )
        given = {name: patches[name] for name in self.model.modalities if name in patches}
        values = {name: p.values for name, p in given.items()}
        valid = {name: jnp.any(p.valid, axis=2) for name, p in given.items()}
        pool_valid = dict(valid)
        if self.model.fusion.absent == 'zero_image':
            batch, count, _ = next(iter(values.values())).shape
            values, valid = _mean_image(
                values, valid, {name: ~jnp.any(v, axis=1) for name, v in valid.items()}
            )
            for name in self.model.modalities:
                if name not in given:
                    values[name] = jnp.zeros((batch, count, self.model.patch_dim(name)), jnp.float32)
                    valid[name] = jnp.ones((batch, count), bool)
            # Block 1 and the stack see the modalities in the order of the configuration.
            values = {name: values[name] for name in self.model.modalities}
        tokens, cls, stages = self.encoder(values, valid, capture=capture)
        tokens = {name: tokens[name] for name in given}
        weights = jnp.concatenate([pool_valid[name] for name in given], axis=1).astype(cls.dtype)[..., None]
        total = jnp.sum(jnp.concatenate(list(tokens.values()), axis=1) * weights, axis=1)
        pooled = total / jnp.maximum(jnp.sum(weights, axis=1), 1)
        return Encoded(tokens, cls, pooled, stages)


def init_params(model: Model, key: Array, dtype: DTypeLike = jnp.float32) -> dict:
    """Fresh parameters as nested dicts of arrays; traceable, so it can be jitted with shardings."""
    return nnx.to_pure_dict(nnx.state(FusMAE(model, rngs=nnx.Rngs(key), dtype=dtype), nnx.Param))


def graph(model: Model, dtype: DTypeLike = jnp.float32) -> nnx.GraphDef:
    """The structure that `nnx.merge(graph(model), params)` turns into a FusMAE, inside traced functions."""
    abstract = nnx.eval_shape(lambda: FusMAE(model, rngs=nnx.Rngs(0), dtype=dtype))
    graphdef, params = nnx.split(abstract)
    if len(jax.tree.leaves(nnx.filter_state(params, nnx.Param))) != len(jax.tree.leaves(params)):
        raise AssertionError('the model must hold no state besides its parameters')
    return graphdef
