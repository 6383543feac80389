"""`python main.py bench`: how fast the real train step and the real loader are on this machine."""

import dataclasses
import time
from typing import Any

import jax
import numpy as np

from fusmae_jax.bench.input import loader_rate
from fusmae_jax.bench.memory import most_held
from fusmae_jax.config.run import Config
from fusmae_jax.input import pipeline
from fusmae_jax.input.mixture import Mixture, open_train
from fusmae_jax.parallel.mesh import batch_sharding, make_mesh
from fusmae_jax.train.flops import peak_flops, train_flops_per_image
from fusmae_jax.train.setup import make_setup

WARMUP, REPEATS = 2, 10


def bench(config: Config, sizes: list[int]) -> int:
    """Times the train step at each batch size of one device, then the loader alone; prints both.

    Without sizes, the configured global batch is timed. A size that does not fit is a line, not the end.
    """
    device = jax.devices()[0]
    print(f'{jax.device_count()} x {device.device_kind}, jax {jax.__version__}, {config.name}')
    devices = make_mesh(config.parallel).size
    for size in [size * devices for size in sizes] or [config.train.batch_size]:
        config = dataclasses.replace(config, train=dataclasses.replace(config.train, batch_size=size))
        try:
            source = open_train(config)
            print(' | '.join(f'{key} {value}' for key, value in time_step(config, source, size).items()))
        except jax.errors.JaxRuntimeError as error:
            if 'RESOURCE_EXHAUSTED' not in str(error):
                raise
            print(f'batch {size} | does not fit into the memory of {devices} devices')
    rate = loader_rate(config, next(iter(source.sources.values())))
    print(f'loader alone: {rate:,.0f} records/s with {config.data.threads} threads')
    return 0


def time_step(config: Config, source: Mixture, size: int) -> dict[str, str]:
    """Compile time, median step time and what follows from it, of one batch size."""
    setup = make_setup(config, source.contract, len(source))
    sharding = batch_sharding(setup.mesh)
    host = source.batches(config.seed, sharding)[0]
    batch = pipeline.to_devices(host, sharding, source.rows, setup.objective.fields)
    begin = time.perf_counter()
    compiled = setup.lower(size).compile()
    compile_seconds = time.perf_counter() - begin
    state = setup.init_state()
    times = []
    # One batch again and again: reading is timed by itself, in `bench`.
    for _ in range(WARMUP + REPEATS):
        begin = time.perf_counter()
        state, metrics = compiled(state, batch)
        jax.block_until_ready(metrics)
        times.append(time.perf_counter() - begin)
    # The median: the first steps after a compile, and those that the machine disturbs, are slower.
    seconds = float(np.median(times[WARMUP:]))
    flops = train_flops_per_image(config) * size / seconds
    peak = peak_flops(jax.devices()[0].device_kind)
    share = f'{flops / (peak * jax.device_count()):.1%}' if peak else 'unknown (chip peak not listed)'
    return {
        'batch': f'{size}',
        'compile': f'{compile_seconds:.1f} s',
        'step': f'{seconds * 1e3:,.1f} ms',
        'images/s': f'{size / seconds:,.1f}',
        'analytic TFLOP/s': f'{flops / 1e12:.3f}',
        'MFU': share,
        'peak memory': _peak_memory(compiled),
    }


def _peak_memory(compiled: Any) -> str:
    """The compiler's figure for one device and, on CPU, what the process has ever held."""
    plan = compiled.memory_analysis()
    planned = plan.argument_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes
    planned += plan.temp_size_in_bytes
    stats = jax.devices()[0].memory_stats() or {}
    if 'peak_bytes_in_use' in stats:
        return f'{stats["peak_bytes_in_use"] / 2**30:.2f} GiB (planned {planned / 2**30:.2f})'
    return f'{planned / 2**30:.2f} GiB planned, process {most_held() / 2**30:.2f} GiB'
