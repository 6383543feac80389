"""What `predict` writes: a map of classes with their probabilities, or a map of numbers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fusmae_jax.geo.grid import Grid
from fusmae_jax.input.contract import LabelMap, NumberMap
from fusmae_jax.predict.map_file import NOTHING, MapFile, class_map, colours, number_map, probability_map


class ClassOutput:
    """A map of classes and, if a second file is asked for, of their probabilities."""

    def __init__(self, labels: LabelMap):
        self._labels, self._palette = labels, colours(len(labels.classes))
        self._counts = np.zeros(NOTHING + 1, np.int64)
        legend = [
            {'number': number, 'class': name, 'value': value, 'colour': '#{:02x}{:02x}{:02x}'.format(*colour)}
            for number, (name, value, colour) in enumerate(zip(labels.classes, labels.values, self._palette))
        ]
        self.about: dict[str, Any] = {'legend': legend, 'nothing': NOTHING}

    def open(self, files: Sequence[Path], grid: Grid, about: Mapping[str, Any]) -> list[MapFile]:
        """A writer for each file."""
        writers = [class_map(files[0], grid, self._palette, about)]
        if len(files) > 1:
            writers.append(probability_map(files[1], grid, self._labels.classes, about))
        return writers

    def rows(self, values: np.ndarray, valid: np.ndarray) -> list[np.ndarray]:
        """The next rows of each file."""
        numbers = class_numbers(values, valid)
        self._counts += np.bincount(numbers.ravel(), minlength=NOTHING + 1)
        return [numbers[..., None], values]

    def lines(self) -> list[str]:
        """The share of each class."""
        shares = self._counts / max(self._counts.sum(), 1)
        names = {**dict(enumerate(self._labels.classes)), NOTHING: 'nothing measured'}
        return [f'{shares[number]:>7.2%}  {name}' for number, name in names.items() if self._counts[number]]


class NumberOutput:
    """A map of numbers in their unit."""

    def __init__(self, labels: NumberMap):
        self._labels = labels
        self._pixels, self._there, self._sum = 0, 0, 0.0
        self._least, self._greatest = np.inf, -np.inf
        self.about: dict[str, Any] = {'quantity': labels.quantity, 'unit': labels.unit or None}

    def open(self, files: Sequence[Path], grid: Grid, about: Mapping[str, Any]) -> list[MapFile]:
        """The writer of the one file."""
        return [number_map(files[0], grid, self._labels.quantity, self._labels.unit, about)]

    def rows(self, values: np.ndarray, valid: np.ndarray) -> list[np.ndarray]:
        """The next rows; NaN where nothing was measured."""
        numbers = np.where(valid[..., None], values, np.float32(np.nan))
        there = numbers[valid]
        self._pixels += valid.size
        if there.size:
            self._there += there.size
            self._sum += float(there.sum(dtype=np.float64))
            self._least = min(self._least, float(there.min()))
            self._greatest = max(self._greatest, float(there.max()))
        return [numbers]

    def lines(self) -> list[str]:
        """What the map holds."""
        share = self._there / max(self._pixels, 1)
        if not self._there:
            return ['nothing measured']
        unit = f' {self._labels.unit}' if self._labels.unit else ''
        mean = self._sum / self._there
        return [
            f'{share:>7.2%}  {self._labels.quantity}: mean {mean:.4g}{unit}, from {self._least:.4g} to '
            f'{self._greatest:.4g}'
        ]


def class_numbers(probabilities: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """The most probable class (rows, columns) uint8, of equal ones the first; NOTHING where not valid."""
    most = np.where(valid[..., None], probabilities, 0).argmax(axis=-1)
    return np.where(valid, most, NOTHING).astype(np.uint8)
