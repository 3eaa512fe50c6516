"""Memory settings for a process that constantly allocates and frees large tensors."""

import ctypes
import gc
import os
import sys

_MALLOPT = {"MALLOC_MMAP_THRESHOLD_": -3, "MALLOC_TRIM_THRESHOLD_": -1}
"""Environment variables of glibc, and the parameters of `mallopt` that they set."""
_MAX_BYTES = 2**31 - 1


def keep_freed_memory() -> None:
    """Make glibc keep freed memory, which it would otherwise release and fault in at every step.

    Does nothing if one of the two environment variables is set, or with another C library.
    """
    if sys.platform == "linux" and _MALLOPT.keys().isdisjoint(os.environ):
        mallopt = getattr(ctypes.CDLL(None), "mallopt", lambda *_: 0)
        for parameter in _MALLOPT.values():
            mallopt(parameter, _MAX_BYTES)


def free_unused() -> None:
    """Give memory of GPUs that nothing refers to back to other processes."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
