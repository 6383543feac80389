"""Memory that a process frees, and what it has held: on CPU it matters what glibc does with it.

XLA takes the temporaries of a step anew each time, and frees them after it. By default glibc then gives
their pages back to the kernel, so the next step has to have them mapped and zeroed again.
"""

import resource
import sys

from fusmae_jax.parallel.allocator import M_ARENA_MAX, M_MMAP_MAX, M_TRIM_THRESHOLD, mallopt


def keep_all_freed() -> bool:
    """Has this process keep all memory that it frees, for its next step; True if it could.

    To be called first of all: threads that have memory of their own by then go on using it. In the
    environment of a process the same are MALLOC_TRIM_THRESHOLD_, MALLOC_MMAP_MAX_ and MALLOC_ARENA_MAX.
    """
    # -1 switches trimming off. Memory from mmap always goes back when it is freed; only the first arena can
    # grow beyond 64 MiB.
    return mallopt((M_TRIM_THRESHOLD, -1), (M_MMAP_MAX, 0), (M_ARENA_MAX, 1))


def most_held() -> int:
    """Bytes that this process has held at most."""
    unit = 1 if sys.platform == 'darwin' else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def cpu_seconds() -> float:
    """User and system time of this process, all threads, so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
