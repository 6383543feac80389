"""How a benchmark ends as a command."""

import sys
from collections.abc import Callable

from fusmae_jax.errors import InputError


def exit_code(run: Callable[[], int | None]) -> int:
    """That of `run`, None counts as 0; 2 after one sentence where settings or files do not fit."""
    try:
        return run() or 0
    except InputError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
