"""One process of a run: the real command, and a signal to this very process at a chosen moment.

usage: python -m tests.support.distributed_worker MOMENT SIGNAL pretrain --config=... ; MOMENT is the number
of the step whose metrics are looked at, `compile`, `evaluate`, `save`, or `never`.
"""

import os
import signal
import sys
import time

import jax

import main
from fusmae_jax.checkpoints.checkpoints import Checkpoints
from fusmae_jax.run import loop as experiment
from fusmae_jax.run import start
from fusmae_jax.run.validation import Validation


def strike(moment: str, name: str) -> None:
    """Raises the signal at the first such moment, in the middle of what goes on then."""
    struck = []

    def hit():
        struck.append(1)
        os.kill(os.getpid(), getattr(signal, name))

    def wrap(owner, function, due):
        real = getattr(owner, function)

        def wrapped(*args):
            if due(*args) and not struck:
                hit()
            return real(*args)

        setattr(owner, function, wrapped)

    if moment == 'compile':
        wrap(start, 'compile_step', lambda *_: True)
    elif moment == 'evaluate':
        wrap(Validation, '__call__', lambda *_: True)
    elif moment == 'save':
        real = Checkpoints.save

        def saved(*args):
            real(*args)  # which goes on in the background
            if not struck:
                hit()
                time.sleep(1.5)  # jax looks for the signal once a second

        Checkpoints.save = saved
    elif moment != 'never':
        wrap(experiment.StepLog, '_look', lambda log, step, *_: step == int(moment))


if __name__ == '__main__':
    jax.config.update('jax_disable_most_optimizations', True)
    strike(*sys.argv[1:3])
    sys.exit(main.main(['main.py', *sys.argv[3:]]))
