"""A window of training steps under the profiler of jax, for TensorBoard or Perfetto."""

import contextlib
import re
from typing import Any, NamedTuple

import jax
from absl import logging
from etils import epath

from fusmae_jax.errors import InputError

FOLDER = 'profile'


class Window(NamedTuple):
    """Steps `first` to `last`, the last one included; steps count from 1, as in metrics.jsonl."""

    first: int
    last: int


def parse_window(text: str) -> Window | None:
    """`100:110` or `100`; '' is no window."""
    if not text:
        return None
    match = re.fullmatch(r'(\d+)(?::(\d+))?', text)
    window = Window(int(match[1]), int(match[2] or match[1])) if match else Window(0, 0)
    if not 1 <= window.first <= window.last:
        raise InputError(f'--profile={text}: give the steps to trace, FIRST:LAST, such as 100:110')
    return window


class Profiler:
    """Traces the steps of a window; what goes wrong with it is logged and never stops the run."""

    def __init__(self, workdir: epath.PathLike, window: Window | None):
        self._folder, self._window = epath.Path(workdir) / FOLDER, window
        if jax.process_count() > 1:  # the trace is named by host and second, which two of them may share
            self._folder /= f'process_{jax.process_index()}'
        self._tracing = False

    def step(self, step: int, before: Any) -> contextlib.AbstractContextManager:
        """The context in which `step` is dispatched; starts and stops the trace where that is due.

        Args:
            step: the one that is about to run.
            before: results of the step before it. The trace begins and ends when they are there, so that it
                holds the device's work on the steps of the window and on no others.
        """
        if self._window is None:
            return contextlib.nullcontext()
        if self._tracing and step > self._window.last:
            self._stop(before)
        elif not self._tracing and self._window.first <= step <= self._window.last:
            self._start(before)
        return jax.profiler.StepTraceAnnotation('train', step_num=step)

    def close(self, before: Any = None) -> None:
        """Ends a trace that is still running, and writes it."""
        if self._tracing:
            self._stop(before)

    def _start(self, before: Any) -> None:
        jax.block_until_ready(before)
        try:
            jax.profiler.start_trace(str(self._folder))
            self._tracing = True
        except Exception as error:  # another trace is running, or the folder cannot be written
            logging.warning('no profile: %s', error)
            self._window = None

    def _stop(self, before: Any) -> None:
        jax.block_until_ready(before)
        self._tracing, self._window = False, None
        try:
            jax.profiler.stop_trace()
            print(f'profile written to {self._folder}; TensorBoard shows it with tensorboard-plugin-profile')
        except Exception as error:
            logging.warning('the profile was not written: %s', error)
