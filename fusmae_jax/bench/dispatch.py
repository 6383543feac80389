"""`python main.py bench dispatch`: what the host spends on a step before the device has it.

The parameter tree is that of the configured model, but a few numbers wide, so that nothing else counts.
"""

import dataclasses
import statistics
import time

import jax

from fusmae_jax.config.build import build, to_dict
from fusmae_jax.config.run import Config, Parallel
from fusmae_jax.input import pipeline
from fusmae_jax.input.mixture import open_train
from fusmae_jax.parallel.mesh import batch_sharding
from fusmae_jax.plan.batches import Batches
from fusmae_jax.train.setup import make_setup

WIDTH, HEADS = 8, 2
WARMUP, REPEATS = 50, 1000


def bench_dispatch(config: Config) -> int:
    """Prints the median host time of a call of the compiled step, on one device and on all of them."""
    for count in sorted({1, jax.device_count()}):
        milliseconds, leaves = dispatch(config, jax.devices()[:count])
        print(
            f'{count} x {jax.devices()[0].device_kind}: {milliseconds:.2f} ms of the host for a step '
            f'(median of {REPEATS}), {leaves} arrays of state'
        )
    return 0


def narrow(config: Config, devices: int) -> Config:
    """The same parameter tree, 8 wide, on images of four patches."""
    model = config.model
    small = dataclasses.replace(
        model,
        width=WIDTH,
        heads=HEADS,
        image_size=(2 * model.patch_size,) * 2,
        decoder=dataclasses.replace(model.decoder, width=WIDTH, heads=HEADS),
    )
    # A row of each device, or of a mixture the fewest that its sets can share.
    size = Batches(config.data, devices).near(1) or config.train.batch_size
    train = dataclasses.replace(config.train, batch_size=size, accumulation=1, compute_dtype='float32')
    # A mesh of many devices does not cover one.
    parallel = config.parallel if devices > 1 else Parallel()
    return build(to_dict(dataclasses.replace(config, model=small, train=train, parallel=parallel)))


def dispatch(config: Config, devices: list[jax.Device]) -> tuple[float, int]:
    """Median milliseconds from the call of a step to its return, and the number of arrays in the state."""
    config = narrow(config, len(devices))
    source = open_train(config)
    setup = make_setup(config, source.contract, len(source), devices)
    sharding = batch_sharding(setup.mesh)
    host = source.batches(config.seed, sharding)[0]
    batch = pipeline.to_devices(host, sharding, source.rows, setup.objective.fields)
    compiled, state, times = setup.lower().compile(), setup.init_state(), []
    for _ in range(WARMUP + REPEATS):
        begin = time.perf_counter()
        state, _ = compiled(state, batch)
        times.append(time.perf_counter() - begin)
        # A queue of steps would have the host wait for the device.
        jax.block_until_ready(state)
    return 1000 * statistics.median(times[WARMUP:]), len(jax.tree.leaves(state))
