"""A data set with maps of labels or numbers: what its index says of them, and its records with their maps."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from fusmae_jax.errors import InputError, nearest
from fusmae_jax.eval.cells import Cell, without_image
from fusmae_jax.eval.config import Evaluation, Task
from fusmae_jax.eval.dense.config import Mapped
from fusmae_jax.eval.dense.metrics import Segmentation, segmentation
from fusmae_jax.eval.dense.numbers import measured as measured_numbers
from fusmae_jax.eval.finetune.objective import TARGETS
from fusmae_jax.eval.linear_probe import Scale
from fusmae_jax.eval.regression import Predicted, standardised
from fusmae_jax.eval.task import LabelledSet, LabelledSplit, check_apart, check_clusters, subsets
from fusmae_jax.input.contract import Contract, LabelMap, NumberMap
from fusmae_jax.input.label_maps import to_classes
from fusmae_jax.input.number_maps import joined, to_numbers
from fusmae_jax.input.source import PIXELS, Source

MAJORITY, MEAN = 'most frequent class', 'mean of the training pixels'


class MappedSource:
    """Records of a split by index: image fields and, as TARGETS, the class or the number of each pixel."""

    def __init__(
        self,
        data: Task,
        split: str,
        fields: Sequence[str],
        positions: np.ndarray | None = None,
        scale: Scale | None = None,
    ):
        """`positions` chooses some of the records; None takes all in their order.

        Numbers are in the units of the data, or standardised with `scale`; NaN where there is none.
        """
        self._source = Source(data.path, split, (*fields, data.labels))
        self._about, self._map = map_of(data, self._source.contract), data.labels
        self._positions, self.fields, self.scale = positions, (*fields, TARGETS), scale
        self.path, self.split, self.contract = self._source.path, split, self._source.contract

    def __len__(self) -> int:
        return len(self._source) if self._positions is None else len(self._positions)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        record = self._source[index if self._positions is None else int(self._positions[index])]
        images = {name: record[name] for name in self.fields if name != TARGETS}
        if isinstance(self._about, LabelMap):
            return images | {TARGETS: to_classes(record[self._map], self._about)}
        numbers = to_numbers(record[self._map], self._about)
        return images | {TARGETS: numbers if self.scale is None else standardised(numbers, self.scale)}

    def index(self, fields: Sequence[str]) -> dict[str, np.ndarray]:
        """Fields of the index of the whole split, in its order."""
        return self._source.index(fields)


def map_of(data: Task, contract: Contract) -> LabelMap | NumberMap:
    """What the maps of a data set hold; raises InputError where it has none of that name and kind."""
    numbers = data.kind == 'map_regression'
    maps: Mapping[str, LabelMap | NumberMap] = (contract.number_maps if numbers else contract.maps) or {}
    if data.labels not in maps:
        other = (contract.maps if numbers else contract.number_maps) or {}
        hint = f'it has no maps of {"numbers" if numbers else "labels"} (see docs/dense.md)'
        if data.labels in other:
            kind = 'segmentation' if numbers else 'map_regression'
            hint = f'it holds {"classes" if numbers else "numbers"}: data.kind={kind!r}'
        elif maps:
            hint = nearest(data.labels, maps)
        what = 'map of numbers' if numbers else 'map'
        raise InputError(f'{data.path}: no {what} {data.labels!r} (data.labels); {hint}')
    return maps[data.labels]


def open_maps(config: Mapped) -> tuple[LabelledSet, dict[float, dict[int, np.ndarray]]]:
    """The classes that occur in each record, or the moments of its numbers, from the index; of each label
    fraction the drawn subsets.

    Raises:
        InputError: no such split, map or cluster field; a record in two splits; a class that no training
            record has a pixel of is said in the log, not refused.
    """
    data, cluster = config.data, config.intervals.cluster if config.intervals.replicates else ''
    contract = Source(data.path, data.train_split, ()).contract
    about = map_of(data, contract)
    classes = about.classes if isinstance(about, LabelMap) else (about.quantity,)
    units = () if isinstance(about, LabelMap) else (about.unit,)
    train, val = (_split(data, contract, name, '') for name in (data.train_split, data.val_split))
    task = LabelledSet(contract, classes, train, val, _split(data, contract, data.test_split, cluster), units)
    check_apart(task, data.path)
    check_clusters(config, task.test)
    for split in (task.train, task.val, task.test):
        if isinstance(about, NumberMap):
            pixels, mean, squares = joined(split.labels)
            if not pixels:
                raise InputError(f'{data.path}, {split.name}: no pixel of {data.labels} has a number')
            if split is task.val and not squares:
                raise InputError(
                    f'{data.path}, {split.name}: {about.quantity} is {mean:g} throughout, so that R2, which '
                    'settles the sweep, is not defined; take another split'
                )
            deviation = np.sqrt(squares / pixels)
            logging.info(
                '%s: %s records, %s: mean %.4g, deviation %.4g %s',
                *(split.name, f'{len(split.keys):,}', about.quantity, mean, deviation, about.unit),
            )
            continue
        pixels = split.labels.sum(axis=0, dtype=np.int64)
        absent = [name for i, name in enumerate(classes) if not pixels[i]]
        more = f'; no pixel of {", ".join(absent)}' if absent else ''
        logging.info('%s: %s records%s', split.name, f'{len(split.keys):,}', more)
        if len(absent) == len(classes):
            raise InputError(f'{data.path}, {split.name}: no pixel of {data.labels} has a label')
    labels = config.labels
    drawn = {f: subsets(data, task, f, labels.draw, labels.seeds) for f in labels.fractions}
    for fraction, parts in drawn.items():
        for seed, positions in parts.items():
            # The first number of moments is how many pixels there are.
            if not train.labels[positions].any():
                raise InputError(
                    f'{data.path}, {train.name}: none of the {len(positions):,} records of the label '
                    f'fraction {fraction:g}, seed {seed}, has a labelled pixel; take a larger fraction or '
                    'other seeds'
                )
    return task, drawn


def _split(data: Task, contract: Contract, split: str, cluster: str) -> LabelledSplit:
    """Names, pixels of each class or moments of the numbers, and clusters of the records of a split."""
    pixels = f'{PIXELS}{data.labels}'
    fields = [contract.key, *([cluster] if cluster else [])]
    index = Source(data.path, split, ()).index(fields, (pixels,))
    if pixels not in index:
        raise InputError(
            f'{data.path}, {split}: the index has no counts of {data.labels}: it was converted by an earlier '
            'version; convert it again'
        )
    return LabelledSplit(split, index[contract.key], index[pixels], index[cluster] if cluster else None)


def prior(
    config: Evaluation, task: LabelledSet, positions: Mapping[int, np.ndarray], about: Mapping[str, Any]
) -> Cell:
    """Every pixel is of the class that most labelled pixels have, or has the mean of their numbers."""
    if config.data.kind == 'map_regression':
        return _mean(config, task, positions, about)
    measures = {}
    for seed, part in positions.items():
        most = int(task.train.labels[part].sum(axis=0, dtype=np.int64).argmax())
        counts = np.zeros((*task.test.labels.shape, len(task.classes)), np.int64)
        counts[:, :, most] = task.test.labels
        measures[seed, 0] = segmentation(counts, task.classes)
    return without_image(config, task, measures, about, MAJORITY, MAJORITY)


def _mean(
    config: Evaluation, task: LabelledSet, positions: Mapping[int, np.ndarray], about: Mapping[str, Any]
) -> Cell:
    """The mean of the numbers of the labelled pixels for every pixel; absolute errors need the maps."""
    means = np.array([joined(task.train.labels[part])[1] for part in positions.values()])
    test = MappedSource(config.data, config.data.test_split, ())
    sums = np.zeros((len(means), len(test), 2))
    for record in range(len(test)):
        numbers = test[record][TARGETS].astype(np.float64)
        miss = numbers[np.isfinite(numbers)] - means[:, None]
        sums[:, record] = np.stack([(miss**2).sum(axis=1), np.abs(miss).sum(axis=1)], axis=1)
    measures = {(seed, 0): measured(config.data, task, each) for seed, each in zip(positions, sums)}
    return without_image(config, task, measures, about, MEAN, MEAN)


def measured(data: Task, task: LabelledSet, scores: np.ndarray) -> Segmentation | Predicted:
    """The measure of the scores of the test split: confusion matrices, or sums of errors, of each record."""
    if data.kind == 'map_regression':
        return measured_numbers(scores, task.test.labels, task.classes[0])
    return segmentation(scores, task.classes)
