"""Order, process slices and batches: what a step reads is a function of (seed, step) alone.

There is one global shuffle. Step s reads the global positions [s * B, (s + 1) * B), of which a process
reads the rows that its devices own, and every record carries its position. So nothing has to be saved to
resume, and process count or row order change no result.
"""

import functools
import sys
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import grain
import jax
import numpy as np
from jax.sharding import NamedSharding

from fusmae_jax.parallel.allocator import M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, mallopt

POSITION = 'position'


class BatchPlace(NamedTuple):
    """Where the rows of one data set stand in each global batch."""

    total: int  # rows of a global batch
    first: int  # the first row of this set
    rows: int  # how many it has


class Batches(grain.MapDataset):
    """Of each global batch the rows of this process: `batches[step]`, field -> (rows, ...), and POSITION.

    An image is copied once, from the bytes that were read into the batch, while the processor's caches still
    hold it; to gather records and stack them afterwards reads each from memory again.
    """

    def __init__(self, source: Any, order: Callable[[int], int], place: BatchPlace, rows: Sequence[int]):
        """`order` gives the index of a record in `source` for each place among the rows of this set."""
        super().__init__(grain.MapDataset.range(len(source)).repeat())
        self._source, self._order, self._place, self._rows = source, order, place, tuple(rows)

    def __len__(self) -> int:
        # An endless parent has the largest length that there is, and grain adds to that of what it is given.
        return min(len(self._parent), sys.maxsize // 2) // self._place.rows

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.slice(index)
        first = index * self._place.rows
        batch = _assemble((self._source[self._order(first + row)] for row in self._rows), len(self._rows))
        # Random keys fold the position in as 32 bits. Those repeat after 4.3e9 samples, which is a hundred
        # times the 120 epochs of 354,196 records of the paper's pretraining.
        start = index * self._place.total + self._place.first
        return batch | {POSITION: np.array([(start + row) % 2**32 for row in self._rows], np.uint32)}


def _assemble(records: Iterable[Mapping[str, Any]], count: int) -> dict[str, np.ndarray]:
    """One array a field of `count` records with the same fields."""
    images: dict[str, np.ndarray] = {}
    values: dict[str, list[Any]] = {}
    for row, record in enumerate(records):
        if row == 0:
            values = {name: [] for name in record}
            images = {n: np.empty((count, *v.shape), v.dtype) for n, v in record.items() if np.ndim(v)}
        for name, value in record.items():
            if name not in images:
                values[name].append(value)
            elif value.shape != images[name].shape[1:] or value.dtype != images[name].dtype:
                raise ValueError(f'{name}: {value.dtype} {value.shape} beside {images[name].dtype} others')
            else:
                images[name][row] = value
    # Texts differ in length: their type is known when all are.
    return {name: images[name] if name in images else np.stack(rows) for name, rows in values.items()}


def local_rows(sharding: NamedSharding, batch_size: int) -> list[int]:
    """Rows of the global batch that the devices of this process own, in ascending order."""
    slices = sharding.addressable_devices_indices_map((batch_size,)).values()
    return sorted({row for index in slices if index for row in range(*index[0].indices(batch_size))})


def train_batches(
    source: Any, seed: int, batch_size: int, rows: Sequence[int], place: BatchPlace | None = None
) -> grain.MapDataset:
    """Endless batches of a process: `batches[s]` is what it reads in step s; reshuffled every epoch.

    `place` is needed where the `batch_size` rows of this source are but a part of the global batch.
    """
    place = place or BatchPlace(batch_size, 0, batch_size)
    return Batches(source, _shuffle(len(source), seed), place, rows)


def _shuffle(records: int, seed: int) -> Callable[[int], int]:
    """The index of a record for each position of an endless order, in which every epoch is shuffled anew.

    It is that of grain's `seed(seed).shuffle().repeat()`, without the bookkeeping of its data sets, which
    takes longer than the shuffle itself, under Python's lock. Where grain does otherwise, it is asked itself.
    """
    dataset = grain.MapDataset.range(records).seed(seed).shuffle()
    endless = dataset.repeat()
    fast = functools.partial(_shuffled, records, getattr(dataset, '_seed', 0))
    same = all(fast(position) == endless[position] for position in (0, records + records // 2))
    return fast if same else lambda position: int(endless[position])


def _shuffled(records: int, key: int, position: int) -> int:
    epoch, index = divmod(position, records)
    return grain.experimental.index_shuffle(
        index, max_index=records - 1, seed=(key + epoch) % 2**32, rounds=4
    )


def eval_batches(source: Any, batch_size: int, rows: Sequence[int]) -> tuple[grain.MapDataset, int]:
    """Every record once, in order, and the number of batches.

    The last batch is filled up by starting over; records with a position of `len(source)` or more are
    such repeats and must be left out of sums.
    """
    steps = -(-len(source) // batch_size)
    place = BatchPlace(batch_size, 0, batch_size)
    return Batches(source, functools.partial(_in_turn, len(source)), place, rows), steps


def _in_turn(records: int, position: int) -> int:
    return position % records


def iterate(
    batches: grain.MapDataset, start: int, stop: int, *, threads: int, prefetch: int
) -> Generator[dict[str, np.ndarray]]:
    """Host batches of the steps [start, stop), read ahead by threads, which end with the iterator."""
    keep_freed_memory()
    # grain's own default reads 500 elements ahead, and an element here is a whole batch.
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
    iterator = iter(batches[start:stop].to_iter_dataset(options))
    try:
        yield from iterator
    finally:
        iterator.close()


def over_split(
    source: Any,
    run: Callable[[dict[str, jax.Array]], Any],
    sharding: NamedSharding,
    size: int,
    data: Any,
    *,
    fields: Sequence[str] = (),
    batches: int = 0,
) -> Generator[tuple[slice, Any]]:
    """What a function gives for the records of a split, read once and in order.

    Args:
        source: the records.
        run: from a batch on the devices to arrays on the host.
        sharding: of a batch.
        size: records of a batch.
        data: settings of the reader, `threads` and `prefetch`.
        fields: that are read; those of the source by default.
        batches: of the first records alone; 0: of all.

    Yields:
        Which records a batch holds, and what `run` gave for it. The last batch is filled up: of its rows the
        first ones count, as many as there are records (see `joined`).
    """
    wanted, rows = tuple(fields) or source.fields, local_rows(sharding, size)
    dataset, steps = eval_batches(source, size, rows)
    stop = min(steps, batches or steps)
    stream = iterate(dataset, 0, stop, threads=data.threads, prefetch=data.prefetch)
    for step, batch in enumerate(stream):
        result = run(to_devices(batch, sharding, {'': size}, wanted))
        yield slice(step * size, min((step + 1) * size, len(source))), result


def joined(parts: Sequence[Any], count: int) -> Any:
    """Results of several batches, record after record, without what fills up the last batch."""
    return jax.tree.map(lambda *arrays: np.concatenate(arrays)[:count], *parts)


def prefix_of(field: str) -> str:
    """'ben/' of a field 'ben/s1' in the batch of a mixture, '' of a field of a single set."""
    return field[: field.rfind('/') + 1]


def to_devices(
    batch: dict[str, np.ndarray], sharding: NamedSharding, rows: Mapping[str, int], fields: Sequence[str]
) -> dict[str, jax.Array]:
    """Global arrays of the wanted fields (and the positions) from the rows of this process.

    `rows` are those of the global batch, by prefix.
    """
    return {
        name: jax.make_array_from_process_local_data(
            sharding, batch[name], (rows[prefix_of(name)], *batch[name].shape[1:])
        )
        for name in (*fields, *(f'{prefix}{POSITION}' for prefix in rows))
    }


@functools.cache
def keep_freed_memory() -> bool:
    """Lets freed batches be used again instead of being given back to the system; True if it could.

    A batch is tens of megabytes. By default glibc maps such arrays afresh each time, and touching the new
    pages costs more than filling them: stacking a batch took 0.25 ms a record instead of 0.02.
    """
    return mallopt((M_MMAP_THRESHOLD, 1 << 30), (M_TRIM_THRESHOLD, (1 << 31) - 1))
