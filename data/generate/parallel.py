"""Spreading the scenes of an archive over processes."""

import concurrent.futures
import multiprocessing
from collections.abc import Callable
from typing import TypeVar

T = TypeVar('T')


def each(function: Callable[[int], T], count: int, workers: int = 1) -> list[T]:
    """The results of `function(0)` to `function(count - 1)`, in `workers` processes if more than one.

    With several, the function must be importable (or a partial of one), and so must the main module: new
    processes start afresh, since a fork may inherit locked threads.
    """
    if workers == 1:
        return [function(index) for index in range(count)]
    context = multiprocessing.get_context('spawn')
    with concurrent.futures.ProcessPoolExecutor(workers, context) as pool:
        return list(pool.map(function, range(count), chunksize=16))
