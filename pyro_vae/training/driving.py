"""What trains a run from its start to its end: the loop by itself, or the loop of several runs together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from pyro_vae.training.loop import Run, run_to_end

__all__ = ["drive", "driven_by"]

_DRIVER: ContextVar[Callable[[Run], None]] = ContextVar("driver", default=run_to_end)


def drive(run: Run) -> None:
    """Train a run to its end: by itself, or as the innermost `driven_by` says."""
    driver = _DRIVER.get()
    with driven_by(run_to_end):  # a callback may train another pair
        driver(run)


@contextmanager
def driven_by(driver: Callable[[Run], None]) -> Iterator[None]:
    """A context in which the next run that `fit` has set up is passed to `driver`, which returns when it is over."""
    token = _DRIVER.set(driver)
    try:
        yield
    finally:
        _DRIVER.reset(token)
