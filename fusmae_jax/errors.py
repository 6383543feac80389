"""The exception for bad input, and the nearest-name hint that its messages carry."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Something the user gave cannot be used; the message says where, what was found, and what to do.

    `main.py` prints the message without a traceback and leaves with exit code 2.
    """


class DamagedRecordError(InputError):
    """A record cannot be read, or is not the one that it should be.

    Of several processes the one alone may know that has this record in its rows of a batch.
    """


def nearest(name: str, valid: Iterable[str]) -> str:
    """A hint for an unknown name: the closest valid one, or all of them when none is close."""
    names = sorted(valid)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else f'valid: {", ".join(names)}'


def raise_all(title: str, problems: list[str]) -> None:
    """Raises one InputError that lists every problem; does nothing for an empty list."""
    if problems:
        raise InputError('\n'.join([title, *(f'  - {problem}' for problem in problems)]))


class DivergedError(RuntimeError):
    """Training stopped because too many updates in a row were not finite."""
