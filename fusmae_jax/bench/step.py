"""`python main.py bench`: how fast the real train step and the real loader are on this machine."""

import dataclasses
import time
from typing import Any, NamedTuple

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


class StepTime(NamedTuple):
    """A train step of one batch size on the devices of this machine."""

    size: int  # images
    compile_seconds: float
    seconds: float  # of a step, the median
    flops: float  # analytic, of a step
    mfu: float | None  # None where the peak of the chip is not known
    planned: int  # bytes of one device, by the compiler
    peak: int | None  # bytes that one device has held; None where it does not say
    compiled: jax.stages.Compiled


def measure_step(config: Config, source: Mixture, size: int) -> StepTime:
    """Compiles the train step and times it on one batch, again and again: reading is timed by itself."""
    setup = make_setup(config, source.contract, len(source))
    sharding = batch_sharding(setup.mesh)
    host = source.batches(config.seed, sharding)[0]
    batch = pipeline.to_devices(host, sharding, source.rows, setup.objective.fields)
    begin = time.perf_counter()
    compiled = setup.lower(size).compile()
    compile_seconds = time.perf_counter() - begin
    state = setup.init_state()
    times = []
    for _ in range(WARMUP + REPEATS):
        begin = time.perf_counter()
        state, metrics = compiled(state, batch)
        jax.block_until_ready(metrics)
        times.append(time.perf_counter() - begin)
    # The median: the first steps after a compile, and those that the machine disturbs, are slower.
    seconds = float(np.median(times[WARMUP:]))
    flops = train_flops_per_image(config) * size
    peak = peak_flops(jax.devices()[0].device_kind)
    mfu = flops / seconds / (peak * jax.device_count()) if peak else None
    held = (jax.devices()[0].memory_stats() or {}).get('peak_bytes_in_use')
    return StepTime(size, compile_seconds, seconds, flops, mfu, _planned(compiled), held, compiled)


def time_step(config: Config, source: Mixture, size: int) -> dict[str, str]:
    """Compile time, median step time and what follows from it, of one batch size."""
    step = measure_step(config, source, size)
    memory = f'{step.planned / 2**30:.2f} GiB planned, process {most_held() / 2**30:.2f} GiB'
    if step.peak is not None:
        memory = f'{step.peak / 2**30:.2f} GiB (planned {step.planned / 2**30:.2f})'
    return {
        'batch': f'{size}',
        'compile': f'{step.compile_seconds:.1f} s',
        'step': f'{step.seconds * 1e3:,.1f} ms',
        'images/s': f'{size / step.seconds:,.1f}',
        'analytic TFLOP/s': f'{step.flops / step.seconds / 1e12:.3f}',
        'MFU': 'unknown (chip peak not listed)' if step.mfu is None else f'{step.mfu:.1%}',
        'peak memory': memory,
    }


def _planned(compiled: jax.stages.Compiled) -> int:
    """The compiler's figure for one device, program not counted."""
    plan: Any = compiled.memory_analysis()
    held = plan.argument_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes
    return held + plan.temp_size_in_bytes
