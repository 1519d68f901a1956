"""Ctrl-C and SIGTERM, handled between two steps, where the state is consistent."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

__all__ = ["StopRequest", "stop_between_steps"]


@dataclass
class StopRequest:
    """Whether a signal asked the run to stop, and whether a second one has interrupted a step."""

    signal: int | None = None
    interrupts_step: bool = False

    @property
    def requested(self) -> bool:
        """Whether a signal has arrived."""
        return self.signal is not None

    def acknowledge(self) -> None:
        """Say that the run stops; whoever read its messages may have ended."""
        with suppress(OSError, ValueError):
            sys.stderr.write("stopping after this step; press Ctrl-C again to stop immediately\n")
            sys.stderr.flush()


@contextmanager
def stop_between_steps(enabled: bool = True) -> Iterator[StopRequest]:
    """A context in which the first Ctrl-C or SIGTERM only sets `requested`; a second one interrupts immediately.

    Python allows signal handlers in the main thread only; in other threads, and if not `enabled`, nothing changes.
    """
    stop = StopRequest()
    if not enabled or threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before: dict[int, Any] = {}

    def handle(number: int, frame: Any) -> None:
        if stop.requested:
            stop.interrupts_step = True
            raise KeyboardInterrupt
        stop.signal = number  # and nothing else: any call could fail in the middle of a step

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, handle)
        yield stop
    finally:
        for handled, handler in before.items():
            signal.signal(handled, signal.SIG_DFL if handler is None else handler)
