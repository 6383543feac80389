"""The real train step, compiled for a machine: its program, and what it holds on one device."""

import math
import time
from typing import Any, NamedTuple

import jax

from fusmae_jax.input.mixture import row_counts
from fusmae_jax.plan.collectives import Collectives, of_module, program_text
from fusmae_jax.plan.hlo import Module, read
from fusmae_jax.plan.topology import is_here, out_of_memory
from fusmae_jax.train.setup import Setup
from fusmae_jax.train.step import abstract_batch

# A program for a TPU costs its compiler a fifth of the time so, and holds a few per cent more memory.
QUICK = {'exec_time_optimization_effort': -1.0}
# The tiles of XLA's own matrix products are chosen by timing them on the device; without one, some default
# tiles fit no product and the compiler gives up. The vendor's library takes them all.
NO_AUTOTUNER = {'xla_gpu_enable_triton_gemm': False}


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


class CompiledStep(NamedTuple):
    """A compiled train step; of one that the compiler refused, only the bytes are known."""

    batch_size: int
    total: int  # bytes of one device
    seconds: float  # to compile
    memory: Memory | None
    collectives: Collectives | None = None
    module: Module | None = None  # the optimised program


def compile_step(setup: Setup, batch_size: int, *, quick: bool, inspect: bool = False) -> CompiledStep:
    """Compiles the step for a global batch.

    Args:
        setup: the run, built for the devices to compile for.
        batch_size: rows of a step.
        quick: spend less time on making a TPU program fast; on other devices it means nothing.
        inspect: also read the program that the compiler made, where it prints it.

    A program that is too large for the device is an answer, not an error.
    """
    begin = time.perf_counter()
    lowered = setup.lower(batch_size)
    try:
        compiled = lowered.compile(compiler_options=_options(setup.mesh.devices.flat[0], quick))
    except jax.errors.JaxRuntimeError as error:
        needed, _ = out_of_memory(str(error))
        if needed is None:
            raise
        return CompiledStep(batch_size, needed, time.perf_counter() - begin, None)
    seconds = time.perf_counter() - begin
    memory, text = held(compiled), program_text(compiled) if inspect else ''
    if not text:
        return CompiledStep(batch_size, memory.total, seconds, memory)
    module = read(text)
    return CompiledStep(batch_size, memory.total, seconds, memory, of_module(module), module)


def _options(device: jax.Device, quick: bool) -> dict[str, Any] | None:
    """What the compiler is told beside its defaults."""
    if device.platform == 'gpu' and not is_here(device):
        return NO_AUTOTUNER
    return QUICK if quick and device.platform == 'tpu' else None


def held(compiled: jax.stages.Compiled) -> Memory:
    """The compiler's plan of one device's memory."""
    plan: Any = compiled.memory_analysis()
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
