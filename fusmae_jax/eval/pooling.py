"""Pooled features of a model, or of the raw bands, for each image: traceable functions of a batch."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from fusmae_jax.config.run import Model
from fusmae_jax.errors import InputError
from fusmae_jax.input.contract import Contract
from fusmae_jax.input.prepare import Patches
from fusmae_jax.input.units import validity
from fusmae_jax.models.blocks import Paths
from fusmae_jax.models.fusmae import FusMAE

BAND_STATISTICS = 'band_stats'
OF_CLS = ('cls', 'last4_cls', 'mean_all')
Batch = Mapping[str, Array]
# From weights and a batch to features by name (b, width) and which records have a valid pixel (b,).
Function = Callable[[Any, Batch], tuple[dict[str, Array], Array]]


def pool(
    model: FusMAE, patches: Mapping[str, Patches], names: Sequence[str], paths: Paths | None = None
) -> tuple[dict[str, Float[Array, 'b _']], Array]:
    """Pooled features of a batch, by name, and which records have any valid patch; traceable.

    `mean_patch`         mean over the valid patch tokens of the modalities given
    `mean_all`           the same with the CLS token among them
    `concat_per_sensor`  a mean for each of these modalities, side by side in the order of the model
    `cls`                the CLS token
    `last4_cls`          the CLS tokens after each of the last four blocks and the final norm, side by side

    `paths` are for stochastic depth in the blocks after the first.
    """
    deep = 'last4_cls' in names
    encoded = model.encode(patches, paths=paths, capture=deep)
    tokens = dict(encoded.tokens)
    valid = {name: patches[name].any_valid for name in tokens}
    if model.model.fusion.encoder == 'stack':  # every modality has the same tokens: one stream
        # All of them together would count each token as often as there are sensors.
        tokens = {'all': next(iter(tokens.values()))}
        valid = {'all': jnp.any(jnp.stack(list(valid.values())), axis=0)}
    weights = {name: v[..., None] for name, v in valid.items()}
    sums = {n: jnp.sum(jnp.where(weights[n], z.astype(jnp.float32), 0), axis=1) for n, z in tokens.items()}
    counts = {name: jnp.sum(w, axis=1, dtype=jnp.float32) for name, w in weights.items()}
    total, count = (jnp.sum(jnp.stack(list(x.values())), axis=0) for x in (sums, counts))
    pooled = {
        'mean_patch': total / jnp.maximum(count, 1),
        'concat_per_sensor': jnp.concatenate([sums[n] / jnp.maximum(counts[n], 1) for n in sums], axis=-1),
    }
    if model.model.cls:
        cls = encoded.cls.astype(jnp.float32)
        pooled |= {'mean_all': (total + cls) / (count + 1), 'cls': cls}
    if deep:
        pooled['last4_cls'] = _last4(model, encoded.stages)
    seen = count[:, 0] > 0
    return {name: jnp.where(seen[:, None], pooled[name], 0) for name in names}, seen


def _last4(model: FusMAE, stages: Mapping[str, Array]) -> Float[Array, 'b _']:
    """CLS stands last among the tokens of every block."""
    first = stages['block1'][:, -1][:, None]
    ends = jnp.concatenate([first, jnp.moveaxis(stages['blocks/x'][:, :, -1], 0, 1)], axis=1)[:, -4:]
    ends = model.encoder.norm(ends) if model.model.final_norm else ends
    return ends.astype(jnp.float32).reshape(ends.shape[0], -1)


def check_pooled(names: Sequence[str], model: Model, system: str) -> None:
    """Raises InputError for a pooled feature that a model does not have."""
    if 'last4_cls' in names and model.depth < 4:
        raise InputError(f"features: 'last4_cls' needs four blocks, {system} has {model.depth}")
    if not model.cls and (missing := [name for name in names if name in OF_CLS]):
        raise InputError(f"features: {missing[0]!r} needs a CLS token, {system} has none; take 'mean_patch'")


def band_statistics(contract: Contract, modalities: Sequence[str]) -> tuple[tuple[str, ...], Function]:
    """Mean and standard deviation of each band's valid pixels, as stored and on the native grid: no encoder.

    Returns:
        The record fields that are read, and a traceable function of nothing ({}) and a batch of them that
        gives the feature (b, 2 x bands) and which records have a valid pixel. A band without one has 0 and 0.
    """
    groups = {field: g for name in modalities for field, g in contract.groups.items() if g.modality == name}

    def run(_: Any, batch: Batch) -> tuple[dict[str, Array], Array]:
        means, deviations, some = [], [], []
        for field, group in groups.items():
            stored, valid = batch[field].astype(jnp.float32), validity(batch[field], group)
            count = jnp.sum(valid, axis=(1, 2), dtype=jnp.float32)
            mean = jnp.sum(jnp.where(valid, stored, 0), axis=(1, 2)) / jnp.maximum(count, 1)
            # Two passes: the difference of two sums of squares loses what a dark band varies by.
            error = jnp.where(valid, stored - mean[:, None, None], 0)
            variance = jnp.sum(error**2, axis=(1, 2)) / jnp.maximum(count, 1)
            means.append(mean)
            deviations.append(jnp.sqrt(variance))
            some.append(jnp.any(count > 0, axis=1))
        values = jnp.concatenate([*means, *deviations], axis=-1)
        return {BAND_STATISTICS: values}, jnp.any(jnp.stack(some), axis=0)

    return tuple(groups), run
