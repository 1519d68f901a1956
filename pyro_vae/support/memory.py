"""The memory of this machine, and reuse of the memory that large tensors free."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["retain_memory", "physical_memory"]

# glibc's parameters of mallopt, and the values that its dynamic adjustment converges to
TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4
DEFAULTS = {TRIM_THRESHOLD: 64 * 2**20, TOP_PAD: 128 * 2**10, MMAP_MAX: 65536}
RETAIN = {TRIM_THRESHOLD: 2**31 - 1, TOP_PAD: 64 * 2**20, MMAP_MAX: 0}

_depth = 0


@contextmanager
def retain_memory() -> Iterator[None]:
    """Keep freed memory with the process inside the context, as on a GPU; release it to the system afterwards.

    By default the system maps and clears every CPU tensor above 32 MiB anew, which takes a third of the time of a
    gradient with many particles. Does nothing where the C library is not glibc.
    """
    global _depth
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not hasattr(libc, "mallopt"):
        yield
        return
    if _depth == 0:
        _set(libc, RETAIN)
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1
        if _depth == 0:
            _set(libc, DEFAULTS)
            libc.malloc_trim(0)  # type: ignore[union-attr]


def _set(libc: ctypes.CDLL | None, values: dict[int, int]) -> None:
    for name, value in values.items():
        libc.mallopt(name, value)  # type: ignore[union-attr]


def physical_memory() -> int | None:
    """Bytes of memory of this machine, or None where the system does not report it."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
