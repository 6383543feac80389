"""Preemption by SIGTERM: the machine is about to go, and all processes have to stop at the same step."""

import contextlib
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
        def ask(*_: Any) -> None:
            self._asked = True

        try:
            before = signal.signal(signal.SIGTERM, ask)
        except ValueError:
            logging.info('not in the main thread: SIGTERM will not save')
        else:
            stack.callback(signal.signal, signal.SIGTERM, before)

    def reached(self) -> bool:
        """True once, at the same call in every process, which must stop then.

        All processes have to call it equally often, whatever happens between two calls.
        """
        self._calls += 1
        return self._asked or multihost_utils.reached_preemption_sync_point(self._calls)
