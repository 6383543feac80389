"""Numbers to predict for whole images: their scale while a head learns, and RMSE, MAE and R2 over a split.

A head learns targets of mean 0 and deviation 1 over its labelled records, since units of their own would
decide how fast each of them is learned; what it says is brought back, and every metric is in the units of the
data. A missing value (NaN) has no loss and no part in a metric.

Of a target with truth y and prediction p over the records that have it,

    RMSE = sqrt(mean (p - y)^2),   MAE = mean |p - y|,   R2 = 1 - sum (p - y)^2 / sum (y - mean y)^2.

A resample counts each record as often as its cluster was drawn, in the mean of y as well. The mean of the
labelled records as a constant prediction has R2 of about 0; R2 can be below it.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from fusmae_jax.errors import InputError
from fusmae_jax.eval.dense.metrics import Regression, regression
from fusmae_jax.eval.linear_probe import Scale
from fusmae_jax.eval.metrics import Weighted


def target_scale(labels: np.ndarray, names: Sequence[str]) -> Scale:
    """Mean and deviation (targets,) of the values that there are, in float64.

    Args:
        labels: (records, targets) of the labelled records; NaN where missing.
        names: of the targets.

    Raises:
        InputError: a target without two different values to learn from.
    """
    wide = np.asarray(labels, np.float64)
    for name, column in zip(names, wide.T):
        known = column[np.isfinite(column)]
        if not len(known) or known.min() == known.max():
            what = f'{known[0]:g} alone' if len(known) else 'no value'
            raise InputError(
                f'{name}: {len(column):,} labelled records have {what}, so there is nothing to learn; take '
                'more labels, or leave the target out'
            )
    return Scale(np.nanmean(wide, axis=0), np.nanstd(wide, axis=0))


def standardised(labels: np.ndarray, scale: Scale) -> np.ndarray:
    """Targets as a head learns them, float32; NaN stays."""
    return scale(np.asarray(labels, np.float64))


def restored(scores: np.ndarray, scale: Scale) -> np.ndarray:
    """What a head says, in the units of the data, float32."""
    return (np.asarray(scores, np.float64) * scale.std + scale.mean).astype(np.float32)


@dataclasses.dataclass(frozen=True, eq=False)
class Predicted:
    """Checked predictions of a split; made by `predicted`. A `metrics.Measure`."""

    names: tuple[str, ...]
    squared: tuple[Regression | None, ...]  # of each target; None where no record has it
    absolute: np.ndarray  # (records, targets) float64, absolute errors; 0 where the truth is missing

    @property
    def records(self) -> int:
        """How many records there are, whether or not they have a value."""
        return len(self.absolute)

    @property
    def truth(self) -> bytes:
        """The targets: equal for systems that answered the same question."""
        parts = (b'' if each is None else each.truth for each in self.squared)
        return '\0'.join(self.names).encode() + b'\0' + b'\0'.join(parts)

    def grouped(self, groups: np.ndarray, count: int) -> Weighted:
        """`rmse/<target>`, `mae/<target>`, `r2/<target>`, and `r2_macro`, the mean of the defined ones."""
        squared = [None if each is None else each.grouped(groups, count) for each in self.squared]
        absolute = [np.bincount(groups, column, count) for column in self.absolute.T]
        known = [0 if each is None else np.bincount(groups, each.pixels, count) for each in self.squared]

        def weighted(multiplicity: np.ndarray) -> dict[str, float]:
            metrics: dict[str, float] = {}
            for name, of_target, errors, values in zip(self.names, squared, absolute, known):
                both = {'rmse': np.nan, 'r2': np.nan} if of_target is None else of_target(multiplicity)
                total = float((multiplicity * values).sum())
                mae = float(multiplicity @ errors / total) if total else np.nan
                metrics |= {f'r2/{name}': both['r2'], f'rmse/{name}': both['rmse'], f'mae/{name}': mae}
            each = [metrics[f'r2/{name}'] for name in self.names]
            defined = [value for value in each if np.isfinite(value)]
            return {'r2_macro': float(np.mean(defined)) if defined else np.nan, **metrics}

        return weighted


def predicted(scores: Any, labels: Any, names: Sequence[str], *, keys: Any = None) -> Predicted:
    """Predictions and targets as a measure.

    Args:
        scores: (records, targets) in the units of the data.
        labels: the same; NaN where missing.
        names: of the targets.
        keys: (records,) names for error messages; positions by default.

    Raises:
        InputError: no records, shapes that do not agree, predictions that are not finite, no truth at all.
    """
    scores, labels = np.asarray(scores, np.float64), np.asarray(labels, np.float64)
    if scores.shape != labels.shape or labels.ndim != 2 or labels.shape[1] != len(names) or not labels.size:
        raise InputError(
            f'scores {scores.shape} and labels {labels.shape} must be (records, {len(names)}), one a target'
        )
    there = np.isfinite(labels)
    if not there.any():
        raise InputError(f'labels: no record has a value of {", ".join(names)}')
    if not np.isfinite(scores[there]).all():
        record, target = np.argwhere(there & ~np.isfinite(scores))[0].tolist()
        key = record if keys is None else keys[record].decode()
        raise InputError(f'scores: record {key}, {names[target]}: not finite; the model has diverged')
    squared = [
        regression(scores[:, [i]], labels[:, [i]]) if there[:, i].any() else None for i in range(len(names))
    ]
    return Predicted(tuple(names), tuple(squared), np.where(there, np.abs(scores - labels), 0))
