"""Metrics over a whole split, where every record counts once, or as often as a resample has drawn it.

`multi_label`, `single_label` and `means` check what they are given and return a measure, which can be asked
for its metrics with any multiplicity of its records; `evaluate` says what it amounts to.

Scores are compared as float32, so that two of them tie here if and only if they tie anywhere. What is not
defined, such as the average precision of a class without positives, is NaN.

Average precision is our own: of entries by falling score, AP = sum_t (R_t - R_(t-1)) P_t over the thresholds
t, with recall R and precision P; entries of equal score share one threshold. Micro AP on 1,000 resamples
takes seconds, as sorting is done once and a multiplicity then takes two sums over runs of sorted entries;
scikit-learn would sort 20 times in each resample.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from fusmae_jax.errors import InputError

# From how often each group of records counts, (groups,) int64, to metric -> value.
Weighted = Callable[[np.ndarray], dict[str, float]]


@runtime_checkable
class Measure(Protocol):
    """Checked values of the records of a split."""

    @property
    def records(self) -> int:
        """How many records there are."""

    @property
    def truth(self) -> bytes:
        """Equal for two systems that answered the same question about the same records."""

    def grouped(self, groups: np.ndarray, count: int) -> Weighted:
        """The metrics as a function of how often each group counts; sorts once, then answers quickly.

        Args:
            groups: (records,) the group of each, from 0 to `count - 1`, all of which occur.
            count: number of groups.
        """


class Result(NamedTuple):
    """The metrics of a split, and what they stand on."""

    values: dict[str, float]  # metric -> value, NaN where undefined
    records: int
    positives: dict[str, int]  # class -> records that have it
    without_positives: tuple[str, ...]  # classes that macro averages leave out


@dataclasses.dataclass(frozen=True, eq=False)
class LabelledScores:
    """Checked scores and labels of the records of a split."""

    scores: np.ndarray  # (records, classes) float32
    labels: np.ndarray  # (records, classes) bool
    classes: tuple[str, ...]

    @property
    def records(self) -> int:
        """How many records there are."""
        return len(self.labels)

    @property
    def truth(self) -> bytes:
        """Class names and labels: equal for systems that answered the same question."""
        return '\0'.join(self.classes).encode() + b'\0' + np.packbits(self.labels).tobytes()


@dataclasses.dataclass(frozen=True, eq=False)
class MultiLabel(LabelledScores):
    """Records with any number of classes; made by `multi_label`."""

    threshold: float

    def grouped(self, groups: np.ndarray, count: int) -> Weighted:
        """The metrics as a function of how often each group counts: see `multi_label`."""
        micro = curve(self.scores.ravel(), self.labels.ravel(), np.repeat(groups, len(self.classes)))
        single = [curve(score, hit, groups) for score, hit in zip(self.scores.T, self.labels.T)]
        counts = _counts(self.scores > np.float32(self.threshold), self.labels, groups, count)

        def weighted(multiplicity: np.ndarray) -> dict[str, float]:
            each = np.array([average_precision(of_class, multiplicity) for of_class in single])
            hits, predicted, actual = multiplicity @ counts
            present = actual > 0
            f1 = 2 * hits[present] / (predicted + actual)[present]
            return {
                'ap_micro': average_precision(micro, multiplicity),
                'ap_macro': float(each[present].mean()) if present.any() else np.nan,
                'f1_micro': float(2 * hits.sum() / (predicted + actual).sum()) if present.any() else np.nan,
                'f1_macro': float(f1.mean()) if present.any() else np.nan,
                **{f'ap/{name}': float(value) for name, value in zip(self.classes, each)},
            }

        return weighted


@dataclasses.dataclass(frozen=True, eq=False)
class SingleLabel(LabelledScores):
    """Records with exactly one class; made by `single_label`."""

    def grouped(self, groups: np.ndarray, count: int) -> Weighted:
        """The metrics as a function of how often each group counts: see `single_label`."""
        of_truth = self.scores[self.labels][:, None]
        tied = (self.scores == of_truth) & (np.cumsum(self.labels, axis=1) == 0)
        rank = (self.scores > of_truth).sum(axis=1) + tied.sum(axis=1)
        predicted = np.arange(len(self.classes)) == self.scores.argmax(axis=1)[:, None]
        counts = _counts(predicted, self.labels, groups, count)
        first, third, size = (np.bincount(groups, x, count) for x in (rank < 1, rank < 3, rank >= 0))

        def weighted(multiplicity: np.ndarray) -> dict[str, float]:
            hits, guessed, actual = multiplicity @ counts
            total = multiplicity @ size
            share = actual / total
            precision, recall = hits / np.maximum(guessed, 1), hits / np.maximum(actual, 1)
            f1 = 2 * hits / np.maximum(guessed + actual, 1)
            return {
                'top1': float(multiplicity @ first / total),
                'top3': float(multiplicity @ third / total),
                # Shares add up to 1 but for the rounding, which must not take a perfect score above it.
                'precision_weighted': min(float(share @ precision), 1.0),
                'recall_weighted': min(float(share @ recall), 1.0),
                'f1_weighted': min(float(share @ f1), 1.0),
            }

        return weighted


@dataclasses.dataclass(frozen=True, eq=False)
class Means:
    """Weighted means over records; made by `means`."""

    sums: Mapping[str, np.ndarray]  # name -> (records,) float64
    weights: np.ndarray  # (records,) float64

    @property
    def records(self) -> int:
        """How many records there are."""
        return len(self.weights)

    @property
    def truth(self) -> bytes:
        """The weights."""
        return self.weights.tobytes()

    def grouped(self, groups: np.ndarray, count: int) -> Weighted:
        """name -> sum of its sums / sum of the weights; NaN where nothing weighs."""
        sums = {name: np.bincount(groups, x, count) for name, x in self.sums.items()}
        weights = np.bincount(groups, self.weights, count)

        def weighted(multiplicity: np.ndarray) -> dict[str, float]:
            total = multiplicity @ weights
            return {name: float(multiplicity @ x / total) if total else np.nan for name, x in sums.items()}

        return weighted


def multi_label(
    scores: Any, labels: Any, classes: Sequence[str], *, threshold: float, names: Any = None
) -> MultiLabel:
    """Average precision and F1, micro, macro and (average precision) per class.

    Metrics: `ap_micro`, `ap_macro`, `ap/<class>`, `f1_micro`, `f1_macro`. Average precision is the mean of
    the precision at each positive; tied entries share one threshold, as in scikit-learn. Macro averages leave
    out classes without positives.

    Args:
        scores: (records, classes), any floating type; the higher, the surer.
        labels: (records, classes) of 0 and 1.
        classes: their names, in the order of the columns.
        threshold: scores above it predict the class (F1 only): 0 for logits, 0.5 for probabilities.
        names: (records,) names for error messages; positions by default.

    Raises:
        InputError: no records, shapes that do not agree, labels other than 0 and 1, NaN scores.
    """
    classes, labels = tuple(classes), np.asarray(labels)
    scores = _scores(scores, classes, names)
    if labels.shape != scores.shape:
        raise InputError(f'labels: shape {labels.shape}, but the scores have {scores.shape}')
    wrong = (labels != 0) & (labels != 1)
    if wrong.any():
        i, k = np.argwhere(wrong)[0]
        raise InputError(
            f'labels: record {_name(i, names)}, class {classes[k]!r}: {labels[i, k]}; they must be 0 or 1'
        )
    return MultiLabel(scores, labels.astype(bool), classes, threshold)


def single_label(scores: Any, labels: Any, classes: Sequence[str], *, names: Any = None) -> SingleLabel:
    """Top-1, top-3, and precision, recall and F1 weighted by the records of each class.

    Metrics: `top1`, `top3` (1 for three classes or fewer), `precision_weighted`, `recall_weighted`,
    `f1_weighted`. Of tied scores the first class ranks higher. The precision of a class that is never
    predicted is 0.

    Args:
        scores: (records, classes), any floating type; the higher, the surer.
        labels: (records,) positions in `classes`.
        classes: their names, in the order of the columns.
        names: (records,) names for error messages; positions by default.

    Raises:
        InputError: no records, shapes that do not agree, labels that are no class, NaN scores.
    """
    classes, labels = tuple(classes), np.asarray(labels)
    scores = _scores(scores, classes, names)
    if labels.shape != scores.shape[:1]:
        raise InputError(f'labels: shape {labels.shape}, but the scores have {scores.shape}')
    hot = labels[:, None] == np.arange(len(classes))
    if not hot.any(axis=1).all():
        i = int(np.argmin(hot.any(axis=1)))
        raise InputError(
            f'labels: record {_name(i, names)}: {labels[i]} is no class; they go from 0 to {len(classes) - 1}'
        )
    return SingleLabel(scores, hot, classes)


def means(sums: Mapping[str, Any], weights: Any) -> Means:
    """Means of quantities that are summed within a record, such as squared errors over its masked tokens.

    Args:
        sums: name -> (records,), the sum over each record.
        weights: (records,), how much it was summed over; 0 or more.

    Raises:
        InputError: no records, shapes that do not agree, numbers that are not finite, negative weights.
    """
    weights = np.asarray(weights, np.float64)
    arrays = {name: np.asarray(x, np.float64) for name, x in sums.items()}
    if weights.ndim != 1 or not weights.size:
        raise InputError(f'weights: shape {weights.shape}; there must be one number for each record')
    for name, x in {'weights': weights, **arrays}.items():
        if x.shape != weights.shape:
            raise InputError(f'{name}: shape {x.shape}, but the weights have {weights.shape}')
        if not np.isfinite(x).all():
            raise InputError(f'{name}: record {int(np.argmin(np.isfinite(x)))} is not finite')
    if (weights < 0).any():
        raise InputError(f'weights: record {int(np.argmin(weights))} has {weights.min()}; 0 is the least')
    return Means(arrays, weights)


def values(measure: Measure) -> dict[str, float]:
    """The metrics where every record counts once."""
    return measure.grouped(np.zeros(measure.records, np.intp), 1)(np.ones(1, np.int64))


def evaluate(measure: MultiLabel | SingleLabel) -> Result:
    """The metrics where every record counts once."""
    positives = dict(zip(measure.classes, measure.labels.sum(axis=0).tolist()))
    empty = tuple(name for name, count in positives.items() if not count)
    return Result(values(measure), measure.records, positives, empty)


def judged(scores: np.ndarray, metric: Callable[[np.ndarray], float], split: str) -> float:
    """The metric by which a sweep is settled; -inf for the scores of a head that diverged.

    Args:
        scores: of the validation split.
        metric: of these scores, the higher the better.
        split: what the error message calls it.

    Raises:
        InputError: the metric is not defined there.
    """
    # Before it is measured: scores that are not finite are an error there, but an outcome of a sweep.
    if not np.isfinite(scores).all():
        return -np.inf
    value = metric(scores)
    if not np.isfinite(value):
        raise InputError(
            f'{split}: the metric that settles the sweep is {value}; has the split no positive labels, or '
            'one number alone to predict?'
        )
    return value


def train_prior(train_labels: Any, records: int) -> np.ndarray:
    """Scores of a system that looks at no image: the share of training records that have each class.

    Args:
        train_labels: (training records, classes) of 0 and 1.
        records: of the split to be scored.

    Returns:
        (records, classes) float32, all rows equal, not writable. As probabilities: threshold 0.5.
    """
    labels = np.asarray(train_labels)
    if labels.ndim != 2 or not labels.size:
        raise InputError(f'train_labels: shape {labels.shape}; there must be records and classes')
    return np.broadcast_to(labels.mean(axis=0).astype(np.float32), (records, labels.shape[1]))


def _scores(scores: Any, classes: tuple[str, ...], names: Any) -> np.ndarray:
    with np.errstate(over='ignore'):  # what float32 cannot hold is infinitely sure
        scores = np.asarray(scores).astype(np.float32)
    if scores.ndim != 2 or scores.shape[1] != len(classes) or not classes:
        raise InputError(f'scores: shape {scores.shape}, expected (records, {len(classes)}), one a class')
    if len(set(classes)) < len(classes):
        raise InputError(f'classes: {list(classes)} has a name twice')
    if not len(scores):
        raise InputError('scores: there are no records; is the split empty?')
    if names is not None and len(names) != len(scores):
        raise InputError(f'names: {len(names)} for {len(scores)} records')
    bad = np.isnan(scores)
    if bad.any():
        i, k = np.argwhere(bad)[0]
        raise InputError(
            f'scores: record {_name(i, names)}, class {classes[k]!r}: NaN ({bad.sum():,} in all); the model '
            'has diverged, or the record has no valid pixel: look at it with `doctor`'
        )
    return scores


def _name(i: int, names: Any) -> str:
    name = i if names is None else names[i]
    return name.decode() if isinstance(name, bytes) else str(name)


def _counts(predicted: np.ndarray, actual: np.ndarray, groups: np.ndarray, count: int) -> np.ndarray:
    """Hits, predicted and actual positives, (3, groups, classes), from two (records, classes) of bool."""
    return np.stack(
        [
            np.stack([np.bincount(groups, column, count) for column in x.T], axis=1)
            for x in (predicted & actual, predicted, actual)
        ]
    )


class Curve(NamedTuple):
    """Entries by falling score, cut behind the last positive, in runs that each end where a tie ends.

    Every run has a positive, so it is one step of the recall; what comes behind the last one counts nowhere.
    """

    entries: np.ndarray  # (entries,) the group of each
    runs: np.ndarray  # (runs,) position of the first entry of each
    positives: np.ndarray  # (positives,) the group of each
    positive_runs: np.ndarray  # (runs,) position of the first positive of each


def curve(scores: np.ndarray, positive: np.ndarray, groups: np.ndarray) -> Curve:
    """Sorts entries.

    Args:
        scores: (entries,) float32 without NaN.
        positive: (entries,) bool.
        groups: (entries,) the group that each counts with, whole numbers from 0.
    """
    # Stable, so that ties keep the order of the records and a rerun is the same to the last bit.
    order = np.argsort(-scores, kind='stable')
    falling, hit = scores[order], positive[order]
    ties = np.flatnonzero(np.append(falling[1:] != falling[:-1], True))  # the last entry of each
    hits = hit.cumsum()[ties]
    steps = np.diff(hits, prepend=0) > 0
    ends, hits = ties[steps] + 1, hits[steps]
    entries = groups[order[: ends[-1] if len(ends) else 0]]
    positives = groups[order[hit]]
    return Curve(entries.astype(np.intp), _firsts(ends), positives.astype(np.intp), _firsts(hits))


def _firsts(ends: np.ndarray) -> np.ndarray:
    """Where runs begin, from where they end."""
    return np.append(0, ends)[: len(ends)]


def average_precision(prepared: Curve, multiplicity: np.ndarray) -> float:
    """The area; NaN where no positive counts.

    Args:
        prepared: what `curve` returned.
        multiplicity: (groups,) int64, how often each group counts.
    """
    if not len(prepared.runs):
        return np.nan
    gained = np.add.reduceat(multiplicity[prepared.positives], prepared.positive_runs)
    hits = gained.cumsum()
    if not hits[-1]:
        return np.nan
    # Runs without a positive were joined with the next one that has any: they change no term of the sum.
    seen = np.add.reduceat(multiplicity[prepared.entries], prepared.runs).cumsum()
    # Whole numbers up to this division: no term depends on the order of records within a tie.
    return float((gained * hits / np.maximum(seen, 1)).sum() / hits[-1])
