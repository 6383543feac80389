"""What can be bootstrapped: something known of every record, and metrics of it.

The metrics are asked for with how often each record counts: once on the split, or as drawn in a resample.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

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


def values(measure: Measure) -> dict[str, float]:
    """The metrics where every record counts once."""
    return measure.grouped(np.zeros(measure.records, np.intp), 1)(np.ones(1, np.int64))


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
