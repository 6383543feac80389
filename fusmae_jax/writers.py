"""Metrics to JSON lines and TensorBoard; the progress line; the parameter table. No TensorFlow."""

import io
import json
import math
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

METRICS = 'metrics.jsonl'


class JsonLines:
    """`metrics.jsonl`, one object a line. On a resume, lines from after the restored step are dropped.

    An object store has no append, so there the lines of a run go to parts `metrics-<first step>.jsonl`,
    each of which is rewritten as it grows; where two parts hold the same step, the later part counts.
    """

    def __init__(self, workdir: epath.Path, step: int):
        self._remote = '://' in str(workdir)
        self._file = workdir / (f'metrics-{step:08d}.jsonl' if self._remote else METRICS)
        self._lines: list[str] = []
        if not self._remote:
            trim(self._file, step)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Adds one line; numbers that JSON cannot hold are written as null."""
        clean = {key: value if math.isfinite(value) else None for key, value in values.items()}
        self._lines.append(json.dumps({'step': step, **clean}) + '\n')

    def flush(self) -> None:
        """Puts the lines on disk."""
        if self._remote:
            self._file.write_text(''.join(self._lines))
        elif self._lines:
            with self._file.open('a') as file:
                file.write(''.join(self._lines))
            self._lines = []


def _step_of(line: str) -> float:
    try:
        return json.loads(line)['step']
    except (json.JSONDecodeError, KeyError, TypeError):
        return math.inf  # a line that a killed process left half-written


def trim(file: epath.Path, step: int) -> None:
    """Drops the lines of a JSON-lines file that come from after `step`, or are half-written."""
    if file.exists():
        kept = [line for line in file.read_text().splitlines() if _step_of(line) <= step]
        part = file.parent / f'{file.name}.part'
        part.write_text(''.join(f'{line}\n' for line in kept))
        part.replace(file)


class TensorBoard:
    """Scalars, pictures and texts as TensorBoard events, written by the tensorboard package alone."""

    def __init__(self, workdir: epath.Path):
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        self._writer = EventFileWriter(str(workdir))

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

    def __init__(self, workdir: epath.Path, step: int, active: bool):
        self._jsonl = JsonLines(workdir, step) if active else None
        self._tensorboard = TensorBoard(workdir) if active else None

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """The same numbers to every output, flushed at once: a killed run keeps its curve."""
        for writer in (self._jsonl, self._tensorboard):
            if writer is not None:
                writer.scalars(step, values)
                writer.flush()

    def image(self, step: int, tag: str, image: np.ndarray) -> None:
        """A picture, uint8 (rows, columns, 3), to TensorBoard."""
        if self._tensorboard is not None:
            self._tensorboard.image(step, tag, image)

    def close(self) -> None:
        """Flushes and ends."""
        if self._tensorboard is not None:
            self._tensorboard.close()


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
