"""Average precision of records that count once, or as often as a resample has drawn them.

AP = sum over thresholds of (recall gained) x (precision there). Entries of equal score share one threshold.
Sorting is done once; a multiplicity then takes two sums over runs of sorted entries.
"""

from typing import NamedTuple

import numpy as np


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
    order = np.argsort(-scores, kind='stable')
    falling, hit = scores[order], positive[order]
    ties = np.flatnonzero(np.append(falling[1:] != falling[:-1], True))  # the last entry of each
    found = hit.cumsum()[ties]
    steps = np.diff(found, prepend=0) > 0
    ends, found = ties[steps] + 1, found[steps]
    entries = groups[order[: ends[-1] if len(ends) else 0]]
    positives = groups[order[hit]]
    return Curve(entries.astype(np.intp), _firsts(ends), positives.astype(np.intp), _firsts(found))


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
    found = gained.cumsum()
    if not found[-1]:
        return np.nan
    seen = np.add.reduceat(multiplicity[prepared.entries], prepared.runs).cumsum()
    # Whole numbers up to this division: no term depends on the order of records within a tie.
    return float((gained * found / np.maximum(seen, 1)).sum() / found[-1])
