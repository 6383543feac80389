"""The metrics of every step, looked at one step late, so that the device never waits for the host."""

import time
from collections.abc import Callable
from typing import Any

from fusmae_jax.config import Config
from fusmae_jax.parallel.host import read
from fusmae_jax.writers import Writers

OnSkip = Callable[[int, dict[str, float], dict[str, Any]], None]


class StepLog:
    """Looks at each step's metrics one step late, and writes every `log.every_steps`-th."""

    def __init__(
        self,
        config: Config,
        total: int,
        writers: Writers,
        on_skip: OnSkip,
        more: Callable[[], dict[str, float]],
    ):
        """`on_skip(step, values, names)` hears of every step whose update was not finite.

        `more` gives what else is written beside the metrics.
        """
        self._config, self._total, self._writers, self._on_skip = config, total, writers, on_skip
        self._more = more
        self._pending: tuple[int, Any, dict[str, Any]] | None = None
        self._since, self._steps = time.perf_counter(), 0
        self._bar: Any = None
        self._task: Any = None
        self.last: dict[str, float] = {}

    def show(self, bar: Any, start: int) -> None:
        """From now on progress goes to this bar."""
        self._bar, self._since = bar, time.perf_counter()
        self._task = bar.add_task(self._config.name, total=self._total, completed=start, note='')

    def add(self, step: int, metrics: Any, names: dict[str, Any]) -> None:
        """Takes over the metrics of `step`, which may still be running."""
        before, self._pending = self._pending, (step, metrics, names)
        if before is not None:
            self._look(*before)

    def flush(self) -> None:
        """Looks at the last step."""
        if self._pending is not None:
            self._look(*self._pending)
            self._pending = None

    def _look(self, step: int, metrics: Any, names: dict[str, Any]) -> None:
        values = {name: float(value) for name, value in read('metrics', metrics).items()}
        self.last = values
        self._steps += 1
        if step % self._config.log.every_steps == 0 or step == self._total or values['skipped']:
            now = time.perf_counter()
            rate = self._steps * self._config.train.batch_size / (now - self._since)
            self._since, self._steps = now, 0
            self._writers.scalars(step, values | {'images_per_second': rate} | self._more())
            self._bar.update(self._task, note=f'{rate:,.1f} images/s, loss {values["loss"]:.4f}')
        self._bar.update(self._task, completed=step)
        if values['skipped']:
            self._on_skip(step, values, names)
