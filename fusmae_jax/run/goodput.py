"""Goodput: where the wall time of a run went, over all its sittings, and what restarts have cost.

At every moment of a sitting exactly one phase is on, so the phases add up to its wall time:

    start       from the start of the process to the first step, but for what follows
    compile     building programs, or loading them from the compilation cache
    restore     verifying and reading a checkpoint
    step        dispatching steps and waiting for their results
    input       the host waiting for records; the device may still be computing, so this is an upper bound
    checkpoint  what the loop waits for; the writing itself goes on in the background
    evaluation  held-out loss and pictures

Steps beyond the checkpoint from which the next sitting goes on were done in vain: their time counts as
`lost`. The totals of each sitting stand in goodput.json, rewritten every few seconds; what a killed process
did after the last time counts as time between sittings, which is told apart and no part of the shares.
"""

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
from etils import epath

from fusmae_jax import storage

FILE = 'goodput.json'
PHASES = ('step', 'input', 'checkpoint', 'evaluation', 'compile', 'restore', 'start')
REDONE = ('step', 'input')  # what doing a step again costs
EVERY_SECONDS = 10.0  # between two rewritings of the file
T = TypeVar('T')
_claimed: list[float] = []  # the age of the process, once a sitting has counted it


class Sitting(NamedTuple):
    """One process lifetime of a run."""

    begin: float  # seconds since the epoch
    first: int  # step from which it went on
    last: int  # step that it had reached
    seconds: Mapping[str, float]  # by phase


class Goodput:
    """Measures the present sitting, and knows those before it."""

    def __init__(
        self, workdir: epath.PathLike, active: bool, flops: float = 0.0, peak: float = 0.0, images: int = 0
    ):
        """Starts in the phase `start`.

        Args:
            workdir: holds goodput.json.
            active: whether this process writes the file.
            flops: floating-point operations of one step; 0 if not known.
            peak: what all devices of the run together can do, in FLOP/s; 0 if not known.
            images: in one step; 0 for something that has none.
        """
        # What the first sitting of a process has before it is its imports; a later one has another run there.
        age = 0.0 if _claimed else process_age()
        _claimed.append(age)
        self._file, self._active = epath.Path(workdir) / FILE, active
        self._before = read(workdir) if active else []
        self._begin, self._first, self._last = time.time() - age, 0, 0
        self._flops, self._peak, self._images = flops, peak, images
        self._seconds = dict.fromkeys(PHASES, 0.0) | {'start': age}
        self._phases, self._since = ['start'], time.perf_counter()
        self._written = self._since
        self._mark()

    def starts_at(self, step: int) -> None:
        """The step from which this sitting goes on."""
        self._first = self._last = step
        self._mark()
        self.write()

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """The time inside belongs to `name`, except for phases further inside."""
        self._turn()
        self._seconds[name] += 0.0  # a name that is none of PHASES fails here
        self._phases.append(name)
        try:
            yield
        finally:
            self._turn()
            self._phases.pop()

    def _turn(self) -> None:
        now = time.perf_counter()
        self._seconds[self._phases[-1]] += now - self._since
        self._since = now

    def waits(self, batches: Iterator[T]) -> Iterator[T]:
        """The same items; the time until each of them comes is that of `input`."""
        while True:
            with self.phase('input'):
                try:
                    batch = next(batches)
                except StopIteration:
                    return
            yield batch

    def reached(self, step: int) -> None:
        """A step is done; writes the file when that is due."""
        self._last = step
        if self._since - self._written > EVERY_SECONDS:
            self.write()

    def scalars(self) -> dict[str, float]:
        """What goes to the writers: since the last call, and of the whole run.

        `images_per_second`, `input_wait_ms` and `mfu` are means over the steps since the last call, or the
        start, and over the time of those steps and their input alone: evaluation and checkpoints are not in
        it. Device memory is the most that any device of this process has held.
        """
        last, before = self._marked
        self._mark()
        values = {}
        if (steps := self._last - last) > 0:
            spent = {name: self._seconds[name] - before[name] for name in REDONE}
            values['images_per_second'] = self._images * steps / sum(spent.values())
            values['input_wait_ms'] = 1e3 * spent['input'] / steps
            if self._flops and self._peak:
                values['mfu'] = self._flops * steps / (sum(spent.values()) * self._peak)
        if (memory := device_memory()) is not None:
            values['device_memory_gib'] = memory / 2**30
        split, _ = shares(self.sittings())
        return values | {f'goodput/{name}': share for name, share in split.items()}

    def _mark(self) -> None:
        self._turn()
        self._marked = self._last, dict(self._seconds)

    def sittings(self) -> list[Sitting]:
        """All of them, the present one last."""
        return [*self._before, Sitting(self._begin, self._first, self._last, dict(self._seconds))]

    def write(self) -> None:
        """Puts the totals on disk, whole or not at all; a failure must not stop the run."""
        self._turn()
        self._written = self._since
        if self._active:
            with contextlib.suppress(Exception):  # an object store has errors of its own
                storage.write_json(self._file, [sitting._asdict() for sitting in self.sittings()], indent=1)

    def summary(self) -> str:
        """One line for the end of a sitting."""
        self.write()
        split, away = shares(self.sittings())
        wall = sum(sum(sitting.seconds.values()) for sitting in self.sittings())
        # A smaller share would be printed as 0.0%.
        parts = ', '.join(f'{name} {share:.1%}' for name, share in split.items() if share >= 0.0005)
        count = len(self._before) + 1
        pause = f', {_duration(away)} between them' if count > 1 else ''
        return f'goodput: {_duration(wall)} in {count} sitting{"s" * (count > 1)}{pause}; {parts}'


def read(workdir: epath.PathLike) -> list[Sitting]:
    """The sittings that goodput.json lists; none if it is not there or not readable."""
    try:
        stored = json.loads((epath.Path(workdir) / FILE).read_text())
        return [Sitting(**sitting) for sitting in stored]
    except (OSError, ValueError, TypeError):
        return []


def shares(sittings: Sequence[Sitting]) -> tuple[dict[str, float], float]:
    """Share of the wall time of all sittings by phase and `lost`, and the seconds between sittings."""
    total: dict[str, float] = dict.fromkeys(PHASES, 0.0)
    lost = away = 0.0
    kept: list[dict[str, Any]] = []  # stretches of steps that still count
    for number, sitting in enumerate(sittings):
        for stretch in kept:
            if (redone := stretch['last'] - max(sitting.first, stretch['first'])) > 0:
                part = redone / (stretch['last'] - stretch['first'])
                for name in REDONE:
                    gone = part * stretch[name]
                    lost, total[name], stretch[name] = lost + gone, total[name] - gone, stretch[name] - gone
                stretch['last'] -= redone
        for name, seconds in sitting.seconds.items():
            total[name] = total.get(name, 0.0) + seconds
        kept.append({**sitting._asdict(), **{name: sitting.seconds.get(name, 0.0) for name in REDONE}})
        if number:
            previous = sittings[number - 1]
            # Begins are read off the clock of a machine, seconds are measured: the two may overlap a little.
            away += max(0.0, sitting.begin - previous.begin - sum(previous.seconds.values()))
    total['lost'] = lost
    wall = sum(total.values())
    return {name: seconds / wall if wall else 0.0 for name, seconds in total.items()}, away


def device_memory() -> int | None:
    """Most bytes that a device of this process has held; None where the platform does not count them."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    held = [known['peak_bytes_in_use'] for known in stats if 'peak_bytes_in_use' in known]
    return max(held, default=None)


def process_age() -> float:
    """Seconds since this process started, so that its imports count; 0 where /proc does not tell."""
    try:
        with open('/proc/self/stat') as file:
            started = int(file.read().rpartition(')')[2].split()[19])  # in ticks since the boot
        return time.clock_gettime(time.CLOCK_BOOTTIME) - started / os.sysconf('SC_CLK_TCK')
    except (OSError, AttributeError, IndexError):
        return 0.0


def _duration(seconds: float) -> str:
    minutes, hours = round(seconds / 60), seconds / 3600
    return f'{seconds:.0f} s' if seconds < 120 else f'{minutes} min' if hours < 2 else f'{hours:.1f} h'
