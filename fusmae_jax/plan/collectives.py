"""Collective operations of a compiled program, counted with the loops that they stand in."""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

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


class Traffic(NamedTuple):
    """Collectives of one kind in a step, on each device."""

    calls: int
    bytes: int  # of the larger of operand and result, before the network's own overhead


class Collectives(NamedTuple):
    """What a program sends between devices; `exact` is False if a loop's length could not be read."""

    kinds: dict[str, Traffic]
    exact: bool


def of_program(compiled: Any) -> Collectives | None:
    """The collectives of a compiled program; None where the toolchain cannot print it."""
    try:
        text = compiled.as_text()
    except Exception:  # each backend has an error of its own
        return None
    return read(text) if text else None


def read(text: str) -> Collectives:
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
            if found := COLLECTIVE.match(rest):
                total = totals.setdefault(found[2], [0, 0])
                total[0] += times
                total[1] += times * _moved(found, sizes)
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


def _results(lines: Any) -> Iterator[tuple[str, str]]:
    """Name and definition of each instruction, without its metadata."""
    for line in lines:
        if found := RESULT.match(line):
            yield found[1], found[2]


def _called(rest: str) -> list[str]:
    """Computations that an instruction runs; `done` and `update` only refer to what `start` runs."""
    if re.search(r' async-(done|update)\(', rest):
        return []
    names = []
    for _, one, several in CALLED.findall(rest):
        names += [one] if one else [name.strip().lstrip('%') for name in several.split(',')]
    return names


def _trip_count(rest: str, bodies: dict[str, list[str]]) -> int | None:
    """How often a loop runs: as noted by the compiler, or the constant that its counter is compared with."""
    if known := TRIPS.search(rest):
        return int(known[1])
    condition = re.search(r'condition=%?([\w.\-]+)', rest)
    lines = bodies.get(condition[1], []) if condition else []
    bounds = [int(found[1]) for line in lines if (found := BOUND.search(line))]
    less = any('direction=LT' in line for line in lines)
    return bounds[0] if less and len(bounds) == 1 else None


def _moved(found: re.Match[str], sizes: dict[str, int]) -> int:
    """Bytes of the larger of operand and result of a collective."""
    operands = sum(sizes.get(name, 0) for name in re.findall(r'%([\w.\-]+)', found[4]))
    result = _shape_bytes(found[1])
    if found[3] and found[2] in ('all-gather', 'collective-permute'):
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
