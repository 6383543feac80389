"""`python main.py bench input`: what each stage of reading costs, from the raw record to the device."""

import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from fusmae_jax.config.build import build, to_dict
from fusmae_jax.config.run import Config, Modality
from fusmae_jax.input import cost, pipeline
from fusmae_jax.input.cost import Rate
from fusmae_jax.input.prepare import fields
from fusmae_jax.input.source import Source
from fusmae_jax.parallel.mesh import batch_sharding, make_mesh

SECONDS = 3.0  # of each timing
ROUNDS = 3  # the best of them counts: what else runs on a machine only slows
MANY = 2**17  # below 2**16 the shuffle of grain costs more for every record, the fewer there are


def bench_input(path: str, split: str, batch_size: int, threads: int, as_json: bool = False) -> int:
    """Prints records/s and processor time a record of the raw read, our source, host batches, on the device.

    All stages read the same records in random order with the same number of threads. The files should be read
    once before (they then lie in the page cache), or be larger than memory.
    """
    pipeline.keep_freed_memory()
    config, source = _config(path, split, batch_size, threads)
    rates = measure(config, source)
    raw, last = rates['raw'], rates['device']
    size = sum(source[0][name].nbytes for name in source.fields)
    most = cost.reachable(last.cpu_seconds)
    result = {
        'data': path,
        'split': source.split,
        'records': len(source),
        'threads': threads,
        'batch_size': batch_size,
        'image_bytes': size,
        'records_per_second': {name: round(rate.records_per_second, 1) for name, rate in rates.items()},
        'cpu_ms': {name: round(1e3 * rate.cpu_seconds, 4) for name, rate in rates.items()},
        'host_path_over_raw_read': round(raw.records_per_second / rates['batches'].records_per_second, 3),
        f'records_per_second_{cost.CORES}_cores': round(most, 1),
    }
    if as_json:
        print(json.dumps(result, indent=2))
        return 0
    print(f'{path}, split {source.split}: {len(source):,} records')
    print(f'{threads} threads, batches of {batch_size}, {size:,} bytes of images a record')
    for name, title in TITLES.items():
        rate, cpu = rates[name]
        print(
            f'{title:<32}{rate:>8,.0f} records/s {rate * size / 1e6:>7,.0f} MB/s {1e3 * cpu:>7.3f} ms of a '
            f'core a record, {cpu / raw.cpu_seconds:.2f} x the raw read'
        )
    print(
        f'by the last line {cost.CORES} cores read {cost.CORES / last.cpu_seconds:,.0f} records/s, one '
        f'process at most {1 / cost.LOCKED:,.0f} (it holds a lock for {1e3 * cost.LOCKED:.2f} ms of a record)'
    )
    return 0


TITLES = {
    'raw': 'ArrayRecord read, bytes only',
    'source': 'our source, decoded',
    'batches': 'host batches, shuffled',
    'device': 'batches on the device',
}


def _config(path: str, split: str, batch_size: int, threads: int) -> tuple[Config, Source]:
    """A configuration that reads every image field of a data set."""
    source = Source(path, split, ())
    modalities: dict[str, Modality] = {}
    for group in source.contract.groups.values():
        bands = (*modalities.get(group.modality, Modality()).bands, *group.bands)
        ones = tuple(1.0 for _ in bands)
        modalities[group.modality] = Modality(bands=bands, mean=ones, std=ones)
    values = to_dict(Config())
    values['model']['modalities'] = {name: to_dict(m) for name, m in modalities.items()}
    values['model']['fusion']['encoder'] = 'none'
    values['data'] |= {'path': path, 'train_split': split, 'threads': threads}
    values['train'] |= {'batch_size': batch_size}
    config = build(values)
    source.fields = tuple(fields(config, source.contract))
    return config, source


def measure(config: Config, source: Source) -> dict[str, Rate]:
    """How fast each stage is: raw, source, batches, device."""
    stages = {
        'raw': lambda: _mapped(source.raw, len(source), config),
        'source': lambda: _mapped(source.__getitem__, len(source), config),
        'batches': lambda: _batches(config, source),
        'device': lambda: _on_device(config, source),
    }
    rounds: dict[str, list[Rate]] = {name: [] for name in stages}
    for _ in range(ROUNDS):  # stages take turns, so that a slow minute of the machine hits them all
        for name, stage in stages.items():
            rounds[name].append(_rate(stage))
    return {
        name: Rate(max(r.records_per_second for r in rates), min(r.cpu_seconds for r in rates))
        for name, rates in rounds.items()
    }


def loader_rate(config: Config, source: Source) -> float:
    """Records a second of reading and batching alone."""
    # Whole batches are counted, and one of thousands of records would hardly come twice in SECONDS.
    size = min(config.train.batch_size, 64)
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, batch_size=size))
    return _rate(lambda: _batches(config, source)).records_per_second


def _rate(stage: Callable[[], Iterator[int]]) -> Rate:
    """Of an endless iterator over numbers of records, after its first two."""
    counts = stage()
    # The first ones start the threads and fill the queue.
    for _ in range(2):
        next(counts)
    begin, cpu, done = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - begin < SECONDS:
        done += next(counts)
    rate = Rate(done / (time.perf_counter() - begin), (time.process_time() - cpu) / done)
    counts.close()  # type: ignore[attr-defined]  # a generator
    return rate


def _mapped(read: Callable[[int], Any], records: int, config: Config) -> Iterator[int]:
    """Single reads in random order by a pool of threads, a batch of them at a time."""
    rng = np.random.default_rng(config.seed)
    with ThreadPoolExecutor(config.data.threads) as pool:
        while True:
            order = rng.integers(records, size=config.train.batch_size).tolist()
            for _ in pool.map(read, order):
                pass
            yield len(order)


class _Many:
    """The records of a source over and over, as many as a real set has."""

    def __init__(self, source: Source):
        self._source, self._records = source, len(source)

    def __len__(self) -> int:
        return max(MANY, self._records)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return self._source[index % self._records]


def _host(config: Config, source: Source) -> Iterator[dict[str, np.ndarray]]:
    size = config.train.batch_size
    batches = pipeline.train_batches(_Many(source), config.seed, size, range(size))
    return pipeline.iterate(batches, 0, 10**9, threads=config.data.threads, prefetch=config.data.prefetch)


def _batches(config: Config, source: Source) -> Iterator[int]:
    host = _host(config, source)
    try:
        for _ in host:
            yield config.train.batch_size
    finally:
        host.close()  # type: ignore[attr-defined]


def _on_device(config: Config, source: Source) -> Iterator[int]:
    sharding = batch_sharding(make_mesh(config.parallel, jax.devices()[:1]))
    rows, host = {'': config.train.batch_size}, _host(config, source)
    try:
        for batch in host:
            jax.block_until_ready(pipeline.to_devices(batch, sharding, rows, source.fields))
            yield config.train.batch_size
    finally:
        host.close()  # type: ignore[attr-defined]
