"""The labels of a data set by split, which of them a head may learn from, and that no record is in two."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fusmae_jax.errors import InputError, nearest
from fusmae_jax.eval.evaluation_config import Task
from fusmae_jax.eval.metrics import MultiLabel, SingleLabel, multi_label, single_label
from fusmae_jax.input import seen as leak
from fusmae_jax.input.contract import Contract
from fusmae_jax.input.fractions import DINO_MM, DINO_MM_SEED, read_fraction
from fusmae_jax.input.source import Source


class Split(NamedTuple):
    """The records of a split, in its order."""

    name: str
    keys: np.ndarray  # (records,) bytes, unique
    labels: np.ndarray  # (records, classes) uint8, 0 or 1
    clusters: np.ndarray | None  # (records,), where asked for


class Labelled(NamedTuple):
    """A data set to learn from and to be tested on."""

    contract: Contract
    classes: tuple[str, ...]
    train: Split
    val: Split
    test: Split


def read_task(data: Task, cluster: str = '') -> Labelled:
    """The labels of the three splits.

    Args:
        data: where they are.
        cluster: the index field that names the scene of each test record; '' for none.

    Raises:
        InputError: no such split, label field or cluster field; labels that are not 0 and 1; a record that
            stands in two of the splits.
    """
    contract = Source(data.path, data.train_split, ()).contract
    if data.labels not in contract.classes:
        raise InputError(
            f'{data.path}: no label field {data.labels!r} (data.labels); '
            f'{nearest(data.labels, contract.classes) if contract.classes else "it has no labels"}'
        )
    train, val = (read_split(data, contract, split, '') for split in (data.train_split, data.val_split))
    test = read_split(data, contract, data.test_split, cluster)
    found = Labelled(contract, contract.classes[data.labels], train, val, test)
    _check_apart(found, data.path)
    return found


def read_split(data: Task, contract: Contract, split: str, cluster: str) -> Split:
    """Keys, labels and (unless `cluster` is empty) clusters of a split, from its index."""
    fields = list(dict.fromkeys([contract.key, data.labels, *([cluster] if cluster else [])]))
    index = Source(data.path, split, ()).index(fields)
    labels = index[data.labels]
    single = data.kind == 'single_label'
    if labels.ndim != 2 or not np.isin(labels, (0, 1)).all():
        raise InputError(f'{data.path}, {split}: {data.labels} is not a row of 0 and 1 for each record')
    if single and not (bad := labels.sum(axis=1) == 1).all():
        where = int(np.argmin(bad))
        raise InputError(
            f'{data.path}, {split}: record {index[contract.key][where].decode()} has '
            f"{labels[where].sum()} classes in {data.labels}; data.kind='single_label' needs exactly one"
        )
    return Split(split, index[contract.key], labels.astype(np.uint8), index[cluster] if cluster else None)


def _check_apart(task: Labelled, path: str) -> None:
    splits = (task.train, task.val, task.test)
    for i, first in enumerate(splits):
        for second in splits[i + 1 :]:
            both = np.intersect1d(first.keys, second.keys)
            if both.size:
                raise InputError(
                    f'{path}: {both.size:,} records are in {first.name!r} and in {second.name!r}, such as '
                    f'{both[0].decode()}; what a head learns from or is settled on must not be tested on'
                )


def subsets(data: Task, task: Labelled, fraction: float, draw: str, seeds: Sequence[int]) -> dict:
    """Seed -> positions of the labelled records in the training split, as stored; one for all of them.

    Raises:
        InputError: no such list.
    """
    if fraction == 1:
        return {0: np.arange(len(task.train.keys), dtype=np.int32)}
    seeds = [DINO_MM_SEED] if draw == DINO_MM else seeds
    return {seed: read_fraction(data.path, data.train_split, fraction, draw, seed) for seed in seeds}


def measure(
    task: Labelled, split: Split, scores: np.ndarray, kind: str, threshold: float
) -> MultiLabel | SingleLabel:
    """The checked scores and labels of a split."""
    if kind == 'single_label':
        return single_label(scores, split.labels.argmax(axis=1), task.classes, names=split.keys)
    return multi_label(scores, split.labels, task.classes, threshold=threshold, names=split.keys)


def leaks(data: Task, seen: leak.Seen | None) -> dict[str, int] | None:
    """How many records of the test split an encoder has learned from; None where it does not say."""
    return None if seen is None else leak.count(leak.read_records(data.path, data.test_split)[1], seen)
