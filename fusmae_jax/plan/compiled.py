"""The real train step, compiled for a machine: what it holds on one device and what it sends."""

import math
import time
from typing import Any, NamedTuple

import jax

from fusmae_jax.input.mixture import row_counts
from fusmae_jax.plan.collectives import Collectives, of_program
from fusmae_jax.plan.topology import out_of_memory
from fusmae_jax.train.setup import Setup
from fusmae_jax.train.step import abstract_batch

# A program for a TPU costs its compiler a fifth of the time so, and holds a few per cent more memory.
QUICK = {'exec_time_optimization_effort': -1.0}


class Memory(NamedTuple):
    """Bytes of one device."""

    arguments: int  # the state and the batch
    outputs: int  # what does not take the place of an argument
    temporaries: int
    program: int

    @property
    def total(self) -> int:
        """All that is held while the step runs."""
        return sum(self)


class Step(NamedTuple):
    """A compiled train step; of one that the compiler refused, only the bytes are known."""

    batch_size: int
    total: int  # bytes of one device
    seconds: float  # to compile
    memory: Memory | None
    collectives: Collectives | None


def compile_step(setup: Setup, batch_size: int, *, quick: bool, read_program: bool = False) -> Step:
    """Compiles the step for a global batch.

    Args:
        setup: the run, built for the devices to compile for.
        batch_size: rows of a step.
        quick: spend less time on making a TPU program fast; on other devices it means nothing.
        read_program: also list the collectives.

    A program that is too large for the device is an answer, not an error.
    """
    tpu = setup.mesh.devices.flat[0].platform == 'tpu'
    begin = time.perf_counter()
    lowered = setup.lower(batch_size)
    try:
        compiled = lowered.compile(compiler_options=QUICK if quick and tpu else None)
    except jax.errors.JaxRuntimeError as error:
        needed, _ = out_of_memory(str(error))
        if needed is None:
            raise
        return Step(batch_size, needed, time.perf_counter() - begin, None, None)
    memory = held(compiled)
    sent = of_program(compiled) if read_program else None
    return Step(batch_size, memory.total, time.perf_counter() - begin, memory, sent)


def held(compiled: Any) -> Memory:
    """The compiler's plan of one device's memory."""
    plan = compiled.memory_analysis()
    return Memory(
        plan.argument_size_in_bytes,
        plan.output_size_in_bytes - plan.alias_size_in_bytes,
        plan.temp_size_in_bytes,
        plan.generated_code_size_in_bytes,
    )


def bytes_on_device(tree: Any) -> int:
    """Bytes of abstract arrays on one device, from their shapes and shardings."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)


def state_bytes(setup: Setup) -> int:
    """Bytes of parameters, optimizer and counters on one device."""
    return bytes_on_device(setup.abstract_state())


def batch_bytes(setup: Setup, batch_size: int) -> int:
    """Bytes of a global batch, as the host sends it, on one device."""
    rows = row_counts(setup.config.data, batch_size)
    return bytes_on_device(abstract_batch(setup.contract, setup.objective.fields, rows, setup.mesh))
