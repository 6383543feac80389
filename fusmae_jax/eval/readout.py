"""What is read off frozen features: linear heads, or the labels of the nearest neighbours.

A method is given training labels and, at most, a way to judge scores of the validation split. Of the test
split it is given the features alone.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from etils import epath

from fusmae_jax.errors import InputError
from fusmae_jax.eval import knn, linear_probe
from fusmae_jax.eval.evaluation_config import Knn, LinearProbe
from fusmae_jax.eval.features import Features
from fusmae_jax.eval.linear_probe import Scale
from fusmae_jax.storage import write_npz


class Variant(NamedTuple):
    """One pooled feature of the three splits, with or without a norm before the head."""

    pooled: str
    norm: bool
    train: Features
    val: Features | None  # None where nothing has to be settled
    test: Features


class Outcome(NamedTuple):
    """What one label subset led to."""

    scores: dict[int, np.ndarray]  # head seed -> (test records, classes)
    chosen: dict[str, float]
    heads: dict[str, np.ndarray]  # what is stored of it
    at_edge: bool = False  # the learning rate settled on is the lowest or highest of the sweep


# From a variant, the positions of the labelled training records, their labels (records, classes), and a
# function from scores of the validation split to a number.
Method = Callable[[Variant, np.ndarray, np.ndarray, Callable[[np.ndarray], float] | None], Outcome]


def fit_scale(train: Features) -> Scale:
    """The statistics of labelled training features, over the records with a valid pixel alone.

    Raises:
        InputError: there is no such record.
    """
    if not train.valid.any():
        raise InputError(
            f'batch_norm or standardise: none of {len(train.valid)} labelled training records has a valid '
            'pixel, so there are no statistics to scale with; take more labels or give other sensors'
        )
    return linear_probe.batch_norm(train.values[train.valid])


def scaled(features: Features, scale: Scale | None) -> np.ndarray:
    """The values (records, width) as a head is given them; those of a record without a valid pixel are 0.

    A head gives such a record its bias, which is the most that can be said of it. Scaled like the others it
    would lie at -mean / std, further out than any.
    """
    if scale is None:
        return features.values
    return np.where(features.valid[:, None], scale(features.values), np.float32(0))


def _labelled(features: Features, positions: np.ndarray) -> Features:
    return Features(features.values[positions], features.valid[positions])


def probe(
    config: LinearProbe,
    variant: Variant,
    positions: np.ndarray,
    labels: np.ndarray,
    val: Callable[[np.ndarray], float] | None,
) -> Outcome:
    """Trains a sweep of linear heads, settles it on the validation split, scores the test split."""
    assert variant.val is not None and val is not None
    swept = linear_probe.points(config.learning_rates, config.weight_decays, config.head_seeds)
    train = _labelled(variant.train, positions)
    scale = fit_scale(train) if variant.norm else None
    smoothing = config.label_smoothing if config.data.kind == 'single_label' else 0.0
    recipe = linear_probe.Recipe(config.data.kind, config.decay, smoothing)
    order = linear_probe.batch_order(len(positions), config.batch_size, config.epochs)
    heads = linear_probe.train(scaled(train, scale), labels, order, swept, recipe)
    settled = linear_probe.settle(heads, swept, scaled(variant.val, scale), val)
    test, own = scaled(variant.test, scale), list(settled.heads.values())
    stored = {'kernel': np.asarray(heads.kernel)[:, own], 'bias': np.asarray(heads.bias)[own]}
    stored['seed'] = np.array(list(settled.heads))
    stored |= {} if scale is None else scale._asdict()
    return Outcome(
        {seed: linear_probe.scores(heads, test, point) for seed, point in settled.heads.items()},
        {'learning_rate': settled.learning_rate, 'weight_decay': settled.weight_decay},
        stored,
        settled.at_edge,
    )


def neighbours(
    config: Knn,
    variant: Variant,
    positions: np.ndarray,
    labels: np.ndarray,
    val: Callable[[np.ndarray], float] | None = None,
) -> Outcome:
    """Scores the test split by the labels of the nearest training records; nothing is settled."""
    train = _labelled(variant.train, positions)
    scale = fit_scale(train) if variant.norm else None
    bank, queries = scaled(train, scale), scaled(variant.test, scale)
    found = knn.knn_scores(queries, bank, labels, config.k, config.temperature)
    return Outcome({0: found}, {}, {})


def store(outcome: Outcome, file: epath.Path) -> None:
    """Writes the heads of an outcome, if it has any; whole or not at all."""
    if not outcome.heads:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    write_npz(file, outcome.heads | {name: np.array(x) for name, x in outcome.chosen.items()})
