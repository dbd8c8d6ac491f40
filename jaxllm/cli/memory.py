"""Process set-up for work on CPU devices."""

from __future__ import annotations

import contextlib
import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> None:
    """Have glibc keep large freed blocks instead of returning each to the kernel.

    A step on CPU devices asks for the same large buffers again and again; with the defaults each comes as
    fresh pages, and page faults took a quarter of the step. Does nothing where there is no glibc. The
    process then holds its peak memory until it ends.
    """
    if not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)
