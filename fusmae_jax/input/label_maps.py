"""Maps of labels: from stored values to classes, on the host.

A batch carries a map as class numbers, uint8, with `IGNORE` where there is no label.
"""

import numpy as np

from fusmae_jax.input.contract import LabelMap

IGNORE = 255  # in a map of class numbers
MOST = 255  # classes that a map can have


def to_classes(stored: np.ndarray, about: LabelMap) -> np.ndarray:
    """The number of the class of each pixel, uint8 of the same shape; IGNORE where there is no label.

    Values that neither mean a class nor are to be ignored become IGNORE too: conversion refuses them
    (`unknown`).
    """
    values = np.array(about.values, np.int64)
    order = np.argsort(values)
    at = np.searchsorted(values[order], stored.astype(np.int64)).clip(max=len(values) - 1)
    hit = values[order][at] == stored
    return np.where(hit, order[at], IGNORE).astype(np.uint8)


def count(stored: np.ndarray, about: LabelMap) -> np.ndarray:
    """How many pixels have each class, (classes,) int64."""
    return np.bincount(to_classes(stored, about).ravel(), minlength=IGNORE + 1)[: len(about.classes)]


def unknown(stored: np.ndarray, about: LabelMap) -> str | None:
    """In words: the first value that is neither a class nor to be ignored, and where; None without any."""
    wrong = (to_classes(stored, about) == IGNORE) & ~np.isin(stored, np.array(about.ignore, np.int64))
    if not wrong.any():
        return None
    row, column = np.argwhere(wrong)[0].tolist()
    return (
        f'{stored[row, column]} at row {row}, column {column} ({wrong.sum():,} such pixels); classes are '
        f'{", ".join(map(str, about.values[:20]))}{", ..." * (len(about.values) > 20)}, ignored: '
        f'{", ".join(map(str, about.ignore)) or "nothing"}'
    )
