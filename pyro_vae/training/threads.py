"""The number of threads of a run on CPUs, chosen by measuring a few steps with one and with all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

__all__ = ["Threads", "ThreadNumber"]

ThreadNumber = int | Literal["auto"] | None

BLOCK = 4  # steps, of which the first wakes or stops threads and is not counted
BLOCKS = 6  # with all threads and with one in turn, so that a slow moment of the machine affects both


class Threads:
    """The threads of PyTorch during a run.

    Threads that wait for work look for it without a pause, so that on busy cores each waits for one that does not run:
    small steps with two threads were up to 20 times slower than with one.

    Args:
        number: A number; None leaves PyTorch's; "auto" measures the first 24 steps of the run, with all of PyTorch's
            threads and with one, and goes on with the faster.

    Attributes:
        chosen: The number that "auto" has chosen; None before.
    """

    def __init__(self, number: ThreadNumber) -> None:
        self.chosen: int | None = None
        self._number, self._all = number, torch.get_num_threads()
        self.measures = number == "auto" and self._all > 1
        self._seconds: dict[int, list[float]] = {self._all: [], 1: []}
        self._steps, self._latest = 0, 0.0

    @contextmanager
    def in_use(self) -> Iterator[Threads]:
        """A context with this number of threads; PyTorch has its own again at the end."""
        if isinstance(self._number, int):
            torch.set_num_threads(self._number)
        try:
            yield self
        finally:
            torch.set_num_threads(self._all)

    def step(self) -> None:
        """Count a step that has ended, and choose when enough were measured."""
        if not self.measures:
            return
        now = time.perf_counter()
        if self._steps % BLOCK:
            self._seconds[torch.get_num_threads()].append(now - self._latest)
        self._steps += 1
        if self._steps == BLOCK * BLOCKS:
            self._choose()
        elif self._steps % BLOCK == 0:
            torch.set_num_threads(1 if self._steps // BLOCK % 2 else self._all)
        self._latest = time.perf_counter()

    def _choose(self) -> None:
        medians = {number: statistics.median(seconds) for number, seconds in self._seconds.items()}
        self.chosen = min(medians, key=medians.__getitem__)
        torch.set_num_threads(self.chosen)
        self.measures = False

    def __repr__(self) -> str:
        if self.chosen is None:
            return f"{torch.get_num_threads()} threads"
        times = (f"{1e3 * statistics.median(s):.2f} ms a step with {n}" for n, s in self._seconds.items())
        return f"{self.chosen} thread{'s' * (self.chosen > 1)} ({', '.join(times)})"
