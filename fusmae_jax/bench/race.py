"""`python main.py bench race`: our train step and the PyTorch reference's, timed in one run.

On a CPU all contenders are alive at once and each does one step in turn, so that a slow minute of the machine
hits them all, and what counts is the ratio of two steps of the same round. A GPU has no room for all of them:
there they run one after the other.
"""

import dataclasses
import multiprocessing
import statistics
import sys
from collections.abc import Iterator
from multiprocessing.context import SpawnContext
from typing import Any

from fusmae_jax import installed
from fusmae_jax.bench.contenders import COMPILED, EAGER, SCANNED, UNROLLED, Contender, Turn, serve
from fusmae_jax.bench.products import product_rate, products_line
from fusmae_jax.config.run import Config
from fusmae_jax.errors import InputError
from fusmae_jax.train.flops import train_flops_per_image

ROUNDS = 9


@dataclasses.dataclass
class Lap:
    """What a contender needed."""

    contender: Contender
    device: str = ''
    first: float = 0.0  # seconds of the first step, compilation included
    turns: list[Turn] = dataclasses.field(default_factory=list)
    peak: int = 0  # bytes
    error: str = ''

    @property
    def seconds(self) -> float:
        """Of a step, the median."""
        return statistics.median(turn.seconds for turn in self.turns)

    @property
    def cpu(self) -> float:
        """User and system seconds of a step, the median."""
        return statistics.median(turn.cpu for turn in self.turns)


def race(config: Config, sizes: list[int], rounds: int = ROUNDS) -> int:
    """Prints a table for each batch size; returns 1 if a contender did not get to the end.

    Raises InputError where PyTorch is not there, or has no device like that of jax.
    """
    installed.need('parity', 'bench race')
    import torch

    with _context().Pool(1) as pool:
        platform, version = pool.apply(_backend)
        rate = pool.apply(product_rate) if platform == 'cpu' else 0.0
    if platform == 'gpu' and not torch.cuda.is_available():
        raise InputError(
            f'jax runs on a GPU, and torch {torch.__version__} finds none; install a torch with CUDA, or set '
            'JAX_PLATFORMS=cpu'
        )
    print(
        f'{config.name}, ViT-{config.model.size}, jax {version}, torch {torch.__version__}, '
        f'{torch.get_num_threads()} threads'
    )
    failed = False
    for size in sizes or [config.train.batch_size]:
        laps = run(config, size, platform, rounds)
        print('\n'.join(table(laps, size, together=platform == 'cpu')), flush=True)
        if rate:
            print(products_line(train_flops_per_image(config) * size, rate), flush=True)
        failed |= any(lap.error for lap in laps)
    return int(failed)


def contenders(platform: str) -> list[Contender]:
    """Who races on a platform. Of PyTorch with and without freed memory kept, the faster one counts."""
    keeps = platform == 'cpu' and sys.platform.startswith('linux')
    both = (False, True) if keeps else (False,)
    torch = [Contender(name, kept) for name in (EAGER, COMPILED) for kept in both]
    return [*torch, Contender(SCANNED, keeps), Contender(UNROLLED, keeps)]


def run(config: Config, size: int, platform: str, rounds: int) -> list[Lap]:
    """The laps of all contenders, in their order: all at once on a CPU, one after the other elsewhere."""
    everyone = contenders(platform)
    groups = [everyone] if platform == 'cpu' else [[contender] for contender in everyone]
    laps = []
    for group in groups:
        runners = [Runner(contender, config, size, platform) for contender in group]
        for _ in range(rounds):
            for runner in runners:
                runner.turn()
        laps += [runner.finish() for runner in runners]
    return laps


class Runner:
    """A contender's process, from outside; one that fails keeps its error and is asked no more."""

    def __init__(self, contender: Contender, config: Config, size: int, platform: str):
        self.lap = Lap(contender)
        context = _context()
        self._line, theirs = context.Pipe()
        arguments = (theirs, contender, config, size, platform)
        self._process = context.Process(target=serve, args=arguments, daemon=True)
        self._process.start()
        # Else the pipe would stay open, and nobody would see that the process has died.
        theirs.close()
        if (answer := self._answer()) is not None:
            self.lap.device, first = answer
            self.lap.first = first.seconds

    def turn(self) -> None:
        """One step."""
        if self._ask(True) and (turn := self._answer()) is not None:
            self.lap.turns.append(turn)

    def finish(self) -> Lap:
        """Ends the process."""
        if self._ask(False) and (peak := self._answer()) is not None:
            self.lap.peak = peak
        self._line.close()
        self._process.join()
        return self.lap

    def _ask(self, question: bool) -> bool:
        if not self.lap.error:
            try:
                self._line.send(question)
            except OSError:
                self.lap.error = 'its process ended'
        return not self.lap.error

    def _answer(self) -> Any:
        """What comes next down the line; None, and the error in the lap, where nothing does."""
        if self.lap.error:
            return None
        try:
            answer = self._line.recv()
        except EOFError:
            self._process.join()
            answer = f'its process ended with exit code {self._process.exitcode}'
        if isinstance(answer, str):
            self.lap.error = answer
            return None
        return answer


def table(laps: list[Lap], size: int, together: bool) -> Iterator[str]:
    """The laps as lines; a ratio is the median over rounds, and above 1 where the contender is faster."""
    rounds = max(len(lap.turns) for lap in laps)
    how = 'a step each in turn' if together else 'one contender after the other'
    yield f'batch {size}, {how}, {rounds} rounds, no input preparation; memory kept: freed pages stay mapped'
    yield (
        f'{"contender":<22}{"memory":<9}{"step":>12}{"images/s":>10}{"x eager":>9}{"x compile":>11}'
        f'{"CPU a step":>12}{"first step":>12}{"peak":>11}'
    )
    eager, compiled = fastest(laps, EAGER), fastest(laps, COMPILED)
    for lap in laps:
        head = f'{lap.contender.name:<22}{"kept" if lap.contender.keeps else "as it is":<9}'
        if lap.error:
            yield f'{head} failed: {lap.error}'
            continue
        yield (
            f'{head}{lap.seconds * 1e3:>9,.1f} ms{size / lap.seconds:>10,.1f}{_times(lap, eager):>9}'
            f'{_times(lap, compiled):>11}{lap.cpu:>10.2f} s{lap.first:>10.1f} s{lap.peak / 2**30:>7.2f} GiB'
        )
    yield f'on {", ".join(sorted({lap.device for lap in laps if lap.device}))}'


def fastest(laps: list[Lap], name: str) -> Lap | None:
    """The quicker lap of a contender that races with memory kept and without."""
    there = [lap for lap in laps if lap.contender.name == name and not lap.error]
    return min(there, key=lambda lap: lap.seconds, default=None)


def ratio(lap: Lap, base: Lap) -> float:
    """How many times as fast as `base` a contender is: the median over rounds."""
    return statistics.median(b.seconds / a.seconds for a, b in zip(lap.turns, base.turns))


def _times(lap: Lap, base: Lap | None) -> str:
    return '-' if base is None else f'{ratio(lap, base):.2f}'


def _backend() -> tuple[str, str]:
    """The platform of jax and its version: asked in another process, since asking takes a GPU's memory."""
    import jax

    return jax.default_backend(), jax.__version__


def _context() -> SpawnContext:
    return multiprocessing.get_context('spawn')
