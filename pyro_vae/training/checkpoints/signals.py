"""Ctrl-C and SIGTERM taken between two steps, where all state is whole."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

__all__ = ["Stop", "stop_between_steps"]


@dataclass
class Stop:
    """Whether to stop, the signal that said so, and whether a second one has interrupted a step."""

    signal: int | None = None
    at_once: bool = False

    @property
    def asked(self) -> bool:
        """Whether a signal came."""
        return self.signal is not None


@contextmanager
def stop_between_steps() -> Iterator[Stop]:
    """Within it, the first Ctrl-C or SIGTERM only sets `asked`; a second one interrupts at once.

    Python allows this in the main thread alone; elsewhere signals stay what they are.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before: dict[int, Any] = {}

    def take(number: int, frame: Any) -> None:
        if stop.asked:
            stop.at_once = True
            raise KeyboardInterrupt
        stop.signal = number
        sys.stderr.write("stopping after this step; once more to stop at once\n")  # which may be compiling

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, take)
        yield stop
    finally:
        for taken, handler in before.items():
            signal.signal(taken, signal.SIG_DFL if handler is None else handler)
