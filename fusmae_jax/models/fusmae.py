"""Fus-MAE: encoder, feature-level fusion and decoders; pretraining forward and unmasked encoding."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Shaped

from fusmae_jax.config.run import Model
from fusmae_jax.input.prepare import Patches
from fusmae_jax.models.blocks import Paths
from fusmae_jax.models.decoder import Decoder
from fusmae_jax.models.encoder import STACK, Encoder, split_stack, stack_patches, streams
from fusmae_jax.models.fusion import XAttnDecoder, fuse_joint_latents, fuse_latents
from fusmae_jax.models.layers import Arithmetic
from fusmae_jax.models.masking import Slots, hidden_patches, slots_by_modality
from fusmae_jax.models.multimae import Context, MultiMaeDecoder, join


class Encoded(NamedTuple):
    """What `FusMAE.encode` returns."""

    # Of the modalities that were given, in raster order; the same ones for each where they are stacked.
    tokens: dict[str, Float[Array, 'b n d']]
    cls: Float[Array, 'b d']
    pooled: Float[Array, 'b d']  # mean over the valid patch tokens of those modalities
    stages: dict[str, Array]  # named intermediates, empty unless asked for


class FusMAE(nnx.Module):
    """The model family of the paper and its baselines.

    XAE, XAD, XAE&D, joint self-attention, the unimodal MAE, SatViT's stacked bands, MultiMAE's decoders:
    `model.fusion` and the number of `model.modalities` say which.
    """

    def __init__(self, model: Model, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        arithmetic = Arithmetic.of(model, dtype)
        self.model = nnx.static(model)
        self.encoder = Encoder(model, arithmetic, rngs=rngs)
        if model.fusion.decoder == 'xad':
            self.xad = nnx.Dict(
                {name: XAttnDecoder(model, arithmetic, rngs=rngs) for name in model.modalities}
            )

        def decoder(name: str, size: int) -> nnx.Module:
            if model.fusion.decoder == 'multimae':
                return MultiMaeDecoder(model, name, arithmetic, rngs=rngs)
            return Decoder(model, size, arithmetic, rngs=rngs)

        self.decoders: Any = nnx.Dict({name: decoder(name, size) for name, size in streams(model).items()})

    def __call__(
        self,
        patches: Mapping[str, Patches],
        order: Mapping[str, Int[Array, 'b n']],
        visible: int,
        *,
        capture: bool = False,
    ) -> tuple[dict[str, Float[Array, 'b m _']], dict[str, Array]]:
        """Encodes the visible patches and predicts the masked ones.

        Args:
            patches: all patches of every modality.
            order: a permutation of the raster indices for each modality, visible ones first. Stacked
                modalities must have the same one.
            visible: how many come first.
            capture: also return named intermediates.

        Returns:
            Predictions for `order[name][:, visible:]`, and the intermediates (empty without `capture`).
        """
        values, valid, ids, order = self._visible(patches, order, visible)
        latents, cls, stages = self.encoder(values, valid, ids, capture=capture)
        if self.model.fusion.decoder == 'xad':
            latents = fuse_latents(self.xad, latents, valid, self.model.fusion.absent)
            stages |= {f'xad/{name}': z for name, z in latents.items()} if capture else {}
        context = join(latents, valid, ids, cls) if self.model.fusion.decoder == 'multimae' else None
        predictions, start = {}, 0
        for name, z in latents.items():
            if context is None:
                decoded = self.decoders[name](z, valid[name], order[name], cls, capture=capture)
            else:
                part = slice(start, start := start + visible)
                decoded = self.decoders[name](context, part, order[name][:, visible:], capture=capture)
            predictions[name], inner = decoded
            stages |= {f'decoders/{name}/{key}': value for key, value in inner.items()}
        if self.model.fusion.encoder == 'stack':
            predictions = split_stack(self.model, predictions[STACK])
        return predictions, stages

    def _visible(
        self, patches: Mapping[str, Patches], order: Mapping[str, Array], visible: int
    ) -> tuple[dict[str, Array], dict[str, Array], dict[str, Array], Mapping[str, Array]]:
        """Of each stream: the visible patches, which of them hold anything, their ids, the whole order."""
        # In the order of the configuration: jit sorts the keys of the dicts that it is given.
        patches = {name: patches[name] for name in self.model.modalities}
        ids = {name: order[name][:, :visible] for name in patches}
        taken = {
            name: Patches(_take(p.values, ids[name]), _take(p.valid, ids[name]))
            for name, p in patches.items()
        }
        if self.model.fusion.encoder == 'stack':
            first = next(iter(patches))
            stacked, there = stack_patches(self.model, taken)
            return {STACK: stacked}, {STACK: there}, {STACK: ids[first]}, {STACK: order[first]}
        valid = {name: p.any_valid for name, p in taken.items()}
        values = {name: p.values for name, p in taken.items()}
        if self.model.fusion.absent == 'zero_image':
            gone = {name: ~jnp.any(p.valid, axis=(1, 2)) for name, p in patches.items()}
            values, valid = _mean_image(values, valid, gone)
        return values, valid, ids, order

    def joint(
        self, patches: Mapping[str, Patches], slots: Slots, *, capture: bool = False
    ) -> tuple[dict[str, Float[Array, 'b n _']], dict[str, Array]]:
        """Encodes the patches in the slots of a joint sequence and predicts every patch.

        Args:
            patches: all patches of every modality.
            slots: which of them are visible.
            capture: also return named intermediates.

        Returns:
            Predictions in raster order, of which only those of hidden patches mean anything (see
            `masking.hidden_patches`), and the intermediates (empty without `capture`).
        """
        names, count = list(self.model.modalities), self.model.num_patches
        members, hidden = slots_by_modality(slots, names), hidden_patches(slots, names, count)
        values = {name: _take(patches[name].values, slots.position) for name in names}
        if self.model.fusion.absent == 'zero_image':
            gone = {name: ~jnp.any(patches[name].valid, axis=(1, 2)) for name in names}
            values, _ = _mean_image(values, members, gone)
        latents, cls, stages = self.encoder.joint(values, members, slots.position, capture=capture)
        fused = dict.fromkeys(names, latents)
        if self.model.fusion.decoder == 'xad':
            fused = fuse_joint_latents(self.xad, latents, members, self.model.fusion.absent)
            stages |= {f'xad/{name}': z for name, z in fused.items()} if capture else {}
        every = jnp.broadcast_to(jnp.arange(count, dtype=slots.position.dtype)[None], hidden[names[0]].shape)
        order = jnp.concatenate([slots.position, every], axis=1)
        predictions = {}
        for name, decoder in self.decoders.items():
            if self.model.fusion.decoder == 'multimae':
                context = Context(latents, members, slots.position, cls)
                part = slice(0, latents.shape[1])
                decoded = decoder(context, part, every, hidden[name], capture=capture)
            else:
                decoded = decoder(fused[name], members[name], order, cls, hidden[name], capture=capture)
            predictions[name], inner = decoded
            stages |= {f'decoders/{name}/{key}': value for key, value in inner.items()}
        return predictions, stages

    def encode(
        self, patches: Mapping[str, Patches], *, paths: Paths | None = None, capture: bool = False
    ) -> Encoded:
        """Encodes all patches of any non-empty subset of the modalities; nothing is masked.

        A modality that is not given, or has no valid pixel in a sample, is absent there, and
        `model.fusion.absent` says what happens: the same rule, and the same numbers, both ways. `paths` are
        for stochastic depth in the blocks after the first (`blocks.sample_paths`).
        """
        unknown = [name for name in patches if name not in self.model.modalities]
        if unknown or not patches:
            raise ValueError(
                f'encode needs one or more of {list(self.model.modalities)}, got {list(patches)}'
            )
        given = {name: patches[name] for name in self.model.modalities if name in patches}
        if self.model.fusion.encoder == 'stack':
            stacked, there = stack_patches(self.model, given)
            latents, cls, stages = self.encoder(
                {STACK: stacked}, {STACK: there}, paths=paths, capture=capture
            )
            pooled = _mean_token(latents, {STACK: there})
            return Encoded(dict.fromkeys(given, latents[STACK]), cls, pooled, stages)
        values = {name: p.values for name, p in given.items()}
        valid = {name: p.any_valid for name, p in given.items()}
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
        tokens, cls, stages = self.encoder(values, valid, paths=paths, capture=capture)
        tokens = {name: tokens[name] for name in given}
        return Encoded(tokens, cls, _mean_token(tokens, pool_valid), stages)


def _take(x: Shaped[Array, 'b n p'], ids: Int[Array, 'b k']) -> Shaped[Array, 'b k p']:
    return jnp.take_along_axis(x, ids[..., None], axis=1, mode='clip')


def _mean_image(
    values: Mapping[str, Array], valid: Mapping[str, Array], gone: Mapping[str, Array]
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Samples (b,) in which a sensor is `gone` get its mean image, which is 0, with every slot valid."""
    values = {name: jnp.where(gone[name][:, None, None], 0, x) for name, x in values.items()}
    return values, {name: v | gone[name][:, None] for name, v in valid.items()}


def _mean_token(tokens: Mapping[str, Array], valid: Mapping[str, Array]) -> Float[Array, 'b d']:
    """The mean over the valid tokens of all streams."""
    dtype = next(iter(tokens.values())).dtype
    weights = jnp.concatenate([valid[name] for name in tokens], axis=1).astype(dtype)[..., None]
    total = jnp.sum(jnp.concatenate(list(tokens.values()), axis=1) * weights, axis=1)
    return total / jnp.maximum(jnp.sum(weights, axis=1), 1)


def init_params(model: Model, key: Array, dtype: DTypeLike = jnp.float32) -> dict[str, Any]:
    """Fresh parameters as nested dicts of arrays; traceable, so it can be jitted with shardings."""
    return nnx.to_pure_dict(nnx.state(FusMAE(model, rngs=nnx.Rngs(key), dtype=dtype), nnx.Param))


def graph(model: Model, dtype: DTypeLike = jnp.float32) -> nnx.GraphDef:
    """The structure that `nnx.merge(graph(model), params)` turns into a FusMAE, inside traced functions."""
    return _structure(model, dtype)[0]


def param_shapes(model: Model, dtype: DTypeLike = jnp.float32) -> dict[str, Any]:
    """Shapes and dtypes of what `init_params` draws, as nested dicts of `jax.ShapeDtypeStruct`."""
    return jax.tree.map(lambda shape: shape, _structure(model, dtype)[1])


def _structure(model: Model, dtype: DTypeLike) -> tuple[nnx.GraphDef, dict[str, Any]]:
    """Graph and shapes; traced once for each model, since that takes a third of a second."""
    key = repr(model), jnp.dtype(dtype).name, jax.config.read('jax_enable_x64')
    if key not in _STRUCTURES:
        # Abstract: a structure needs no numbers, and drawing them would cost seconds.
        abstract = nnx.eval_shape(lambda: FusMAE(model, rngs=nnx.Rngs(0), dtype=dtype))
        graphdef, state = nnx.split(abstract)
        if len(jax.tree.leaves(nnx.filter_state(state, nnx.Param))) != len(jax.tree.leaves(state)):
            raise AssertionError('the model must hold no state besides its parameters')
        _STRUCTURES[key] = graphdef, nnx.to_pure_dict(state)
    return _STRUCTURES[key]


# By settings (as text: a mapping has no hash), dtype and the width of numbers.
_STRUCTURES: dict[tuple[str, str, bool], tuple[nnx.GraphDef, dict[str, Any]]] = {}
