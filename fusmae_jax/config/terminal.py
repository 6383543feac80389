"""The streams that a command prints to: letters that they lack, and readers that have gone."""

import contextlib
import os
import select
import sys
from collections.abc import Iterator
from typing import TextIO

# What a shell reports of a program that ended since nobody read its output any more: 128 + SIGPIPE.
CLOSED = 141
INTERRUPTED = 130  # and by Ctrl-C: 128 + SIGINT


class ClosedOutputError(Exception):
    """Nobody reads the output of a command any more, as behind `| head`."""


@contextlib.contextmanager
def printing() -> Iterator[None]:
    """Prints what is printed inside, to the end; raises ClosedOutputError where the reader has gone.

    A terminal may have no sign for a letter of a file name, and a name may be no text at all: such letters
    are written as their numbers.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, 'reconfigure'):
            stream.reconfigure(errors='backslashreplace')
    try:
        yield
        # What is still held back would fail when Python ends, with a message of its own.
        sys.stdout.flush()
    except BrokenPipeError as error:
        if not _gone():
            raise
        raise ClosedOutputError from error


def _gone() -> bool:
    """Whether it is the output that is closed, and no other pipe; it then goes nowhere."""
    closed = [stream for stream in (sys.stdout, sys.stderr) if _is_closed(stream)]
    for stream in closed:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
    return bool(closed)


def _is_closed(stream: TextIO) -> bool:
    """Whether a stream is a pipe that nobody reads."""
    try:
        poll = select.poll()
        poll.register(stream.fileno(), 0)
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    except (OSError, ValueError, AttributeError):
        # No file behind it, or no such call on this system.
        return False
