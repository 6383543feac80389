"""A linear probe of single patches: is more than half of these 16 x 16 pixels flooded?"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.ombria_swap import Split
from fusmae_jax.encoders.settings import EncoderSettings
from fusmae_jax.encoders.systems import System, fit
from fusmae_jax.eval import linear_probe
from fusmae_jax.eval.intervals import Replicates, average, resample
from fusmae_jax.eval.metrics import multi_label, values
from fusmae_jax.input import contract as contracts
from fusmae_jax.input.prepare import fields, make_prepare
from fusmae_jax.models import fusmae

CLASSES, METRIC = ('flooded',), 'ap_micro'
RATES, SEEDS, EPOCHS, BATCH = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1), (0, 1, 2), 20.0, 512


class Patches(NamedTuple):
    """The patches of the pairs that were taken after the flood."""

    features: np.ndarray  # (patches, width) float32
    labels: np.ndarray  # (patches, 1) uint8
    region: np.ndarray  # (patches,)


def features(system: System, sensors: Sequence[str], raw: bool, data: str, split: Split) -> Patches:
    """What a system gives for each patch: its tokens of all sensors side by side, or with `raw` its pixels.

    The raw pixels are those that the system would see: normalised, on its own grid. Nothing is masked.
    """
    assert system.model is not None
    contract = contracts.read(data)
    config = fit(system.model, contract, sensors, EncoderSettings(), data).config
    prepare = make_prepare(config, contract, None)
    graphdef = fusmae.graph(system.model.config.model, system.model.dtype)

    @jax.jit
    def run(params: Any, images: Mapping[str, Any]) -> Any:
        patches = prepare(images, None)
        if raw:
            return jnp.concatenate([patches[name].values for name in sensors], axis=-1)
        tokens = nnx.merge(graphdef, params).encode(patches).tokens
        return jnp.concatenate([tokens[name] for name in sensors], axis=-1)

    after = split.after
    values = run(system.model.params, {name: split.images[name][after] for name in fields(config, contract)})
    flooded = split.flooded[after]
    region = np.repeat(split.region[after], flooded[0].size)
    return Patches(np.asarray(values).reshape(len(region), -1), flooded.reshape(-1, 1), region)


def probe(train: Patches, val: Patches, test: Patches) -> tuple[Replicates, float]:
    """Average precision on the test regions, mean over the head seeds; and the learning rate.

    Features are standardised with the training patches; the learning rate is settled on `val`.
    """
    scale = linear_probe.batch_norm(train.features)
    swept = linear_probe.points(RATES, (0.0,), SEEDS)
    steps = linear_probe.batch_order(len(train.labels), BATCH, EPOCHS)
    heads = linear_probe.train(
        scale(train.features), train.labels, steps, swept, linear_probe.Recipe('multi_label')
    )
    settled = linear_probe.settle(heads, swept, scale(val.features), functools.partial(precision, val))
    runs = []
    for point in settled.heads.values():
        scores = linear_probe.scores(heads, scale(test.features), point)
        runs.append(resample(multi_label(scores, test.labels, CLASSES, threshold=0.0), test.region))
    return average(runs), settled.learning_rate


def precision(patches: Patches, scores: np.ndarray) -> float:
    """The average precision of scores (patches, 1)."""
    return values(multi_label(scores, patches.labels, CLASSES, threshold=0.0))[METRIC]
