"""Settings of glibc's memory allocator, for this process."""

import ctypes
import sys

# Of mallopt(3), in glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -3, -4, -8


def mallopt(*settings: tuple[int, int]) -> bool:
    """Sets parameters to values; True if all could be set, False with another C library or system."""
    if not sys.platform.startswith('linux'):
        return False
    try:
        function = ctypes.CDLL('libc.so.6').mallopt
    except (OSError, AttributeError):
        return False
    return all(function(parameter, value) for parameter, value in settings)
