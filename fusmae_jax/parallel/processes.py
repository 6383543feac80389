"""Processes of a run: what they tell each other on the host, how they fail together, what they read.

All but `read` must be called by all processes, at the same point; a single process talks to itself.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from fusmae_jax.errors import InputError

T = TypeVar('T')
MAX_LINES = 20  # of a difference that is printed


def gather(value: Any) -> list[Any]:
    """What each process holds, by process; anything that JSON can hold."""
    if jax.process_count() == 1:
        return [value]
    packed = np.frombuffer(json.dumps(value).encode(), np.uint8)
    # Arrays of one shape alone can be exchanged: the sizes first, then all padded to the largest.
    sizes = multihost_utils.process_allgather(np.int32(packed.size))
    rows = multihost_utils.process_allgather(np.pad(packed, (0, int(max(sizes)) - packed.size)))
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes)]


def together(build: Callable[[], T]) -> T:
    """The result of `build`; where it fails in one process, all raise that InputError.

    Without this the others would wait in their next exchange for one that has left.
    """
    result, problem = None, None
    try:
        result = build()
    except InputError as error:
        if jax.process_count() == 1:
            raise
        problem = str(error)
    for index, text in enumerate(gather(problem)):
        if text is not None:
            raise InputError(text if index == jax.process_index() else f'process {index}: {text}')
    return result  # type: ignore[return-value]


def check_same(values: Mapping[str, Any], advice: str) -> None:
    """Raises InputError, in all processes, with every value that is not the same in all of them."""
    everywhere = gather(dict(values))
    names = dict.fromkeys(name for held in everywhere for name in held)
    problems = []
    for name in names:
        holders: dict[str, list[int]] = {}
        for index, held in enumerate(everywhere):
            holders.setdefault(repr(held.get(name)), []).append(index)
        if len(holders) > 1:
            each = '; '.join(f'{value} in process {_some(who)}' for value, who in holders.items())
            problems.append(f'  - {name}: {each}')
    if problems:
        more = [f'  - and {len(problems) - MAX_LINES} more'] if len(problems) > MAX_LINES else []
        title = f'the {len(everywhere)} processes do not agree; {advice}'
        raise InputError('\n'.join([title, *problems[:MAX_LINES], *more]))


def _some(numbers: list[int]) -> str:
    shown = ', '.join(map(str, numbers[:8]))
    return f'{shown}, ...' if len(numbers) > 8 else shown


def read(what: str, tree: Any) -> Any:
    """The values of replicated arrays on the host; waits until they are there.

    The one way in which a run reads the device. The host may wait here, so each read has a name in profiles,
    `read WHAT`.
    """
    with jax.profiler.TraceAnnotation(f'read {what}'):
        return jax.device_get(tree)
