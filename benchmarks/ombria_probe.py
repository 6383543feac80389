"""Flood probes of `ombria_ablations.py`: linear heads on frozen tokens with few labels and with all.

patch   is more than half of this patch of 256 m flooded? Its tokens, sensors side by side; images after a
        flood only.
image   is more than half of any patch of 160 m flooded? The mean of all tokens, sensor by sensor; images from
        before a flood and from after it.

Labels come region by region, as someone would draw them: a share of the training regions, whole. Heads are
logistic regressions on standardised features, run to their optimum, so that no schedule decides; their
penalty is settled on the validation regions.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score

from benchmarks import ombria_set
from benchmarks.ombria_swap import Split
from fusmae_jax.encoders.pretrained import Pretrained
from fusmae_jax.input import contract as contracts
from fusmae_jax.input.prepare import fields, make_prepare
from fusmae_jax.models import fusmae

GRID = 5  # patches along a side
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
    """Inputs -> what there is of each of the GRID x GRID patches, (n, patches, sensors * width).

    That is its token or, where a model has smaller patches, the mean of theirs; without `params` its pixels.
    """
    contract, names = contracts.read(data), tuple(model.config.model.modalities)
    prepare = make_prepare(model.config, contract, None)
    graphdef, needed = fusmae.graph(model.config.model, model.dtype), fields(model.config, contract)
    result = {}
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
        result[inputs] = on_grid(np.concatenate(parts)[: len(split.region)])
    return result


def on_grid(values: np.ndarray) -> np.ndarray:
    """Patches (n, rows * columns, width) of a square grid to GRID x GRID ones: means of those within."""
    images, count, width = values.shape
    within = math.isqrt(count) // GRID
    assert (GRID * within) ** 2 == count
    return values.reshape(images, GRID, within, GRID, within, width).mean((2, 4)).reshape(images, -1, width)


def batches(arrays: Mapping[str, np.ndarray], size: int = 62) -> Iterator[dict[str, np.ndarray]]:
    """Batches of one size, so that one program serves them; the last image fills up the last batch."""
    count = len(next(iter(arrays.values())))
    for start in range(0, count, size):
        rows = np.minimum(np.arange(start, start + size), count - 1)
        yield {name: x[rows] for name, x in arrays.items()}


def flooded(npz: str, split: Split) -> np.ndarray:
    """The labels of all patches of a split, (images, patches) bool: more than half of the area is flooded."""
    arrays = ombria_set.read(npz)
    rows = {key: i for i, key in enumerate(zip(arrays['region'].tolist(), arrays['after'].tolist()))}
    taken = [rows[key] for key in zip(split.region.tolist(), split.after.tolist())]
    masks = np.unpackbits(arrays['flood'][taken], axis=-1) * split.after[:, None, None]
    parts = overlap(GRID, ombria_set.SIZE)
    return (np.einsum('ir,nrc,jc->nij', parts, masks, parts) > 0.5).reshape(len(taken), -1)


def overlap(parts: int, length: int) -> np.ndarray:
    """The share of each of some equal parts that each of `length` pixels covers, (parts, length)."""
    edges, pixels = np.arange(parts + 1) * length / parts, np.arange(length)
    low, high = np.maximum(edges[:-1, None], pixels), np.minimum(edges[1:, None], pixels + 1)
    return np.maximum(high - low, 0) * parts / length


def examples(level: str, values: np.ndarray, patches: np.ndarray, split: Split) -> Examples:
    """The examples of a level from tokens (images, patches, width) and the labels of the patches."""
    if level == 'image':
        return Examples(values.mean(axis=1), split.flooded.max(axis=(1, 2)) > 0, split.region)
    after = split.after
    region = np.repeat(split.region[after], patches.shape[1])
    return Examples(values[after].reshape(len(region), -1), patches[after].reshape(-1), region)


def drawn(region: np.ndarray, share: float, draw: int) -> np.ndarray:
    """The examples of a share of the regions: those of 5 % are among those of 10 %."""
    names = np.random.default_rng([20, draw]).permutation(np.unique(region))
    return np.isin(region, names[: max(2, round(share * len(names)))])


def heads(
    values: Mapping[str, Mapping[tuple[str, ...], np.ndarray]],
    labels: Mapping[str, np.ndarray],
    splits: Mapping[str, Split],
) -> Iterator[tuple[Key, dict[str, np.ndarray]]]:
    """Every head with its scores of each split but the training one.

    Args:
        values: split -> inputs -> tokens; `train` and `val` at least.
        labels: split -> those of its patches.
        splits: split -> its pairs.
    """
    for level in LEVELS:
        for names in values['train']:
            every = {
                split: examples(level, values[split][names], labels[split], splits[split]) for split in values
            }
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
