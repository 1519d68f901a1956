"""Where training cannot work: under `no_grad`, and in two threads at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["check_grad_enabled", "only_thread"]

_LOCK = threading.RLock()  # a callback may train another pair in the same thread
_NAMES: list[str] = []


def check_grad_enabled(what: str) -> None:
    """Refuse to train where no gradient is recorded.

    Raises:
        RuntimeError: Under `torch.no_grad` or `torch.inference_mode`.
    """
    if torch.is_inference_mode_enabled() or not torch.is_grad_enabled():
        where = "torch.inference_mode()" if torch.is_inference_mode_enabled() else "torch.no_grad()"
        raise RuntimeError(f"{what} needs gradients, but it was called under {where}: call it outside")


@contextmanager
def only_thread() -> Iterator[None]:
    """A context in which one thread at a time can be.

    Raises:
        RuntimeError: If another thread of this process is in it.
    """
    if not _LOCK.acquire(blocking=False):
        other = _NAMES[-1] if _NAMES else "another thread"
        raise RuntimeError(
            f"another fit is running in the thread {other!r} of this process, and Pyro's handlers and parameters are "
            "shared by all threads: train one pair after the other, or each in a process of its own"
        )
    try:
        _NAMES.append(threading.current_thread().name)
        yield
    finally:
        _NAMES.pop()
        _LOCK.release()
