"""What the radar image is worth to masked optical patches: the true one against that of another region."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fusmae_jax.encoders.pretrained import Pretrained
from fusmae_jax.eval.intervals import Interval, Replicates, difference, intervals, resample
from fusmae_jax.eval.metrics import means
from fusmae_jax.eval.reliance.inputs import other_cluster
from fusmae_jax.input import contract as contracts
from fusmae_jax.input.prepare import fields, make_prepare
from fusmae_jax.input.source import Source, read_index
from fusmae_jax.models import fusmae
from fusmae_jax.models.masking import num_visible
from fusmae_jax.train import losses

DRAWS = 4  # masks, and exchanges, of each image
METRIC = 's2'
TRUE, OTHER, ALONE, MEAN = 'XAE, true S1', 'XAE, S1 of another region', 'S2-only MAE', 'training mean'


class Split(NamedTuple):
    """The pairs of a split, in its order."""

    images: dict[str, np.ndarray]  # field -> (n, rows, columns, bands) uint8
    region: np.ndarray  # (n,)
    after: np.ndarray  # (n,) bool
    flooded: np.ndarray  # (n, rows, columns) of patches


def read_split(data: str, split: str) -> Split:
    """All pairs of a split, in memory."""
    source = Source(data, split, ('s1', 's2'))
    records = [source[i] for i in range(len(source))]
    images = {name: np.stack([one[name] for one in records]) for name in ('s1', 's2')}
    index = read_index(data, split, ('region', 'after', 'flooded'))
    return Split(images, index['region'], index['after'] > 0, index['flooded'])


def exchange(split: Split, seed: int) -> np.ndarray:
    """For each pair the position of one of another region, from the same side of the flood; (n,)."""
    taken = np.empty(len(split.region), np.intp)
    for side in (False, True):
        of_side = np.flatnonzero(split.after == side)
        taken[of_side] = of_side[other_cluster(split.region[of_side], seed)]
    return taken


def order(count: int, patches: int, sensor: int, draw: int) -> np.ndarray:
    """A random order of the patches of each image, visible ones first: (count, patches) int32."""
    noise = np.random.default_rng([draw, sensor]).random((count, patches))
    return noise.argsort(axis=1).astype(np.int32)


def optical_errors(model: Pretrained, data: str) -> Any:
    """The jitted function (images, order by sensor) -> what `_sums` gives of the masked optical patches."""
    config = model.config
    contract = contracts.read(data)
    prepare, graphdef = make_prepare(config, contract, None), fusmae.graph(config.model, model.dtype)
    visible, needed = num_visible(config.model.num_patches, config.masking), fields(config, contract)

    @jax.jit
    def run(params: Any, images: Mapping[str, Any], chosen: Mapping[str, Any]) -> Any:
        patches = prepare(images, None)
        predicted, _ = nnx.merge(graphdef, params)(patches, chosen, visible)
        target = losses.masked_targets(patches['s2'], chosen['s2'], visible)
        return tuple(
            jnp.sum(jnp.where(target.valid, x, 0), axis=(1, 2))
            for x in (
                (predicted['s2'] - target.values) ** 2,
                target.values**2,
                jnp.ones_like(target.values),
            )
        )

    def errors(images: Mapping[str, Any], chosen: Mapping[str, Any]) -> tuple[np.ndarray, ...]:
        given = {name: images[name] for name in needed}
        return jax.device_get(
            run(model.params, given, {name: chosen[name] for name in config.model.modalities})
        )

    return errors


def measure(both: Pretrained, alone: Pretrained, data: str, split: Split) -> dict[str, Replicates]:
    """Mean squared error of masked optical patches, in z-scores, for each of four systems.

    The optical masks are the same for all of them, and the radar masks for both that see radar; `training
    mean` predicts 0. Every image counts with `DRAWS` masks, for each of which radar is exchanged anew.
    """
    fused, optical = optical_errors(both, data), optical_errors(alone, data)
    count, patches = len(split.region), both.config.model.num_patches
    totals: dict[str, np.ndarray] = dict.fromkeys((TRUE, OTHER, ALONE, MEAN), np.zeros(count))
    weights = np.zeros(count)
    for draw in range(DRAWS):
        chosen = {name: order(count, patches, i, draw) for i, name in enumerate(('s1', 's2'))}
        swapped = split.images | {'s1': split.images['s1'][exchange(split, draw)]}
        true, squares, weight = fused(split.images, chosen)
        errors = {TRUE: true, OTHER: fused(swapped, chosen)[0], MEAN: squares}
        errors[ALONE] = optical(split.images, chosen)[0]
        totals = {name: totals[name] + np.asarray(x, np.float64) for name, x in errors.items()}
        weights += weight
    return {name: resample(means({METRIC: x}, weights), split.region) for name, x in totals.items()}


def lines(replicates: Mapping[str, Replicates]) -> dict[str, Interval]:
    """What is reported: the errors, and the differences that matter."""
    each = {name: intervals(one)[METRIC] for name, one in replicates.items()}
    for first, second in ((TRUE, OTHER), (TRUE, ALONE), (OTHER, ALONE)):
        each[f'{first} minus {second}'] = intervals(difference(replicates[first], replicates[second]))[METRIC]
    return each
