"""Whether compiling pays for the steps that are left, by the time that steps and compilations have taken."""

from __future__ import annotations

import time
from typing import Any

from pyro_vae.compilation.costs import expected_seconds

__all__ = ["CompileChoice"]

GAIN = 0.25  # of the time of an eager step: the least measured, at large batches
FEWEST = 100  # steps whose time is known well enough, of a loader whose first epoch may never end


class CompileChoice:
    """Measures eager steps, and chooses once.

    Args:
        all_steps: The number of steps of the run; None if it is unknown, so that nothing is ever compiled.
    """

    def __init__(self, all_steps: int | None) -> None:
        self.all_steps = all_steps
        self._steps, self._seconds, self._latest = 0, 0.0, 0.0

    def start(self) -> None:
        """Begin to measure, at the start of an epoch."""
        self._latest = time.perf_counter()

    def step(self) -> None:
        """Measure a step that has ended."""
        now = time.perf_counter()
        self._steps += 1
        self._seconds += now - self._latest
        self._latest = now

    @property
    def is_known(self) -> bool:
        """Whether enough steps were measured to choose in the middle of an epoch."""
        return self._steps >= FEWEST

    def compiles(self, step: int, ranks: Any) -> bool:
        """Whether the steps after `step` are to be compiled; the same in all processes."""
        left = (self.all_steps or 0) - step
        saved = GAIN * left * self._seconds / max(1, self._steps)
        chosen: bool = ranks.broadcast(saved > expected_seconds())
        return chosen
