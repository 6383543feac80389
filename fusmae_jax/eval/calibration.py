"""How far probabilities can be believed: temperature, calibration error, label sets that keep a promise.

Temperature (Guo et al., "On Calibration of Modern Neural Networks", ICML 2017): logits are divided by the one
number T for which the validation split is least surprising,

    T = argmin_T  -mean log p(y | z / T).

Expected calibration error over bins B_1 ... B_m of equal width, where an entry has the confidence c and was
right (h = 1) or not (h = 0):

    ECE = sum_b |sum_{i in B_b} (h_i - c_i)| / n.

Label sets (split conformal prediction): of a record with probabilities p the set C(x) = {k: 1 - p_k <= q}.
How badly a true answer Y fits is s(x, Y) = max_{k in Y} (1 - p_k), so that Y lies in C(x) if and only if
s <= q. Patches of one scene are not exchangeable, scenes are: with K scenes of n_j records each, q is the
smallest t for which

    sum_j (1 / (K + 1)) * (1 / n_j) * #{i in scene j: s_i <= t}  >=  1 - alpha,

and infinite, every label, if there is none. A new record of a new scene then has P(Y in C(x)) >= 1 - alpha
whatever the model is (Lee, Barber and Willett, "Distribution-free inference with hierarchical data", 2023).
With one record a scene that is the usual quantile. What is promised is about scenes, and so is what is
measured here: every scene counts the same. The promise is not exact where the same split has also settled the
learning rate, which is one choice among a few.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from absl import logging
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_expit, log_softmax, softmax

from fusmae_jax.errors import InputError
from fusmae_jax.eval.metrics import Weighted

Kind = Literal['multi_label', 'single_label']
COLDEST, HOTTEST = 0.02, 50.0  # temperatures that are looked at


def probabilities(logits: np.ndarray, kind: Kind, temperature: float = 1.0) -> np.ndarray:
    """(records, classes) float64 from logits: sigmoid of each for `multi_label`, else softmax of a row."""
    scaled = np.asarray(logits, np.float64) / temperature
    return expit(scaled) if kind == 'multi_label' else softmax(scaled, axis=1)


def surprise(logits: np.ndarray, labels: np.ndarray, kind: Kind, temperature: float = 1.0) -> np.ndarray:
    """-log p of the true answer of each record, (records,); of `multi_label` the mean over the classes."""
    scaled, hot = np.asarray(logits, np.float64) / temperature, np.asarray(labels, bool)
    if kind == 'multi_label':
        return -log_expit(np.where(hot, scaled, -scaled)).mean(axis=1)
    return -log_softmax(scaled, axis=1)[hot]


def fit_temperature(logits: np.ndarray, labels: np.ndarray, kind: Kind) -> float:
    """The temperature of the least mean surprise, between 0.02 and 50; 1 where none surprises less than it.

    Args:
        logits: (records, classes) of the validation split.
        labels: (records, classes) of 0 and 1.
        kind: what the logits are of.

    Raises:
        InputError: no records, or logits that are not finite.
    """
    logits = np.asarray(logits, np.float64)
    if not logits.size or not np.isfinite(logits).all():
        raise InputError(f'logits: shape {logits.shape}; they must be finite, and of one record at least')

    # The surprise is convex in 1 / T, and so has one minimum in log T as well.
    def mean(log_t: float) -> float:
        return float(surprise(logits, labels, kind, np.exp(log_t)).mean())

    best = minimize_scalar(
        mean,
        bounds=(np.log(COLDEST), np.log(HOTTEST)),
        method='bounded',
        options={'xatol': 1e-7},
    )
    # Where logits are so large, or so equal, that it is flat, the search ends anywhere.
    if best.fun >= mean(0.0):
        return 1.0
    temperature = float(np.exp(best.x))
    if not 1.01 * COLDEST < temperature < HOTTEST / 1.01:
        logging.warning(
            'temperature %.3g, an end of what is looked at: %s validation entries do not settle it; take '
            'more, or leave the calibration out',
            *(temperature, f'{len(logits):,}'),
        )
    return temperature


def by_bin(binned: np.ndarray, surprise: np.ndarray, size: np.ndarray) -> Weighted:
    """`ece`, `surprise` and `right/<bin>` as a function of how often each group counts.

    Args:
        binned: (3, groups, bins): entries, sum of their confidence, hits.
        surprise: (groups,) sum of the surprise of those it is of.
        size: (groups,) how many these are.
    """
    entries, confidence, hits = binned

    def weighted(multiplicity: np.ndarray) -> dict[str, float]:
        gap = np.abs(multiplicity @ (hits - confidence)).sum()
        n, right = multiplicity @ entries, multiplicity @ hits
        share = np.divide(right, n, out=np.full(n.shape, np.nan), where=n > 0)
        return {
            'ece': float(gap / n.sum()) if n.any() else np.nan,
            'surprise': float(multiplicity @ surprise / (multiplicity @ size)) if n.any() else np.nan,
            **{f'right/{i}': float(x) for i, x in enumerate(share)},
        }

    return weighted


class Binned(Protocol):
    """Entries by bin."""

    @property
    def records(self) -> int:
        """How many records there are."""

    def binned(self, groups: np.ndarray, count: int) -> np.ndarray:
        """(3, count, bins): entries, sum of their confidence, hits; by the group of each record."""


@dataclasses.dataclass(frozen=True, eq=False)
class Reliability:
    """Entries with a confidence that were right or not; made by `reliability`. A `metrics.Measure`."""

    records: int
    confidence: np.ndarray  # (entries,) in [0, 1]
    hit: np.ndarray  # (entries,) bool
    surprise: np.ndarray  # (records,)
    bins: int
    truth: bytes

    def binned(self, groups: np.ndarray, count: int) -> np.ndarray:
        """(3, count, bins): entries, sum of their confidence, hits; by the group of each record."""
        # 1.0 belongs to the last bin.
        of_bin = np.minimum((self.confidence * self.bins).astype(int), self.bins - 1)
        place = np.repeat(groups, len(self.confidence) // self.records) * self.bins + of_bin
        sums = [np.bincount(place, x, count * self.bins) for x in (None, self.confidence, self.hit)]
        return np.stack(sums).reshape(3, count, self.bins)

    def grouped(self, groups: np.ndarray, count: int) -> Weighted:
        """`ece`, `surprise` and, by bin, `right/<bin>`, as a function of how often each group counts.

        `right/3` is the share of the entries in bin 3 that was right, NaN where there are none.
        """
        surprise, size = (np.bincount(groups, x, count) for x in (self.surprise, None))
        return by_bin(self.binned(groups, count), surprise, size)


def reliability(
    logits: np.ndarray, labels: np.ndarray, kind: Kind, temperature: float = 1.0, bins: int = 15
) -> Reliability:
    """What is looked at to see whether confidence is earned.

    `multi_label`: an entry for each record and class, its probability and whether the record has the class.
    `single_label`: an entry for each record, its highest probability and whether that is the true class.
    """
    hot = np.asarray(labels, bool)
    given = probabilities(logits, kind, temperature)
    if kind == 'multi_label':
        confidence, hit = given.ravel(), hot.ravel()
    else:
        confidence, hit = given.max(axis=1), hot[np.arange(len(hot)), given.argmax(axis=1)]
    return Reliability(
        len(hot), confidence, hit, surprise(logits, hot, kind, temperature), bins, np.packbits(hot).tobytes()
    )


class Bin(NamedTuple):
    """A point of a reliability diagram."""

    number: int  # from 0
    entries: int
    confidence: float  # mean of the entries


def filled(measure: Binned) -> list[Bin]:
    """The bins that have an entry."""
    entries, confidence, _ = measure.binned(np.zeros(measure.records, np.intp), 1)[:, 0]
    return [Bin(int(i), int(entries[i]), float(confidence[i] / entries[i])) for i in np.flatnonzero(entries)]


def misfit(probability: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """s(x, Y) of each record, (records,): 1 - the least probability among its labels; 0 if it has none."""
    return np.where(np.asarray(labels, bool), 1 - probability, 0).max(axis=1)


def set_threshold(scores: np.ndarray, clusters: Any, alpha: float) -> float:
    """The q of the label sets; infinite where there are fewer than 1 / alpha - 1 clusters.

    Args:
        scores: (records,) `misfit` on the validation split.
        clusters: (records,) the scene, tile or region of each.
        alpha: the share of records whose set may lack a label.

    Raises:
        InputError: shapes that do not agree, no records, alpha outside of (0, 1).
    """
    scores, clusters = np.asarray(scores, np.float64), np.asarray(clusters)
    if scores.ndim != 1 or clusters.shape != scores.shape or not scores.size:
        raise InputError(f'scores: shape {scores.shape}, clusters {clusters.shape}; one of each for a record')
    if not 0 < alpha < 1:
        raise InputError(f'alpha={alpha} must lie between 0 and 1')
    _, groups, sizes = np.unique(clusters, return_inverse=True, return_counts=True)
    order = np.argsort(scores, kind='stable')
    # Times (K + 1), so that clusters of one record are counted in whole numbers.
    reached = np.cumsum(1 / sizes[groups[order]])
    enough = np.flatnonzero(reached >= (1 - alpha) * (len(sizes) + 1) - 1e-9)
    return float(scores[order[enough[0]]]) if len(enough) else np.inf


def label_sets(probability: np.ndarray, threshold: float) -> np.ndarray:
    """C(x) of each record, (records, classes) bool."""
    return 1 - probability <= threshold


@dataclasses.dataclass(frozen=True, eq=False)
class Coverage:
    """Whether the label set of a record holds all of its labels; made by `coverage`. A `metrics.Measure`."""

    covered: np.ndarray  # (records,) bool
    sizes: np.ndarray  # (records,) labels in the set
    weights: np.ndarray  # (records,) the share of each in its cluster
    truth: bytes

    @property
    def records(self) -> int:
        """How many records there are."""
        return len(self.covered)

    def grouped(self, groups: np.ndarray, count: int) -> Weighted:
        """`coverage` and `set_size`: means over the clusters, of the mean of each."""
        covered, sizes, whole = (
            np.bincount(groups, self.weights * x, count) for x in (self.covered, self.sizes, 1)
        )

        def weighted(multiplicity: np.ndarray) -> dict[str, float]:
            total = multiplicity @ whole
            return {
                'coverage': float(multiplicity @ covered / total),
                'set_size': float(multiplicity @ sizes / total),
            }

        return weighted


def coverage(sets: np.ndarray, labels: np.ndarray, clusters: Any) -> Coverage:
    """Label sets (records, classes) against labels (records, classes) of 0 and 1, by cluster (records,)."""
    hot, sets = np.asarray(labels, bool), np.asarray(sets, bool)
    _, groups, counts = np.unique(clusters, return_inverse=True, return_counts=True)
    whole = (sets | ~hot).all(axis=1)
    return Coverage(whole, sets.sum(axis=1), 1 / counts[groups], np.packbits(hot).tobytes())


def abstaining(sets: np.ndarray, valid: Sequence[bool] | np.ndarray) -> np.ndarray:
    """The sets, with every label where a record has no valid pixel: nothing can be said of it."""
    return np.where(np.asarray(valid, bool)[:, None], sets, True)
