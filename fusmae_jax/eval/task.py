"""The task of an evaluation: labels of a data set by split, systems with the sensors they are given.

No record is in two of the splits.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from fusmae_jax.encoders.settings import BANDS, PRIOR, RANDOM
from fusmae_jax.encoders.systems import System, open_system
from fusmae_jax.errors import InputError, nearest
from fusmae_jax.eval.config import Evaluation, Task, metric_of
from fusmae_jax.eval.intervals import grouped, named
from fusmae_jax.eval.metrics import Measure, multi_label, single_label, values
from fusmae_jax.eval.regression import predicted
from fusmae_jax.input import seen
from fusmae_jax.input.contract import Contract
from fusmae_jax.input.fractions import DINO_MM, DINO_MM_SEED, read_fraction
from fusmae_jax.input.source import Source


class LabelledSplit(NamedTuple):
    """The records of a split, in its order."""

    name: str
    keys: np.ndarray  # (records,) bytes, unique
    # (records, classes) uint8, 0 or 1; of numbers to predict (records, targets) float32, NaN where missing;
    # of maps the pixels of each class, or the moments of their numbers
    labels: np.ndarray
    clusters: np.ndarray | None  # (records,), where asked for


class LabelledSet(NamedTuple):
    """A data set to learn from and to be tested on."""

    contract: Contract
    classes: tuple[str, ...]  # or targets
    train: LabelledSplit
    val: LabelledSplit
    test: LabelledSplit
    units: tuple[str, ...] = ()  # of targets; '' where it is not known


class Entrant(NamedTuple):
    """A system and the sensors that it is given."""

    kind: str  # 'checkpoint', 'random' or 'bands'
    system: System
    modalities: tuple[str, ...]
    fields: dict[str, Any]  # of a result row, that tell of the system
    baseline: bool


def open_task(
    config: Evaluation, calibrated: bool = False
) -> tuple[LabelledSet, dict[float, dict[int, np.ndarray]]]:
    """The labels of a run, and of each label fraction the drawn subsets: seed -> positions.

    `calibrated`: the clusters of validation and test are needed, even without intervals.
    """
    cluster = config.intervals.cluster
    needed = calibrated or config.intervals.replicates
    task = read_task(config.data, cluster if needed else '', cluster if calibrated else '')
    check_clusters(config, task.test)
    if calibrated:
        _check_clusters(config, task.val, named)
    for split in (task.train, task.val, task.test):
        logging.info('%s: %s records', split.name, f'{len(split.keys):,}')
    labels = config.labels
    drawn = {
        fraction: subsets(config.data, task, fraction, labels.draw, labels.seeds)
        for fraction in labels.fractions
    }
    if config.data.kind != 'regression':
        _check_some(config.data, task, drawn)
    return task, drawn


def _check_some(data: Task, task: LabelledSet, drawn: Mapping[float, Mapping[int, np.ndarray]]) -> None:
    """Raises InputError where no record has a class: nothing can be learned, settled or measured there."""
    for split in (task.train, task.val, task.test):
        if not split.labels.any():
            raise InputError(f'{data.path}, {split.name}: no record has a class of {data.labels}')
    for fraction, parts in drawn.items():
        for seed, positions in parts.items():
            if not task.train.labels[positions].any():
                raise InputError(
                    f'{data.path}, {task.train.name}: none of the {len(positions):,} records of the label '
                    f'fraction {fraction:g}, seed {seed}, has a class; take a larger fraction or other seeds'
                )


def check_clusters(config: Any, test: LabelledSplit) -> None:
    """Raises InputError, before anything is trained, for a field that intervals cannot be drawn over."""
    if test.clusters is not None and config.intervals.replicates:
        _check_clusters(config, test, grouped)


def _check_clusters(config: Any, split: LabelledSplit, check: Callable[[Any, int], Any]) -> None:
    try:
        check(split.clusters, len(split.keys))
    except InputError as error:
        raise InputError(
            f'{config.data.path}, {split.name}: intervals.cluster={config.intervals.cluster!r}: {error}; '
            'name another field, or set intervals.replicates=0'
        ) from error


def entrants(config: Evaluation) -> Iterator[Entrant]:
    """Every system but the class shares with every choice of sensors; each system is opened once."""
    settings = config.encoder
    for kind in dict.fromkeys([settings.checkpoint, *settings.baselines]):
        if kind == PRIOR:
            continue
        system = open_system(kind, settings)
        fields = {
            'system': system.name,
            'checkpoints': (system.fingerprint,) if system.fingerprint else (),
            'leaks': leaks(config.data, system.seen),
        }
        short = kind if kind in (RANDOM, BANDS) else 'checkpoint'
        for modalities in settings.modalities:
            yield Entrant(short, system, modalities, fields, kind != settings.checkpoint)


def read_task(data: Task, cluster: str = '', val_cluster: str = '') -> LabelledSet:
    """The labels of the three splits.

    Args:
        data: where they are.
        cluster: the index field that names the scene of each test record; '' for none.
        val_cluster: of each validation record.

    Raises:
        InputError: no such split, label field or cluster field; labels that are not 0 and 1; a record that
            stands in two of the splits.
    """
    contract = Source(data.path, data.train_split, ()).contract
    numbers = data.kind == 'regression'
    known: Mapping[str, Any] = (contract.targets or {}) if numbers else contract.classes
    if data.labels not in known:
        what = 'field of numbers to predict' if numbers else 'label field'
        raise InputError(
            f'{data.path}: no {what} {data.labels!r} (data.labels); '
            f'{nearest(data.labels, known) if known else "it has none"}'
        )
    train = read_split(data, contract, data.train_split, '')
    val = read_split(data, contract, data.val_split, val_cluster)
    test = read_split(data, contract, data.test_split, cluster)
    if numbers:
        about = known[data.labels]
        task = LabelledSet(contract, about.names, train, val, test, about.units)
    else:
        task = LabelledSet(contract, contract.classes[data.labels], train, val, test)
    check_apart(task, data.path)
    return task


def read_split(data: Task, contract: Contract, split: str, cluster: str) -> LabelledSplit:
    """Keys, labels and (unless `cluster` is empty) clusters of a split, from its index."""
    fields = list(dict.fromkeys([contract.key, data.labels, *([cluster] if cluster else [])]))
    index = Source(data.path, split, ()).index(fields)
    labels = index[data.labels]
    of_cluster = index[cluster] if cluster else None
    if data.kind == 'regression':
        return LabelledSplit(split, index[contract.key], _numbers(labels, data, split), of_cluster)
    single = data.kind == 'single_label'
    if labels.ndim != 2 or not np.isin(labels, (0, 1)).all():
        raise InputError(f'{data.path}, {split}: {data.labels} is not a row of 0 and 1 for each record')
    if single and not (bad := labels.sum(axis=1) == 1).all():
        where = int(np.argmin(bad))
        raise InputError(
            f'{data.path}, {split}: record {index[contract.key][where].decode()} has '
            f"{labels[where].sum()} classes in {data.labels}; data.kind='single_label' needs exactly one"
        )
    return LabelledSplit(split, index[contract.key], labels.astype(np.uint8), of_cluster)


def _numbers(labels: np.ndarray, data: Task, split: str) -> np.ndarray:
    """Targets (records, targets); raises InputError for a split without any, or for infinite ones."""
    numbers = labels.reshape(len(labels), -1).astype(np.float32)
    if np.isinf(numbers).any() or not np.isfinite(numbers).any():
        message = 'infinite numbers' if np.isinf(numbers).any() else 'no number'
        raise InputError(f'{data.path}, {split}: {data.labels} has {message}; convert from a repaired table')
    return numbers


def check_apart(task: LabelledSet, path: str) -> None:
    """Raises InputError for a record that stands in two of the splits."""
    splits = (task.train, task.val, task.test)
    for i, first in enumerate(splits):
        for second in splits[i + 1 :]:
            both = np.intersect1d(first.keys, second.keys)
            if both.size:
                raise InputError(
                    f'{path}: {both.size:,} records are in {first.name!r} and in {second.name!r}, such as '
                    f'{both[0].decode()}; what a head learns from or is settled on must not be tested on'
                )


def subsets(data: Task, task: LabelledSet, fraction: float, draw: str, seeds: Sequence[int]) -> dict:
    """Seed -> positions of the labelled records in the training split, as stored; one for all of them.

    Raises:
        InputError: no such list.
    """
    if fraction == 1:
        return {0: np.arange(len(task.train.keys), dtype=np.int32)}
    # The draw of DINO-MM is one list, whose seed is its own.
    seeds = [DINO_MM_SEED] if draw == DINO_MM else seeds
    return {seed: read_fraction(data.path, data.train_split, fraction, draw, seed) for seed in seeds}


def measure(
    task: LabelledSet, split: LabelledSplit, scores: np.ndarray, kind: str, threshold: float
) -> Measure:
    """The checked scores and labels of a split."""
    if kind == 'regression':
        return predicted(scores, split.labels, task.classes, keys=split.keys)
    if kind == 'single_label':
        return single_label(scores, split.labels.argmax(axis=1), task.classes, names=split.keys)
    return multi_label(scores, split.labels, task.classes, threshold=threshold, names=split.keys)


def validation(config: Any, task: LabelledSet) -> Callable[[np.ndarray], float]:
    """The metric that settles a sweep, as a function of the logits of the validation split."""
    name, kind = metric_of(config), config.data.kind
    return lambda logits: values(measure(task, task.val, logits, kind, 0.0))[name]


def leaks(data: Task, known: seen.Seen | None) -> dict[str, int] | None:
    """How many records of the test split an encoder has learned from; None where it does not say."""
    if known is None:
        return None
    _, records = seen.read_records(data.path, data.test_split)
    return seen.count(records, known)
