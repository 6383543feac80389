"""Requests to stop: SIGTERM, since the machine is about to go, or Ctrl-C.

Several processes have to stop at the same step; of them, SIGTERM alone is such a request.
"""

import contextlib
import os
import signal
from typing import Any

import jax
from absl import logging
from jax.experimental import multihost_utils


class Preemption:
    """Whether the run has been asked to stop; one answer for all processes."""

    def __init__(self, stack: contextlib.ExitStack):
        """Listens from now on, and until `stack` is closed."""
        self._asked, self._calls = False, 0
        # Of several processes jax catches the signal, in any of them, and they settle on a call of `reached`.
        if not jax.distributed.is_initialized():
            self._listen(stack)

    def _listen(self, stack: contextlib.ExitStack) -> None:
        def ask(number: int, frame: Any) -> None:
            self._asked = True
            if number == signal.SIGINT:
                # Whoever presses it again does not want to wait.
                signal.signal(signal.SIGINT, signal.default_int_handler)
                # Not by `print`, which may be what the signal has interrupted, and cannot be entered twice.
                os.write(2, b'\nstopping after this step, with a checkpoint; Ctrl-C again stops without\n')

        for number in (signal.SIGTERM, signal.SIGINT):
            if signal.getsignal(number) == signal.SIG_IGN:
                continue  # as a shell has it for SIGINT of what it starts in the background
            try:
                before = signal.signal(number, ask)
            except ValueError:
                logging.info('not in the main thread: %s will not save', signal.Signals(number).name)
            else:
                stack.callback(signal.signal, number, before)

    def reached(self) -> bool:
        """True once, at the same call in every process, which must stop then.

        All processes have to call it equally often, whatever happens between two calls.
        """
        self._calls += 1
        return self._asked or multihost_utils.reached_preemption_sync_point(self._calls)
