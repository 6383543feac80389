"""The real train step, compiled for a machine: what it holds on one device and what it sends.

Collective operations are counted from the text of the compiled program, with the loops that they stand in.
"""

import math
import re
import time
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax

from fusmae_jax.input.mixture import row_counts
from fusmae_jax.plan.topology import out_of_memory
from fusmae_jax.train.setup import Setup
from fusmae_jax.train.step import abstract_batch

# A program for a TPU costs its compiler a fifth of the time so, and holds a few per cent more memory.
QUICK = {'exec_time_optimization_effort': -1.0}

# Patterns of the text of an optimised HLO module.
KINDS = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'collective-permute')
BITS = {'pred': 8, 'c64': 64, 'c128': 128}  # other types carry their bits in the name

HEADER = re.compile(r'^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$')
RESULT = re.compile(r'^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$')
COLLECTIVE = re.compile(rf'^(.*?) ({"|".join(KINDS)})(-start)?\((.*?)\)')
SHAPE = re.compile(r'\b(pred|[a-z]+\d+[a-z0-9]*)\[([\d,]*)\]')
CALLED = re.compile(
    r'(calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)'
    r'|(?:branch_computations|called_computations)=\{([^}]*)\}'
)
TRIPS = re.compile(r'known_trip_count\D*?(\d+)')
BOUND = re.compile(r'= [su]\d+\[\]\S* constant\((\d+)\)')


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


class Traffic(NamedTuple):
    """Collectives of one kind in a step, on each device."""

    calls: int
    bytes: int  # of the larger of operand and result, before the network's own overhead


class Collectives(NamedTuple):
    """What a program sends between devices; `exact` is False if a loop's length could not be read."""

    kinds: dict[str, Traffic]
    exact: bool


class CompiledStep(NamedTuple):
    """A compiled train step; of one that the compiler refused, only the bytes are known."""

    batch_size: int
    total: int  # bytes of one device
    seconds: float  # to compile
    memory: Memory | None
    collectives: Collectives | None


def compile_step(
    setup: Setup, batch_size: int, *, quick: bool, list_collectives: bool = False
) -> CompiledStep:
    """Compiles the step for a global batch.

    Args:
        setup: the run, built for the devices to compile for.
        batch_size: rows of a step.
        quick: spend less time on making a TPU program fast; on other devices it means nothing.
        list_collectives: also list the collectives.

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
        return CompiledStep(batch_size, needed, time.perf_counter() - begin, None, None)
    memory = held(compiled)
    sent = of_program(compiled) if list_collectives else None
    return CompiledStep(batch_size, memory.total, time.perf_counter() - begin, memory, sent)


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


def of_program(compiled: jax.stages.Compiled) -> Collectives | None:
    """The collectives of a compiled program; None where the toolchain cannot print it."""
    try:
        text = compiled.as_text()
    except Exception:  # each backend has an error of its own
        return None
    return read_program(text) if text else None


def read_program(text: str) -> Collectives:
    """The collectives of an optimised HLO module, from its text.

    A collective in a loop counts as often as the loop runs.
    """
    bodies, entry = _computations(text)
    sizes = {name: _bytes(rest) for lines in bodies.values() for name, rest in _results(lines)}
    totals: dict[str, list[int]] = {}
    exact = True

    def visit(computation: str, times: int) -> None:
        nonlocal exact
        for _, rest in _results(bodies.get(computation, ())):
            if match := COLLECTIVE.match(rest):
                total = totals.setdefault(match[2], [0, 0])
                total[0] += times
                total[1] += times * _moved(match, sizes)
            trips = 1
            if ' while(' in rest:
                known = _trip_count(rest, bodies)
                exact &= known is not None
                trips = 1 if known is None else known
            for name in _called(rest):
                visit(name, times * trips)

    visit(entry, 1)
    return Collectives({kind: Traffic(*totals[kind]) for kind in KINDS if kind in totals}, exact)


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """The lines of each computation by its name, and the name of the entry."""
    bodies: dict[str, list[str]] = {}
    entry, lines = '', list[str]()
    for line in text.splitlines():
        if header := HEADER.match(line):
            lines = bodies.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        else:
            lines.append(line)
    return bodies, entry


def _results(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Name and definition of each instruction, without its metadata."""
    for line in lines:
        if match := RESULT.match(line):
            yield match[1], match[2]


def _called(rest: str) -> list[str]:
    """Computations that an instruction runs; `done` and `update` only refer to what `start` runs."""
    if re.search(r' async-(done|update)\(', rest):
        return []
    names = []
    for _, single, several in CALLED.findall(rest):
        names += [single] if single else [name.strip().lstrip('%') for name in several.split(',')]
    return names


def _trip_count(rest: str, bodies: dict[str, list[str]]) -> int | None:
    """How often a loop runs: as noted by the compiler, or the constant that its counter is compared with."""
    if known := TRIPS.search(rest):
        return int(known[1])
    condition = re.search(r'condition=%?([\w.\-]+)', rest)
    lines = bodies.get(condition[1], []) if condition else []
    bounds = [int(match[1]) for line in lines if (match := BOUND.search(line))]
    less = any('direction=LT' in line for line in lines)
    return bounds[0] if less and len(bounds) == 1 else None


def _moved(match: re.Match[str], sizes: dict[str, int]) -> int:
    """Bytes of the larger of operand and result of a collective."""
    operands = sum(sizes.get(name, 0) for name in re.findall(r'%([\w.\-]+)', match[4]))
    result = _shape_bytes(match[1])
    if match[3] and match[2] in ('all-gather', 'collective-permute'):
        result -= operands  # the result of their asynchronous form repeats the operands
    return max(operands, result)


def _bytes(rest: str) -> int:
    """Bytes of an instruction's result."""
    return _shape_bytes(re.split(r' [a-z][\w\-]*\(', rest, maxsplit=1)[0])


def _shape_bytes(shapes: str) -> int:
    total = 0
    for kind, dims in SHAPE.findall(shapes):
        bits = BITS.get(kind) or int(re.findall(r'\d+', kind)[0])
        count = 1
        for dim in filter(None, dims.split(',')):
            count *= int(dim)
        total += count * bits // 8
    return total
