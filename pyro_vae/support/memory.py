"""The memory of this machine, and reuse of the memory that large tensors free."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

__all__ = ["TooLarge", "limited_tensors", "physical_memory", "retain_memory"]

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


class TooLarge(ValueError):
    """Tensors would take more memory than they may."""


@contextmanager
def limited_tensors(limit: int) -> Iterator[None]:
    """A context in which all tensors that are made may take `limit` bytes together, whether they are kept or not.

    What an operation will take is known before it runs: it is tried without data first.

    Raises:
        TooLarge: In place of the operation that would go beyond the limit.
    """
    with _Limit(limit):
        yield


class _Limit(TorchDispatchMode):
    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit, self.taken = limit, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        schema = getattr(func, "_schema", None)  # operations of a higher order have none, and consist of others
        makes_tensors = schema and any(value.alias_info is None for value in schema.returns)  # no view, not in place
        if makes_tensors:
            self.taken += _bytes_of(func, args, kwargs)
            if self.taken > self.limit:
                raise TooLarge(f"more than {self.limit:,} bytes of tensors")
        return func(*args, **kwargs)


def _bytes_of(func: Any, args: Any, kwargs: dict[str, Any]) -> int:
    """The bytes of what an operation returns, computed on tensors without data."""

    def without_data(value: Any) -> Any:
        return value.to("meta") if isinstance(value, Tensor) else value

    args, kwargs = tree_map(without_data, (args, kwargs))
    names = {argument.name for argument in func._schema.arguments}
    if "device" in names:
        kwargs["device"] = torch.device("meta")
    if "generator" in names:
        kwargs["generator"] = None
    try:
        made = func(*args, **kwargs)
    except Exception:  # its result depends on values, and is about as large as what it takes
        made = args
    return sum(t.numel() * t.element_size() for t in tree_leaves(made) if isinstance(t, Tensor))
