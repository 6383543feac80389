"""The shard files behind a split: whether they are there and as long as they were written."""

import json
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from etils import epath

REPORT = 'conversion_report.json'
REMEDY = 'copy it again from where the data set came from, or convert again'
_THREADS = 32  # a bucket answers in tens of milliseconds


def problems(path: epath.PathLike, instructions: Iterable[Any]) -> list[str]:
    """What is wrong with shard files as far as their lengths tell, a sentence each.

    Args:
        path: the folder of the data set.
        instructions: TFDS's file instructions of a split, or of a part of one.
    """
    files = list(dict.fromkeys(os.fspath(instruction.filename) for instruction in instructions))
    lengths = _lengths(epath.Path(path))
    return [text for text in _each(lambda file: _problem(file, lengths), files) if text]


def _problem(file: str, lengths: dict[str, int]) -> str:
    shard = epath.Path(file)
    try:
        length = shard.stat().length if not shard.is_dir() else None
    except OSError:
        return f'{file}: this shard is missing; {REMEDY}'
    if length is None:
        return f'{file}: this shard is a folder; {REMEDY}'
    written = lengths.get(shard.name)
    if not length or (written is not None and length != written):
        expected = '' if written is None else f', {written:,} were written'
        return f'{file}: this shard has {length:,} bytes{expected}: cut off or another file; {REMEDY}'
    return ''


def _lengths(folder: epath.Path) -> dict[str, int]:
    """Shard -> bytes as the report of the conversion has them; empty where there is no such report."""
    try:
        splits = json.loads((folder / REPORT).read_text())['splits']
        # TFDS's names of shards, without which the lengths are of nothing.
        name = json.loads((folder / 'dataset_info.json').read_text())['name']
        return {
            f'{name}-{split}.array_record-{i:05d}-of-{len(about["shard_bytes"]):05d}': length
            for split, about in splits.items()
            for i, length in enumerate(about['shard_bytes'])
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def starts(instructions: Sequence[Any]) -> list[int]:
    """The position in the split of the first record that each file instruction takes."""
    first, result = 0, []
    for instruction in instructions:
        result.append(first)
        first += instruction.take
    return result


def locate(instructions: Sequence[Any], index: int) -> tuple[str, int]:
    """The shard file of the record at a position of the split, and its position there."""
    for instruction in instructions:
        if index < instruction.take:
            return os.fspath(instruction.filename), instruction.skip + index
        index -= instruction.take
    raise IndexError(index)


def for_each(check: Callable[[int], Any], positions: Sequence[int]) -> None:
    """Calls `check` of every position, several at a time; the first error is raised."""
    _each(check, positions)


def _each(function: Callable[[Any], Any], values: Sequence[Any]) -> list[Any]:
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(function, values))
