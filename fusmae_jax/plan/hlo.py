"""A reader of optimised HLO modules in their text form: computations, instructions, loops and stack frames.

The text is what `jax.stages.Compiled.as_text` returns on CPU, GPU and TPU. Its grammar is not specified;
what is read here is the part of it that the three backends print alike.
"""

import functools
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

BITS = {'pred': 8, 'c64': 64, 'c128': 128}  # other types carry their bits in the name

HEADER = re.compile(r'^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$')
RESULT = re.compile(r'^\s+(ROOT )?%?([\w.\-]+) = (.*)$')
OPCODE = re.compile(r' ([a-z][\w\-]*)\(')
OPERAND = re.compile(r'%([\w.\-]+)')
SHAPE = re.compile(r'\b(pred|[a-z]+\d+[a-z0-9]*)\[([\d,]*)\]')
CALLED = re.compile(
    r'\b(calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)'
    r'|\b(?:branch_computations|called_computations)=\{([^}]*)\}'
)
TRIPS = re.compile(r'known_trip_count\D*?(\d+)')
TABLES = ('FileNames', 'FunctionNames', 'FileLocations', 'StackFrames')
TABLE_ROW = re.compile(r'(\d+) (.*)')


class Shape(NamedTuple):
    """The shape of one array."""

    dtype: str
    dims: tuple[int, ...]

    @property
    def size(self) -> int:
        """Numbers in it."""
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        """Bytes of it, without the padding of tiled layouts."""
        bits = BITS.get(self.dtype) or int(re.findall(r'\d+', self.dtype)[0])
        return self.size * bits // 8


class Frame(NamedTuple):
    """A function that was being traced when an instruction was made."""

    file: str
    function: str  # qualified name


class Instruction(NamedTuple):
    """One instruction of a computation."""

    name: str
    opcode: str
    shapes: tuple[Shape, ...]  # of its result; those of a tuple side by side
    operands: tuple[str, ...]
    arguments: str  # what stands between the parentheses: operands, or the value of a constant
    attributes: str  # what stands behind them, metadata and backend configuration included
    root: bool

    @property
    def bytes(self) -> int:
        """Bytes of the result."""
        return sum(shape.bytes for shape in self.shapes)

    @property
    def op_name(self) -> str:
        """Path of names that jax gave it, such as `jit(step)/jvp()/dot_general`; '' where it has none."""
        match = re.search(r'op_name="((?:[^"\\]|\\.)*)"', self.attributes)
        return match[1] if match else ''

    @property
    def target(self) -> str:
        """What a custom call calls."""
        match = re.search(r'custom_call_target="([^"]*)"', self.attributes)
        return match[1] if match else ''


Computation = dict[str, Instruction]


class Module(NamedTuple):
    """A module: its computations by name, and the stack frames that its instructions point to."""

    computations: dict[str, Computation]
    entry: str
    stacks: dict[int, tuple[Frame, ...]]  # outermost first

    def stack(self, instruction: Instruction) -> tuple[Frame, ...]:
        """The functions that were being traced when an instruction was made, the outermost first."""
        match = re.search(r'stack_frame_id=(\d+)', instruction.attributes)
        return self.stacks.get(int(match[1]), ()) if match else ()

    def body(self, instruction: Instruction, key: str = 'calls') -> Computation:
        """The computation that an attribute of an instruction names; an empty one where there is none."""
        match = re.search(rf'\b{key}=%?([\w.\-]+)', instruction.attributes)
        return self.computations.get(match[1], {}) if match else {}

    def trip_count(self, loop: Instruction) -> int | None:
        """How often a `while` runs: as the compiler noted, or as its condition tells; else None."""
        if known := TRIPS.search(loop.attributes):
            return int(known[1])
        condition = self.body(loop, 'condition').values()
        constants = [i for i in condition if i.opcode == 'constant' and i.shapes[0].dims == ()]
        bounds = [int(i.arguments) for i in constants if re.fullmatch(r'\d+', i.arguments)]
        less = any('direction=LT' in i.attributes for i in condition)
        return bounds[0] if less and len(bounds) == 1 else None

    def walk(self, *, into_fusions: bool = False) -> Iterator['Step']:
        """Every instruction that runs, in the order of the text, with how often it does.

        Loops, calls, branches (each as if it were taken) and asynchronous operations are followed, the
        latter once, from their start. What is inside a fusion or a reduction comes `into_fusions` only.
        """
        yield from self._walk(self.entry, 1, True, into_fusions)

    def _walk(self, name: str, times: int, exact: bool, into_fusions: bool) -> Iterator['Step']:
        computation = self.computations.get(name, {})
        for instruction in computation.values():
            yield Step(instruction, computation, times, exact)
            trips = self.trip_count(instruction) if instruction.opcode == 'while' else 1
            runs = instruction.opcode in CONTROL or into_fusions
            for called in _called(instruction) if runs else ():
                yield from self._walk(called, times * (trips or 1), exact and trips is not None, into_fusions)


CONTROL = ('while', 'call', 'conditional', 'async-start')


class Step(NamedTuple):
    """An instruction that runs."""

    instruction: Instruction
    computation: Computation
    times: int
    exact: bool  # False in a loop whose length could not be read, which counts once


def read(text: str) -> Module:
    """Reads a module from its text."""
    computations: dict[str, Computation] = {}
    tables: dict[str, dict[int, str]] = {name: {} for name in TABLES}
    entry, current, table = '', None, None
    for line in text.splitlines():
        if current is None and line in tables:
            table = tables[line]
        elif header := HEADER.match(line):
            current = computations.setdefault(header[2], {})
            entry = header[2] if header[1] else entry
        elif current is not None:
            if instruction := _instruction(line):
                current[instruction.name] = instruction
        elif table is not None and (row := TABLE_ROW.match(line)):
            table[int(row[1])] = row[2]
    return Module(computations, entry, _stacks(tables))


def _instruction(line: str) -> Instruction | None:
    match = RESULT.match(line)
    opcode = OPCODE.search(f' {match[3]}') if match else None
    if not match or not opcode:
        return None
    rest = f' {match[3]}'
    end = _closing(rest, opcode.end())
    arguments = rest[opcode.end() : end]
    return Instruction(
        name=match[2],
        opcode=opcode[1],
        shapes=_shapes(rest[: opcode.start()]),
        operands=tuple(OPERAND.findall(arguments)),
        arguments=arguments,
        attributes=rest[end + 1 :],
        root=bool(match[1]),
    )


def _closing(text: str, start: int) -> int:
    """Where the parenthesis closes that was opened just before `start`."""
    end = text.find(')', start)
    while end >= 0 and text.count('(', start, end) > text.count(')', start, end):
        end = text.find(')', end + 1)
    return end if end >= 0 else len(text)


@functools.lru_cache(maxsize=4096)
def _shapes(text: str) -> tuple[Shape, ...]:
    return tuple(
        Shape(dtype, tuple(int(dim) for dim in dims.split(',') if dim)) for dtype, dims in SHAPE.findall(text)
    )


def _called(instruction: Instruction) -> list[str]:
    """Computations that an instruction runs; `done` and `update` only refer to what `start` runs."""
    if instruction.opcode in ('async-done', 'async-update'):
        return []
    names = []
    for _, single, several in CALLED.findall(instruction.attributes):
        names += [single] if single else [name.strip().lstrip('%') for name in several.split(',')]
    return names


def _stacks(tables: dict[str, dict[int, str]]) -> dict[int, tuple[Frame, ...]]:
    """The stack of each frame: itself and its parents, the outermost first."""

    def name(table: str, number: int) -> str:
        return tables[table].get(number, '').strip('"')

    def field(row: str, key: str) -> int:
        match = re.search(rf'{key}=(\d+)', row)
        return int(match[1]) if match else 0

    frames, parents = {}, {}
    for number, row in tables['StackFrames'].items():
        place = tables['FileLocations'].get(field(row, 'file_location_id'), '')
        frames[number] = Frame(
            name('FileNames', field(place, 'file_name_id')),
            name('FunctionNames', field(place, 'function_name_id')),
        )
        parents[number] = field(row, 'parent_frame_id')
    # Some versions print parents counted from 1 for 'none'; the first frame, which has none, tells.
    shift = parents.get(1, 0)
    stacks: dict[int, tuple[Frame, ...]] = {}

    def stack(number: int) -> tuple[Frame, ...]:
        if number not in frames:
            return ()
        if number not in stacks:
            stacks[number] = (*stack(parents[number] - shift), frames[number])
        return stacks[number]

    # In the order of their numbers a parent comes before its children, so this never goes deep.
    return {number: stack(number) for number in sorted(frames)}
