"""Label fractions of a split, drawn once and stored beside it; reading them is `fusmae_jax.input.fractions`.

`random` ranks records by the BLAKE2b hash of `random/<seed>/<name>`: which records are drawn depends on
their names alone, not on their order, and is the same wherever it is computed again.

`stratified` is iterative stratification (Sechidis, Tsoumakas and Vlahavas: On the Stratification of
Multi-Label Data, ECML PKDD 2011) into the fraction and the rest: again and again, take the class with the
fewest records left and give each of them to the side that lacks the most of that class. What the paper
leaves to chance, the order of records, is that of the hash of `stratified/<seed>/<name>`; where sides are
even the fraction takes the record. The paper's sizes are not exact, and a class that is dealt with late can
be off by what came along with the others (tens of records in 270,000); so records are moved at the end until
the size is exact and every class as near to its share as moves bring it, in general to one record.

`dino_mm` is what DINO-MM's linear evaluation does: `numpy.random.default_rng(42).choice(n, 3000)`, with
replacement. There n is 300,000, the first records of a list that is not public, in the order of its LMDB
file. For a split of 300,000 records the positions are the same; the images behind them are not. What can be
compared is the procedure: as many draws, as many repeats.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from fusmae_jax import storage
from fusmae_jax.errors import InputError
from fusmae_jax.input import fractions as stored
from fusmae_jax.input.source import read_index


def lists(
    index: Mapping[str, np.ndarray], key_field: str, label_field: str | None = None
) -> dict[str, np.ndarray]:
    """All label fractions of a split: name of a list -> int32 positions of its records.

    Args:
        index: fields of the records in the order of the split.
        key_field: the names of the records, bytes; unique.
        label_field: multi-hot labels (records, classes); None leaves the stratified lists out.

    Raises:
        InputError: a name that stands there twice, or labels that are not multi-hot.
    """
    names = index[key_field]
    by_name = np.argsort(names)
    if (names[by_name][1:] == names[by_name][:-1]).any():
        raise InputError(f'{key_field}: the records of the split do not have different names')
    chosen_by_name = {}
    for seed in stored.SEEDS:
        order = _hash_order('random', seed, names, by_name)
        for percent in stored.PERCENT:
            chosen = order[: budget(len(names), percent)]
            chosen_by_name[stored.list_name('random', percent, seed)] = chosen
        if label_field is not None:
            labels = _checked(index[label_field], label_field, len(names))
            chosen = _hash_order('stratified', seed, names, by_name)
            for percent in stored.PERCENT:
                # From the larger fraction, as the smaller random one is a part of the larger one too.
                chosen = chosen[stratify(labels[chosen], budget(len(names), percent))]
                chosen_by_name[stored.list_name('stratified', percent, seed)] = chosen
    result = {name: np.sort(positions).astype(np.int32) for name, positions in chosen_by_name.items()}
    return result | {stored.DINO_MM: dino_mm(len(names))}


def budget(records: int, percent: int) -> int:
    """How many records a fraction has: rounded down, as the budgets in the literature are."""
    return records * percent // 100


def dino_mm(records: int) -> np.ndarray:
    """Positions that the linear evaluation of DINO-MM draws from so many records; int32, with repeats."""
    return np.random.default_rng(stored.DINO_MM_SEED).choice(records, stored.DINO_MM_DRAWS).astype(np.int32)


def write_lists(folder: epath.PathLike, split: str, key_field: str, label_field: str | None = None) -> None:
    """Draws the label fractions of a split from its index and writes them beside it."""
    fields = [key_field, *([label_field] if label_field else [])]
    index = read_index(folder, split, fields)
    arrays: dict[str, Any] = {**lists(index, key_field, label_field)}
    arrays[stored.DIGEST] = np.array(stored.digest(index[key_field]))
    storage.write_npz(epath.Path(folder) / stored.FILE.format(split=split), arrays, compressed=True)


def label_field(classes: Mapping[str, Sequence[str]]) -> str | None:
    """The multi-hot field to stratify by: the one with the fewest classes, in which results are reported."""
    return min(classes, key=lambda field: len(classes[field])) if classes else None


def _hash_order(draw: str, seed: int, names: np.ndarray, by_name: np.ndarray) -> np.ndarray:
    """All positions, by the hash of draw, seed and name; equal hashes by the name."""
    prefix = f'{draw}/{seed}/'.encode()
    hashes = [
        int.from_bytes(hashlib.blake2b(prefix + name, digest_size=8).digest())
        for name in names[by_name].tolist()
    ]
    return by_name[np.argsort(np.array(hashes, np.uint64), kind='stable')]


def _checked(labels: np.ndarray, field: str, records: int) -> np.ndarray:
    if labels.ndim != 2 or len(labels) != records or not np.isin(labels, (0, 1)).all():
        raise InputError(
            f'{field}: {labels.dtype}{list(labels.shape)} are not multi-hot labels (records, classes) of 0 '
            'and 1'
        )
    return labels.astype(bool)


def stratify(labels: np.ndarray, size: int) -> np.ndarray:
    """Which `size` of the records keep the shares of all classes; their positions, ascending.

    Args:
        labels: (records, classes) bool, records in the order in which they are to be taken.
        size: how many.
    """
    records = len(labels)
    inside, free = np.zeros(records, bool), np.ones(records, bool)
    # What inside lacks minus what outside lacks, times `records` to stay whole: for each class, and in all.
    lacks = (labels.sum(axis=0, dtype=np.int64) * (2 * size - records)).tolist()
    total = records * (2 * size - records)
    labels_of = [np.flatnonzero(row).tolist() for row in labels]
    while (left := labels[free].sum(axis=0)).any():
        rarest = int(np.argmin(np.where(left > 0, left, records + 1)))
        for record in np.flatnonzero(free & labels[:, rarest]).tolist():
            # Where both sides lack as much of the class, the one that lacks more records in all gets it.
            inside[record] = enters = (lacks[rarest] or total) >= 0
            step = -records if enters else records
            total += step
            for label in labels_of[record]:
                lacks[label] += step
        free &= ~labels[:, rarest]
    unlabelled = np.flatnonzero(free)
    inside[unlabelled[: max(0, size - int(inside.sum()))]] = True
    _settle(inside, labels, size)
    return np.flatnonzero(inside)


def _settle(inside: np.ndarray, labels: np.ndarray, size: int) -> None:
    """Moves records, in place: until `size` are inside, then in pairs while a class is more than one off.

    Each move is the one that brings the classes nearest to their shares, by the sum of (found - wanted)^2 /
    wanted. Of equal ones it is the first record.
    """
    wanted = np.maximum(labels.sum(axis=0) * (size / max(len(labels), 1)), 1e-9)
    off = labels[inside].sum(axis=0) - wanted
    if inside.sum() == size and (np.abs(off) <= 1).all():
        return
    # Records with the same labels are alike to a move, and there are far fewer kinds than records.
    kinds, kind = np.unique(labels, axis=0, return_inverse=True)
    kind = kind.ravel()

    def move(leaves: bool) -> int:
        sign = -1 if leaves else 1
        cost = np.zeros(len(kinds))
        # Class by class: a matrix product would add up in an order that depends on the machine.
        for label, change in enumerate((1 + 2 * sign * off) / wanted):
            cost += kinds[:, label] * change
        there = np.bincount(kind[inside == leaves], minlength=len(kinds)) > 0
        best = int(np.argmin(np.where(there, cost, np.inf)))
        record = int(np.argmax((kind == best) & (inside == leaves)))
        inside[record] = not leaves
        off[:] += sign * kinds[best]
        return record

    while excess := int(inside.sum()) - size:
        move(excess > 0)
    while 0 < size < len(labels) and (np.abs(off) > 1).any():
        before = (off**2 / wanted).sum()
        left, entered = move(True), move(False)
        # A gain within the rounding is none: records would be swapped forever.
        if (off**2 / wanted).sum() > before - 1e-9:
            inside[entered], inside[left] = False, True
            return
