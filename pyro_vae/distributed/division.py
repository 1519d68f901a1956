"""How many processes share a batch, for networks that add up what they see in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["shares", "sharing"]

_shares = 1


def shares() -> int:
    """The number of processes that share the batch of the current gradient step.

    A network that keeps a running total over a batch multiplies that of its share by this number, and the mean over
    the processes is the total of the whole batch.
    """
    return _shares


@contextmanager
def sharing(number: int) -> Iterator[None]:
    """A context in which this number of processes share each batch."""
    global _shares
    before, _shares = _shares, number
    try:
        yield
    finally:
        _shares = before
