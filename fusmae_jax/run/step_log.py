"""The metrics of every step, looked at one step late, so that the device never waits for the host."""

from collections.abc import Callable
from typing import Any

import numpy as np

from fusmae_jax.config.run import Config
from fusmae_jax.input import pipeline
from fusmae_jax.parallel.processes import gather, read
from fusmae_jax.run.writers import Writers

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

        `more` gives what else is written beside the metrics, such as `images_per_second`.
        """
        self._config, self._total, self._writers, self._on_skip = config, total, writers, on_skip
        self._more = more
        self._pending: tuple[int, Any, dict[str, Any]] | None = None
        self._bar: Any = None
        self._task: Any = None
        self.last: dict[str, float] = {}

    def show(self, bar: Any, start: int) -> None:
        """From now on progress goes to this bar."""
        self._bar = bar
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
        if step % self._config.log.every_steps == 0 or step == self._total or values['skipped']:
            more = self._more()
            self._writers.scalars(step, values | more)
            rate = more.get('images_per_second', 0.0)
            self._bar.update(self._task, note=f'{rate:,.1f} images/s, loss {values["loss"]:.4f}')
        self._bar.update(self._task, completed=step)
        if values['skipped']:
            self._on_skip(step, values, names)


def records(names: dict[str, Any]) -> dict[str, list[Any]]:
    """The names of the records of a step, in the order of its batch, from those of each process."""
    parts = gather({key: [_plain(x) for x in np.asarray(value)] for key, value in names.items()})
    whole = {key: [x for part in parts for x in part[key]] for key in parts[0]}
    order = {key: np.argsort(whole[key]) for key in whole if key.endswith(pipeline.POSITION)}
    return {
        key: [values[i] for i in order[f'{pipeline.prefix_of(key)}{pipeline.POSITION}']]
        for key, values in whole.items()
    }


def _plain(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value.item()
