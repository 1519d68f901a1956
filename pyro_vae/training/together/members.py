"""Runs that have been set up by `fit` and are trained together, each with its own generator and parameter store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyro
import torch

from pyro_vae.training.driving import driven_by
from pyro_vae.training.loop import Run

__all__ = ["Member", "with_members"]


class Member:
    """A run of several that are trained together.

    Args:
        run: The run, whose noise comes from torch's global generator at this moment.
        label: What errors call it.

    Attributes:
        generator: The generator of its noise, in the state that the global one would have if the run was alone.
        store: The state of Pyro's parameter store for its pair.
        is_over: Whether it has ended.
    """

    def __init__(self, run: Run, label: str) -> None:
        self.run, self.label = run, label
        self.generator = torch.Generator()
        self.generator.set_state(torch.get_rng_state())
        self.store: Any = pyro.get_param_store().get_state()
        self.is_over = False

    @contextmanager
    def in_front(self) -> Iterator[Run]:
        """A context in which torch's generator and Pyro's parameter store are those of this run."""
        with pyro.get_param_store().scope(self.store), self.drawing():
            yield self.run

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """A context in which torch's generator is that of this run."""
        torch.set_rng_state(self.generator.get_state())
        try:
            yield
        except Exception as error:
            if not any(note.startswith("while training") for note in getattr(error, "__notes__", ())):
                error.add_note(f"while training {self.label}")
            raise
        finally:
            self.generator.set_state(torch.get_rng_state())

    def start_epoch(self) -> bool:
        """Begin the next epoch, unless the run is over; returns whether it goes on."""
        if not self.is_over and (reason := self.run.stop_reason()) is not None:
            self.finish(reason)
        if not self.is_over:
            with self.in_front():
                self.run.start_epoch()
        return not self.is_over

    def end_epoch(self) -> None:
        """Measure, record and store the best weights."""
        with self.in_front():
            reason = self.run.end_epoch()
        if reason is not None:
            self.finish(reason)

    def finish(self, reason: str) -> None:
        """End the run with its best weights."""
        self.is_over = True
        self.run.state.history.stopped = reason
        self.run.best.restore()


def with_members(starts: Sequence[tuple[str, Callable[[], Any]]], train: Callable[[list[Member]], None]) -> None:
    """Set up runs, one inside the other, so that what each of them changes is undone in the reverse order; train them.

    Args:
        starts: The label of each run, and a function that makes its pair and calls `fit` once.
        train: Trains the runs to their ends.
    """
    members: list[Member] = []

    def start(i: int) -> None:
        if i == len(starts):
            return train(members)
        label, function = starts[i]

        def go_on(run: Run) -> None:
            members.append(Member(run, label))
            start(i + 1)

        with pyro.get_param_store().scope(), driven_by(go_on):
            function()

    start(0)
