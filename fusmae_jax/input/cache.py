"""A copy of shards on a disk of this machine, without compression, for data that lie far away or packed.

Reading a record that zstd has packed costs a processor five times what the bytes alone cost, in every epoch.
The copy holds the same records, and so gives the same batches. It is made before the first step. A shard is
there when the note beside it is: whoever was cut off, or finds a part, goes on from there.
"""

import contextlib
import dataclasses
import fcntl
import functools
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from array_record.python import array_record_module
from etils import epath

from fusmae_jax import storage
from fusmae_jax.errors import InputError
from fusmae_jax.input.contract import Contract
from fusmae_jax.input.shards import REMEDY

GIB = 2**30
_AT_ONCE = 64  # records that are held of a shard
_MORE = 8192  # bytes of a record beside its images: names, labels, ArrayRecord's own


class Shard(NamedTuple):
    """One file of a data set and its copy."""

    source: str
    copy: Path
    records: int

    @property
    def note(self) -> Path:
        """Written when the copy is whole."""
        return self.copy.with_name(f'{self.copy.name}.json')

    def whole(self) -> bool:
        """Whether the copy is there, as long as it was written, and of the file that lies there now."""
        try:
            note = storage.read_json(epath.Path(self.note), '')
            return note == _note(self, epath.Path(self.source).stat().length)
        except (OSError, InputError):
            return False


def copies(cache: str, contract: Contract, instructions: Sequence[Any]) -> list[Any]:
    """TFDS's file instructions of a split, of the copies of its shards; copies what is not there yet.

    Several processes may call this at once: each shard is copied by one of them. The copies lie in a folder
    named by the fingerprint of the data set, so those of several sets do not meet.

    Args:
        cache: a folder of this machine.
        contract: of the data set.
        instructions: those of the split.

    Raises:
        InputError: a bucket for a folder, too little space, or a shard that cannot be read.
    """
    if storage.is_remote(cache):
        raise InputError(f'data.cache={cache!r}: must be a folder of this machine, such as one on its SSD')
    folder = Path(storage.absolute(cache)) / contract.fingerprint
    shards = {
        i.filename: Shard(os.fspath(i.filename), folder / epath.Path(i.filename).name, i.examples_in_shard)
        for i in instructions
    }
    missing = [shard for shard in shards.values() if not shard.whole()]
    if missing:
        folder.mkdir(parents=True, exist_ok=True)
        _check_space(folder, missing, contract)
        print(f'data.cache: copying {len(missing):,} of {len(shards):,} shards to {folder}', flush=True)
        with storage.explain_full_disk(folder), ThreadPoolExecutor(os.cpu_count()) as pool:
            # First those that nobody else copies at this moment, then whatever these have left.
            for wait in (False, True):
                list(pool.map(functools.partial(_ensure, wait), missing))
    return [
        dataclasses.replace(instruction, filename=os.fspath(shards[instruction.filename].copy))
        for instruction in instructions
    ]


def record_bytes(contract: Contract) -> int:
    """What a record takes without compression: its images, its maps of labels and of numbers, its names."""
    images = ((g.size, len(g.bands), g.dtype) for g in contract.groups.values())
    maps = ((m.size, 1, m.dtype) for m in (contract.maps or {}).values())
    numbers = ((m.size, 1, m.dtype) for m in (contract.number_maps or {}).values())
    sizes = (
        math.prod(size) * bands * np.dtype(dtype).itemsize
        for size, bands, dtype in (*images, *maps, *numbers)
    )
    return _MORE + sum(sizes)


def _check_space(folder: Path, missing: Sequence[Shard], contract: Contract) -> None:
    record = record_bytes(contract)
    needed, free = record * sum(shard.records for shard in missing), shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            f'data.cache={folder.parent}: {needed / GIB:,.1f} GiB are still to be copied there, and '
            f"{free / GIB:,.1f} GiB are free; give a folder with more space, or data.cache=''"
        )


def _ensure(wait: bool, shard: Shard) -> None:
    """Copies a shard unless it is there; without `wait`, not one that another process copies now."""
    with _alone(shard, wait) as alone:
        if alone and not shard.whole():
            _copy(shard)


@contextlib.contextmanager
def _alone(shard: Shard, wait: bool) -> Iterator[bool]:
    """Whether this process may copy a shard; the kernel gives the lock back when a process ends."""
    with shard.copy.with_name(f'{shard.copy.name}.lock').open('w') as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def _copy(shard: Shard) -> None:
    """Writes the records of a shard anew; ArrayRecord checks each as it is read, here and in every epoch."""
    part = shard.copy.with_name(f'{shard.copy.name}.part')
    length = epath.Path(shard.source).stat().length
    writer = array_record_module.ArrayRecordWriter(os.fspath(part), 'group_size:1,uncompressed')
    try:
        for record in _records(shard):
            writer.write(record)
    finally:
        writer.close()
    if (count := array_record_module.ArrayRecordReader(os.fspath(part)).num_records()) != shard.records:
        raise InputError(f'{shard.source}: {count:,} of {shard.records:,} records were copied; {REMEDY}')
    part.replace(shard.copy)
    storage.write_json(shard.note, _note(shard, length))


def _records(shard: Shard) -> Iterator[bytes]:
    """The records of a shard; raises InputError if one cannot be read."""
    try:
        reader = array_record_module.ArrayRecordReader(shard.source, 'readahead_buffer_size:0')
        for first in range(0, shard.records, _AT_ONCE):
            yield from reader.read([*range(first, min(first + _AT_ONCE, shard.records))])
        reader.close()
    except (RuntimeError, ValueError, IndexError) as error:
        raise InputError(f'{shard.source}: cannot be read ({error}); {REMEDY}') from error


def _note(shard: Shard, source_bytes: int) -> dict[str, int]:
    """What is written beside a whole copy: what it was made of, and its length."""
    return {
        'source_bytes': source_bytes,
        'records': shard.records,
        'bytes': shard.copy.stat().st_size,
    }
