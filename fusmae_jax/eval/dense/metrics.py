"""Metrics of maps over a whole split: from a confusion matrix a record, or sums of squares a record.

A record is reduced to its counts, whatever its size; the counts of a cluster are their sum, so that a
resample of clusters costs one small product. Every labelled pixel of the split counts the same: a mean over
images or batches of an IoU is another number.

With the pixels N[t, p] of truth t that are predicted as p:

    IoU_c = N[c, c] / (N[c, :] + N[:, c] - N[c, c]),  F1_c = 2 N[c, c] / (N[c, :] + N[:, c])

`iou_macro` (mIoU) and `f1_macro` are means over the classes that have a labelled pixel; those of the others
are NaN. `accuracy` is the share of labelled pixels that are right.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from fusmae_jax.errors import InputError
from fusmae_jax.eval.metrics import Weighted


@dataclasses.dataclass(frozen=True, eq=False)
class Segmentation:
    """Checked confusion matrices; made by `segmentation`."""

    counts: np.ndarray  # (records, classes, classes) int64: truth, predicted
    classes: tuple[str, ...]

    @property
    def records(self) -> int:
        """How many records there are."""
        return len(self.counts)

    @property
    def truth(self) -> bytes:
        """Class names and labelled pixels of each class and record."""
        return '\0'.join(self.classes).encode() + b'\0' + self.counts.sum(axis=2).tobytes()

    @property
    def empty(self) -> tuple[str, ...]:
        """The classes without a labelled pixel, which no mean counts."""
        pixels = self.counts.sum(axis=(0, 2))
        return tuple(name for name, count in zip(self.classes, pixels) if not count)

    def grouped(self, groups: np.ndarray, count: int) -> Weighted:
        """The metrics as a function of how often each group counts."""
        size = len(self.classes)
        sums = np.zeros((count, size, size), np.int64)
        np.add.at(sums, groups, self.counts)

        def weighted(multiplicity: np.ndarray) -> dict[str, float]:
            return of_confusion(np.tensordot(multiplicity, sums, axes=1), self.classes)

        return weighted


def of_confusion(counts: np.ndarray, classes: Sequence[str]) -> dict[str, float]:
    """Every metric of one confusion matrix (truth, predicted)."""
    hits, actual, predicted = np.diagonal(counts), counts.sum(axis=1), counts.sum(axis=0)
    there = actual > 0
    # A class without a labelled pixel has no IoU; wrong predictions of it are misses of the others.
    iou = np.where(there, hits / np.maximum(actual + predicted - hits, 1), np.nan)
    f1 = np.where(there, 2 * hits / np.maximum(actual + predicted, 1), np.nan)
    some = there.any()
    return {
        'iou_macro': float(iou[there].mean()) if some else np.nan,
        'f1_macro': float(f1[there].mean()) if some else np.nan,
        'accuracy': float(hits.sum() / counts.sum()) if some else np.nan,
        **{f'iou/{name}': float(value) for name, value in zip(classes, iou)},
        **{f'f1/{name}': float(value) for name, value in zip(classes, f1)},
    }


def segmentation(counts: Any, classes: Sequence[str]) -> Segmentation:
    """mIoU, F1, pixel accuracy, and IoU and F1 per class.

    Args:
        counts: (records, classes, classes), pixels by truth and prediction, without those that have no label.
        classes: their names, in order.

    Raises:
        InputError: shapes that do not agree, counts that are no whole numbers from 0, no labelled pixel.
    """
    counts, classes = np.asarray(counts), tuple(classes)
    if counts.shape != (len(counts), len(classes), len(classes)) or not counts.size:
        wanted = f'(records, {len(classes)}, {len(classes)})'
        raise InputError(f'confusion matrices: shape {counts.shape}, expected {wanted}')
    if not np.isfinite(counts).all() or (counts < 0).any() or (counts != np.floor(counts)).any():
        raise InputError('confusion matrices must hold whole numbers from 0; has the model diverged?')
    if not counts.any():
        raise InputError('confusion matrices: no record has a labelled pixel; is everything ignored?')
    return Segmentation(counts.astype(np.int64), classes)


@dataclasses.dataclass(frozen=True, eq=False)
class Regression:
    """Sums of the pixels of each record; made by `regression`."""

    errors: np.ndarray  # (records,) float64, squared errors
    values: np.ndarray  # (records,) truth, less the mean of the split
    squares: np.ndarray  # (records,) its square
    pixels: np.ndarray  # (records,) int64

    @property
    def records(self) -> int:
        """How many records there are."""
        return len(self.pixels)

    @property
    def truth(self) -> bytes:
        """The sums of the truth."""
        return self.values.tobytes() + self.squares.tobytes() + self.pixels.tobytes()

    def grouped(self, groups: np.ndarray, count: int) -> Weighted:
        """`rmse`, the root of the mean squared error, and `r2` = 1 - errors / variation of the truth."""
        sums = [np.bincount(groups, x, count) for x in (self.errors, self.values, self.squares, self.pixels)]

        def weighted(multiplicity: np.ndarray) -> dict[str, float]:
            errors, values, squares, pixels = (float(multiplicity @ x) for x in sums)
            if not pixels:
                return {'rmse': np.nan, 'r2': np.nan}
            spread = squares - values**2 / pixels
            return {
                'rmse': float(np.sqrt(errors / pixels)),
                # A resample may draw one value alone, of which rounding leaves some spread.
                'r2': float(1 - errors / spread) if spread > 1e-12 * squares else np.nan,
            }

        return weighted


def regression(predicted: Any, truth: Any) -> Regression:
    """RMSE and R2 over all pixels of a split.

    Args:
        predicted: (records, ...), a number for each pixel.
        truth: the same; NaN where there is none.

    Raises:
        InputError: shapes that do not agree, predictions that are not finite, no truth.
    """
    predicted, truth = np.asarray(predicted, np.float64), np.asarray(truth, np.float64)
    if predicted.shape != truth.shape or predicted.ndim < 2:
        raise InputError(f'predicted {predicted.shape} and truth {truth.shape} must be (records, pixels)')
    there = np.isfinite(truth)
    if not there.any():
        raise InputError('truth: no pixel has a value')
    if not np.isfinite(predicted[there]).all():
        raise InputError('predicted: a number is not finite; has the model diverged?')
    pixels = tuple(range(1, truth.ndim))
    # About the mean: the difference of two large sums of squares would lose what varies.
    centred = np.where(there, truth - truth[there].mean(), 0)
    errors = np.where(there, predicted - truth, 0) ** 2
    return Regression(
        errors.sum(axis=pixels),
        centred.sum(axis=pixels),
        (centred**2).sum(axis=pixels),
        there.sum(axis=pixels),
    )
