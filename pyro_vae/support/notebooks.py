"""A progress bar in a notebook, without widgets."""

from __future__ import annotations

import html
import time
from typing import Any

__all__ = ["NotebookBar"]

PAUSE = 0.2  # seconds between two updates: each is a message to the notebook


class NotebookBar:
    """A bar in the output of the current cell.

    The bar of rich needs ipywidgets; this one needs only IPython.

    Args:
        description: Text before the bar.
        total: Number of steps; None if unknown.
    """

    def __init__(self, description: str, total: int | None) -> None:
        self.description = description
        self.total = total
        self.steps = 0
        self.status = ""
        self._start = self._shown = time.monotonic()
        self._handle: Any = None
        self.show()

    def advance(self, steps: int = 1, status: str | None = None) -> None:
        """Add steps and set the status text; the display is updated at most every 0.2 seconds."""
        self.steps += steps
        self.status = self.status if status is None else status
        if time.monotonic() - self._shown >= PAUSE:
            self.show()

    def show(self) -> None:
        """Show the current state."""
        from IPython.display import display

        self._shown = time.monotonic()
        content = {"text/html": self._html(), "text/plain": self._text()}
        if self._handle is None:
            self._handle = display(content, raw=True, display_id=True)
        else:
            self._handle.update(content, raw=True)

    def _text(self) -> str:
        done = f"{self.steps} of {self.total}" if self.total else str(self.steps)
        seconds = int(self._shown - self._start)
        return " ".join(filter(None, (self.description, done, f"{seconds // 60}:{seconds % 60:02d}", self.status)))

    def _html(self) -> str:
        value = f' value="{min(self.steps, self.total)}" max="{self.total}"' if self.total else ""
        return f"<progress{value}></progress> {html.escape(self._text())}"
