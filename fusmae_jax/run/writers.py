"""Metrics of a run: read one step late, to JSON lines, TensorBoard and the progress line. No TensorFlow.

Other tools that `log.writers` names follow behind: `trackers.py`.
"""

import io
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fusmae_jax import storage
from fusmae_jax.config.run import Config
from fusmae_jax.input import pipeline
from fusmae_jax.parallel.processes import gather, read
from fusmae_jax.run.trackers import Follower

METRICS = 'metrics.jsonl'
PART_LINES = 1000  # of a part in a bucket
EVERY_SECONDS = 30.0  # between two rewritings of one
OnSkip = Callable[[int, dict[str, float], dict[str, Any]], None]


class JsonLines:
    """`metrics.jsonl`, one object a line. On a resume, lines from after the restored step are dropped.

    An object store has no append: there the lines go to parts `metrics-<step>.jsonl`, of `PART_LINES` lines
    each, of which the last is rewritten as it grows, but not more often than every `EVERY_SECONDS`. In the
    order of their names the parts are the curve.
    """

    def __init__(self, workdir: epath.Path, step: int):
        self._remote, self._workdir = '://' in str(workdir), workdir
        self._file, self._lines, self._written = workdir / METRICS, list[str](), -math.inf
        if self._remote:
            self._file = self._part(step)
            self._drop(_last_kept(step))
        else:
            trim(self._file, _last_kept(step))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Adds one line; numbers that JSON cannot hold are written as null."""
        clean = {key: value if math.isfinite(value) else None for key, value in values.items()}
        if len(self._lines) >= PART_LINES:
            self.flush(now=True)
            self._file, self._lines = self._part(step), []
        self._lines.append(json.dumps({'step': step, **clean}) + '\n')

    def flush(self, now: bool = False) -> None:
        """Puts the lines on disk; in a bucket only if that is due, or has to be done now."""
        if not self._remote:
            if self._lines:
                with self._file.open('a') as file:
                    file.write(''.join(self._lines))
                self._lines = []
        elif self._lines and (now or time.monotonic() - self._written >= EVERY_SECONDS):
            self._file.write_text(''.join(self._lines))
            self._written = time.monotonic()

    def _part(self, step: int) -> epath.Path:
        return self._workdir / f'metrics-{step:08d}.jsonl'

    def _drop(self, step: int) -> None:
        """Removes what earlier sittings have written from after a step."""
        for file in sorted(self._workdir.glob('metrics-*.jsonl')):
            kept = _until(file, step)
            if file == self._file:
                self._lines = kept  # and goes on with it
            elif not kept:
                file.unlink()
            else:
                file.write_text(''.join(kept))


def _last_kept(start: int) -> int:
    """The last step whose lines stay when a sitting begins at `start`.

    Those of step 0, of what was measured before the first one, are written anew with it.
    """
    return start or -1


def _step_of(line: str) -> float:
    try:
        return json.loads(line)['step']
    except (json.JSONDecodeError, KeyError, TypeError):
        return math.inf  # a line that a killed process left half-written


def trim(file: epath.Path, step: int) -> None:
    """Drops the lines of a JSON-lines file that come from after `step`, or are half-written."""
    if file.exists():
        storage.write_text(file, ''.join(_until(file, step)))


def _until(file: epath.Path, step: int) -> list[str]:
    """The whole lines of a file up to a step."""
    return [f'{line}\n' for line in file.read_text().splitlines() if _step_of(line) <= step]


def curve(workdir: epath.Path) -> Iterator[tuple[int, dict[str, float]]]:
    """Step and numbers of each line that a run has written; NaN for null."""
    for file in sorted(workdir.glob('metrics*.jsonl')):
        for line in file.read_text().splitlines():
            values = json.loads(line)
            step = values.pop('step')
            yield step, {key: math.nan if value is None else value for key, value in values.items()}


class TensorBoard:
    """Scalars, pictures and texts as TensorBoard events, written by the tensorboard package alone."""

    def __init__(self, workdir: epath.Path, step: int):
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        earlier = workdir.exists() and any(workdir.glob('events.out.tfevents*'))
        self._writer = EventFileWriter(str(workdir))
        if earlier:  # readers then drop what a sitting that was killed has written from there on
            start, first = event_pb2.SessionLog(status=event_pb2.SessionLog.START), _last_kept(step) + 1
            self._writer.add_event(self._event(wall_time=time.time(), step=first, session_log=start))

    def _add(self, step: int, **value: Any) -> None:
        summary = self._summary(value=[self._summary.Value(**value)])
        self._writer.add_event(self._event(wall_time=time.time(), step=step, summary=summary))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One event for each value."""
        for tag, value in values.items():
            self._add(step, tag=tag, simple_value=value)

    def image(self, step: int, tag: str, image: np.ndarray) -> None:
        """A picture, uint8 (rows, columns, 3)."""
        from PIL import Image

        out = io.BytesIO()
        Image.fromarray(image).save(out, 'PNG')
        height, width, _ = image.shape
        picture = self._summary.Image(
            height=height, width=width, colorspace=3, encoded_image_string=out.getvalue()
        )
        self._add(step, tag=tag, image=picture)

    def flush(self) -> None:
        """Puts the events on disk."""
        self._writer.flush()

    def close(self) -> None:
        """Flushes and ends."""
        self._writer.close()


class Writers:
    """All outputs of one run; on any process but the first it writes nothing."""

    _followers: Sequence[Follower] = ()

    def __init__(self, workdir: epath.Path, step: int, active: bool):
        self._jsonl = JsonLines(workdir, step) if active else None
        self._tensorboard = TensorBoard(workdir, step) if active else None

    def follow(self, followers: Sequence[Follower]) -> None:
        """From now on these get everything as well."""
        self._followers = followers

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """The same numbers to every output, on disk at once: a killed run keeps its curve."""
        for writer in (self._jsonl, self._tensorboard):
            if writer is not None:
                writer.scalars(step, values)
                writer.flush()
        for follower in self._followers:
            follower.scalars(step, values)

    def image(self, step: int, tag: str, image: np.ndarray) -> None:
        """A picture, uint8 (rows, columns, 3), to TensorBoard and what else shows pictures."""
        if self._tensorboard is not None:
            self._tensorboard.image(step, tag, image)
        for follower in self._followers:
            follower.image(step, tag, image)

    def flush(self) -> None:
        """Puts all lines on disk, also where that is not due."""
        if self._jsonl is not None:
            self._jsonl.flush(now=True)

    def close(self) -> None:
        """Flushes and ends."""
        self.flush()
        if self._tensorboard is not None:
            self._tensorboard.close()
        for follower in self._followers:
            follower.close()


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
        # To read the metrics of a step at once would keep the host from dispatching the next one.
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


def names_of_records(names: dict[str, Any]) -> dict[str, list[Any]]:
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


def progress_bar(active: bool) -> Progress:
    """A progress line with rate, loss and time left; silent where `active` is False."""
    return Progress(
        TextColumn('{task.description}'),
        BarColumn(),
        TextColumn('{task.completed}/{task.total} steps'),
        TextColumn('{task.fields[note]}'),
        TimeElapsedColumn(),
        TextColumn('left'),
        TimeRemainingColumn(),
        disable=not active,
        refresh_per_second=2,
    )
