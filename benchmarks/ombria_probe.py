"""Flood probes of `ombria_ablations.py`: linear heads on frozen tokens with few labels and with all.

patch   is more than half of these 16 x 16 px flooded? The tokens of that patch, sensors side by side; images
        after a flood only.
image   is any patch of this image so? The mean of its tokens, sensor by sensor; before and after.

Labels come region by region, as someone would draw them: a share of the training regions, whole. Heads are
logistic regressions on standardised features, run to their optimum, so that no schedule decides; their
penalty is settled on the validation regions.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score

from benchmarks.ombria_swap import Split
from fusmae_jax.encoders.pretrained import Pretrained
from fusmae_jax.input import contract as contracts
from fusmae_jax.input.prepare import fields, make_prepare
from fusmae_jax.models import fusmae

LEVELS = ('patch', 'image')
INPUTS = (('s1',), ('s2',), ('s1', 's2'))
SHARES = {0.01: 5, 0.05: 5, 0.1: 5, 1.0: 1}  # of the training regions -> draws
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # C of the logistic regression


class Examples(NamedTuple):
    """What a head is given at one level."""

    features: np.ndarray  # (n, width) float32
    labels: np.ndarray  # (n,) bool
    region: np.ndarray  # (n,)


class Key(NamedTuple):
    """A head."""

    level: str
    inputs: tuple[str, ...]
    share: float
    draw: int

    def __str__(self) -> str:
        return f'{self.level}|{"+".join(self.inputs)}|{self.share:g}|{self.draw}'


def tokens(
    model: Pretrained, params: Any, data: str, split: Split, every: Sequence[tuple[str, ...]] = INPUTS
) -> dict[tuple[str, ...], np.ndarray]:
    """Inputs -> tokens of all images (n, patches, sensors * width); without `params` their pixels."""
    contract, names = contracts.read(data), tuple(model.config.model.modalities)
    prepare = make_prepare(model.config, contract, None)
    graphdef, needed = fusmae.graph(model.config.model, model.dtype), fields(model.config, contract)
    found = {}
    for inputs in every:

        @jax.jit
        def run(params: Any, images: Mapping[str, Any], inputs: tuple[str, ...] = inputs) -> Any:
            patches = prepare(images, None)
            given = {name: patches[name] for name in names if name in inputs}
            if params is None:
                return jnp.concatenate([given[name].values for name in inputs], axis=-1)
            encoded = nnx.merge(graphdef, params).encode(given).tokens
            return jnp.concatenate([encoded[name] for name in inputs], axis=-1)

        parts = [run(params, part) for part in batches({name: split.images[name] for name in needed})]
        found[inputs] = np.concatenate(parts)[: len(split.region)]
    return found


def batches(arrays: Mapping[str, np.ndarray], size: int = 62) -> Iterator[dict[str, np.ndarray]]:
    """Batches of one size, so that one program serves them; the last image fills up the last batch."""
    count = len(next(iter(arrays.values())))
    for start in range(0, count, size):
        rows = np.minimum(np.arange(start, start + size), count - 1)
        yield {name: x[rows] for name, x in arrays.items()}


def examples(level: str, values: np.ndarray, split: Split) -> Examples:
    """The examples of a level from the tokens (n, patches, width) of a split."""
    if level == 'image':
        return Examples(values.mean(axis=1), split.flooded.max(axis=(1, 2)) > 0, split.region)
    after = split.after
    flooded = split.flooded[after].reshape(after.sum(), -1)
    region = np.repeat(split.region[after], flooded.shape[1])
    return Examples(values[after].reshape(len(region), -1), flooded.reshape(-1) > 0, region)


def drawn(region: np.ndarray, share: float, draw: int) -> np.ndarray:
    """The examples of a share of the regions: those of 5 % are among those of 10 %."""
    names = np.random.default_rng([20, draw]).permutation(np.unique(region))
    return np.isin(region, names[: max(2, round(share * len(names)))])


def heads(
    values: Mapping[str, Mapping[tuple[str, ...], np.ndarray]], splits: Mapping[str, Split]
) -> Iterator[tuple[Key, dict[str, np.ndarray]]]:
    """Every head with its scores of each split but the training one.

    Args:
        values: split -> inputs -> tokens; `train` and `val` at least.
        splits: split -> its pairs.
    """
    for level in LEVELS:
        for names in values['train']:
            every = {split: examples(level, values[split][names], splits[split]) for split in values}
            for share, draws in SHARES.items():
                for draw in range(draws):
                    yield Key(level, names, share, draw), _head(every, share, draw)


def _head(every: Mapping[str, Examples], share: float, draw: int) -> dict[str, np.ndarray]:
    train, val = every['train'], every['val']
    taken = drawn(train.region, share, draw)
    features, labels = train.features[taken], train.labels[taken]
    mean, std = features.mean(axis=0), features.std(axis=0) + 1e-6
    scaled = {name: (one.features - mean) / std for name, one in every.items() if name != 'train'}
    if labels.all() or not labels.any():
        return {name: np.zeros(len(x), np.float32) for name, x in scaled.items()}
    fitted = [
        LogisticRegression(C=penalty, max_iter=1000).fit((features - mean) / std, labels)
        for penalty in PENALTIES
    ]
    reached = [average_precision_score(val.labels, head.decision_function(scaled['val'])) for head in fitted]
    best = fitted[int(np.argmax(reached))]
    return {name: best.decision_function(x).astype(np.float32) for name, x in scaled.items()}
