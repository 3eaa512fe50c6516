"""Memory of a process that makes and drops large tensors all the time."""

import ctypes
import os
import sys

_MALLOPT = {"MALLOC_MMAP_THRESHOLD_": -3, "MALLOC_TRIM_THRESHOLD_": -1}
"""Environment variables of glibc, and the same for its `mallopt`."""
_MOST_BYTES = 2**31 - 1


def keep_freed_memory() -> None:
    """Tell glibc to keep freed tensors, which it would give back and fault in again at every step.

    What the two environment variables say stays; other C libraries are left alone.
    """
    if sys.platform == "linux" and _MALLOPT.keys().isdisjoint(os.environ):
        mallopt = getattr(ctypes.CDLL(None), "mallopt", lambda *_: 0)
        for parameter in _MALLOPT.values():
            mallopt(parameter, _MOST_BYTES)
