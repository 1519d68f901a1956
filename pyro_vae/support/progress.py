"""The progress bar of all long computations; silent outside terminals and notebooks by default."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from pyro_vae.support.notebooks import NotebookBar

__all__ = ["Advance", "T", "is_shown", "progress_bar", "until_interrupted"]

Advance = Callable[..., None]


def is_shown(progress: bool | None) -> bool:
    """Whether progress is shown: None stands for only in a terminal or a notebook."""
    console = Console(stderr=True)
    return console.is_terminal or console.is_jupyter if progress is None else progress


@contextmanager
def progress_bar(description: str, total: int | None, show: bool | None) -> Iterator[Advance]:
    """Yield `advance(steps=1, status="")`.

    `show` is True, False, or None: show it only in a terminal or a notebook.
    """
    console = Console(stderr=True)
    if not is_shown(show):
        yield lambda steps=1, status="": None
        return
    if console.is_jupyter:
        notebook_bar = NotebookBar(description, total)
        try:
            yield notebook_bar.advance
        finally:
            notebook_bar.show()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TaskProgressColumn(show_speed=False),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[status]}"),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(description, total=total, status="")

        def advance(steps: int = 1, status: str | None = None) -> None:
            if status is None:
                bar.advance(task, steps)
            else:
                bar.update(task, advance=steps, status=status)

        yield advance


T = TypeVar("T")


def until_interrupted(parts: Iterable[T]) -> tuple[list[T], bool]:
    """Collect the parts of a computation until it ends or Ctrl-C stops it; returns them, and whether it was stopped.

    A warning is issued where it was stopped.

    Raises:
        KeyboardInterrupt: If it was stopped before the first part was finished.
    """
    done: list[T] = []
    try:
        for part in parts:
            done.append(part)  # noqa: PERF402  the parts so far must survive
    except KeyboardInterrupt:
        if not done:
            raise
        warnings.warn("interrupted: the result holds only the data that were finished", stacklevel=3)
        return done, True
    return done, False
