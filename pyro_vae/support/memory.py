"""The memory of this machine, and what large tensors leave behind of it, kept for the next ones."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["kept_memory", "physical_memory"]

# glibc's names for what mallopt sets, and the values that its own adjustment ends with
TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4
DEFAULTS = {TRIM_THRESHOLD: 64 * 2**20, TOP_PAD: 128 * 2**10, MMAP_MAX: 65536}
KEEP = {TRIM_THRESHOLD: 2**31 - 1, TOP_PAD: 64 * 2**20, MMAP_MAX: 0}

_open = 0


@contextmanager
def kept_memory() -> Iterator[None]:
    """Within it, freed memory stays with the process, as on a GPU; afterwards it goes back to the system.

    By default every CPU tensor above 32 MiB is mapped anew and its pages cleared one by one, each time: a third of the
    time of a gradient with many particles. Does nothing where the C library is not glibc.
    """
    global _open
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not hasattr(libc, "mallopt"):
        yield
        return
    if _open == 0:
        _set(libc, KEEP)
    _open += 1
    try:
        yield
    finally:
        _open -= 1
        if _open == 0:
            _set(libc, DEFAULTS)
            libc.malloc_trim(0)  # type: ignore[union-attr]


def _set(libc: ctypes.CDLL | None, values: dict[int, int]) -> None:
    for name, value in values.items():
        libc.mallopt(name, value)  # type: ignore[union-attr]


def physical_memory() -> int | None:
    """Bytes of memory of this machine, or None where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
