"""A profile of a real run, read for what each instruction of the step took.

`pretrain --profile` writes it (see `run/profiling.py`). It holds the program that ran, so its kernels are
matched with that program's instructions by name, whatever the compiler that made it has called them.
"""

import collections
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from etils import epath

from fusmae_jax.errors import InputError
from fusmae_jax.plan.hlo import CONTROL, Module, read

# jax writes profiles below the folder that it is given; `run/profiling.py` gives it one of the workdir.
BELOW = 'plugins/profile/*/*.xplane.pb'
PLACES = ('*.xplane.pb', BELOW, f'profile/{BELOW}', f'profile/process_0/{BELOW}')
# Lines of a device's plane on which each kernel stands once; others repeat them.
KERNEL_LINES = re.compile(r'Stream|XLA Ops$')
METADATA = b'/host:metadata'


class Measured(NamedTuple):
    """What a device spent on a step, on average over the steps of a trace."""

    module: Module  # the program that ran
    seconds: dict[str, float]  # of each of its instructions, by name
    steps: int
    span: float  # seconds from the beginning of one step to that of the next, gaps included
    other: float  # seconds of kernels that are none of its instructions

    @property
    def total(self) -> float:
        """Seconds of all kernels."""
        return sum(self.seconds.values()) + self.other


class Event(NamedTuple):
    """A kernel that ran."""

    name: str  # of its instruction
    module: str
    start: float  # seconds
    duration: float


def read_trace(path: epath.PathLike) -> Measured:
    """Reads the newest trace in a folder, or a file; raises InputError where there is none of a step."""
    file = _newest(epath.Path(path))
    content = file.read_bytes()
    try:
        devices = _devices(content)
        programs = list(_programs(content))
    except Exception as error:  # a damaged file: any error of the parser
        raise InputError(f'--against={file}: not a profile that can be read ({error})') from error
    events = [event for device in devices for event in device]
    spent = {name: sum(e.duration for e in events if e.module == name) for name, _ in programs}
    name = max(spent, key=lambda name: spent[name], default='')
    if not spent.get(name):
        raise InputError(
            f'--against={file}: the profile holds no kernel of a compiled program; write one with '
            'pretrain --profile=FIRST:LAST'
        )
    # Every program of the process stands there, and several may have one name: that which ran knows the
    # names of its kernels.
    modules = [read(_text(proto)) for other, proto in programs if other == name]
    ran = {e.name for e in events if e.module == name}
    module = max(modules, key=lambda m: len(ran & {s.instruction.name for s in m.walk()}))
    return _measured(module, devices, name)


def _newest(path: epath.Path) -> epath.Path:
    if path.is_file():
        return path
    files = [file for place in PLACES for file in path.glob(place)] if path.is_dir() else []
    if not files:
        raise InputError(
            f'--against={path}: no profile (*.xplane.pb) is there; pretrain --profile=FIRST:LAST writes one '
            'to the folder `profile` of its workdir'
        )
    return max(files, key=str)  # folders are named by date and time


def _devices(content: bytes) -> list[list[Event]]:
    """The kernels that each device ran; the CPU's where no other device is in the trace."""
    import jax

    planes = list(jax.profiler.ProfileData.from_serialized_xspace(content).planes)
    chosen = [plane for plane in planes if plane.name.startswith('/device:')]
    if not any(list(_events(plane)) for plane in chosen):
        chosen = [plane for plane in planes if plane.name.startswith('/host:CPU')]
    return [events for plane in chosen if (events := list(_events(plane)))]


def _events(plane: Any) -> Iterator[Event]:
    lines = list(plane.lines)
    kernels = [line for line in lines if KERNEL_LINES.match(line.name)]
    for line in kernels or lines:
        for event in line.events:
            facts = dict(event.stats)
            if 'hlo_op' in facts or kernels:
                name = str(facts.get('hlo_op') or event.name).lstrip('%').split(' ')[0]
                start, duration = event.start_ns * 1e-9, event.duration_ns * 1e-9
                yield Event(name, str(facts.get('hlo_module', '')), start, duration)


def _measured(module: Module, devices: list[list[Event]], name: str) -> Measured:
    times: dict[str, int] = {}
    around = set()  # loops and calls, whose events stand around those of what they run
    for step in module.walk():
        instruction = step.instruction
        times[instruction.name] = times.get(instruction.name, 0) + step.times
        if instruction.opcode in CONTROL:
            around.add(instruction.name)
    # Where a kernel does not say which instruction it is, its own name is that of the instruction, nearly.
    names = {n.replace('.', '_'): n for n in times} | {n: n for n in times}
    counts: collections.Counter[str] = collections.Counter()
    sums: dict[str, float] = {}
    spans = []
    for device in devices:
        step_events = [e for e in device if e.module in (name, '') and e.name not in around]
        for event in step_events:
            ran = names.get(event.name, event.name)
            counts[ran] += ran in times
            sums[ran] = sums.get(ran, 0.0) + event.duration
        starts = [event.start for event in step_events]
        ends = [event.start + event.duration for event in step_events]
        spans.append(max(ends, default=0.0) - min(starts, default=0.0))
    # What stands in a branch that is not taken, or in a loop that ends early, runs less often than the rest.
    runs = collections.Counter(round(count / times[n]) for n, count in counts.items() if count)
    total = max(1, runs.most_common(1)[0][0]) if runs else 1  # of all devices
    each = max(1, round(total / len(devices)))
    seconds = {n: spent / total for n, spent in sums.items() if n in times}
    other = sum(spent / total for n, spent in sums.items() if n not in times)
    return Measured(module, seconds, each, sum(spans) / len(spans) / each, other)


def _text(proto: bytes) -> str:
    """The text of a serialised HloModuleProto, metadata included."""
    from jaxlib import xla_client

    return xla_client.XlaComputation(proto).get_hlo_module().to_string()


def _programs(content: bytes) -> Iterator[tuple[str, bytes]]:
    """Name and HloModuleProto of each program of a serialised XSpace.

    They are in its plane of metadata, which jax does not show. Numbers of fields: openxla/xla,
    third_party/tsl/tsl/profiler/protobuf/xplane.proto and xla/service/hlo.proto.
    """
    for plane in _all(content, 1):
        if METADATA not in _all(plane, 2):
            continue
        for entry in _all(plane, 4):
            for metadata in _all(entry, 2):
                for stat in _all(metadata, 5):
                    for program in _all(stat, 6):
                        module = next(iter(_all(program, 1)), b'')
                        yield _all(module, 1)[0].decode(), module


def _all(message: bytes, number: int) -> list[bytes]:
    """The values of a field of messages or strings in a serialised protocol buffer."""
    values, at = [], 0
    while at < len(message):
        key, at = _varint(message, at)
        field, kind = key >> 3, key & 7
        if kind == 0:
            _, at = _varint(message, at)
        elif kind == 2:
            length, at = _varint(message, at)
            if field == number:
                values.append(message[at : at + length])
            at += length
        else:
            at += {1: 8, 5: 4}[kind]
    return values


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            return value, at
