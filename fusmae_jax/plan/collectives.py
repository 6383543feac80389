"""What a compiled program sends between devices: its collective operations, loops counted as they run."""

from typing import NamedTuple

import jax

from fusmae_jax.plan.hlo import Instruction, Module, Step, read

KINDS = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'collective-permute')


class Traffic(NamedTuple):
    """Collectives of one kind in a step, on each device."""

    calls: int
    bytes: int  # of the larger of operand and result, before the network's own overhead


class Collectives(NamedTuple):
    """What a program sends between devices; `exact` is False if a loop's length could not be read."""

    kinds: dict[str, Traffic]
    exact: bool


def of_program(compiled: jax.stages.Compiled) -> Collectives | None:
    """The collectives of a compiled program; None where the toolchain cannot print it."""
    text = program_text(compiled)
    return of_module(read(text)) if text else None


def program_text(compiled: jax.stages.Compiled) -> str:
    """The optimised HLO of a compiled program; '' where the toolchain cannot print it."""
    try:
        return compiled.as_text() or ''
    except Exception:  # each backend has an error of its own
        return ''


def of_module(module: Module) -> Collectives:
    """The collectives of an optimised HLO module; one in a loop counts as often as the loop runs."""
    totals: dict[str, list[int]] = {}
    exact = True
    for step in module.walk(into_fusions=True):
        exact &= step.instruction.opcode != 'while' or module.trip_count(step.instruction) is not None
        if kind := kind_of(step.instruction):
            total = totals.setdefault(kind, [0, 0])
            total[0] += step.times
            total[1] += step.times * _moved(step, kind)
    return Collectives({kind: Traffic(*totals[kind]) for kind in KINDS if kind in totals}, exact)


def kind_of(instruction: Instruction) -> str:
    """The kind of a collective, of its start where it is asynchronous; '' for anything else."""
    kind = instruction.opcode.removesuffix('-start')
    return kind if kind in KINDS else ''


def _moved(step: Step, kind: str) -> int:
    """Bytes of the larger of operand and result of a collective."""
    instruction, known = step.instruction, step.computation
    operands = sum(known[name].bytes for name in instruction.operands if name in known)
    result = instruction.bytes
    if instruction.opcode.endswith('-start') and kind in ('all-gather', 'collective-permute'):
        result -= operands  # the result of their asynchronous form repeats the operands
    return max(operands, result)
