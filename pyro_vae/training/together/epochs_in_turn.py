"""The epochs of several runs, one run after another."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from pyro_vae.training.loop import train_epoch
from pyro_vae.training.nonfinite import NonFiniteLoss
from pyro_vae.training.together.members import Member

__all__ = ["EpochsInTurn"]


class EpochsInTurn:
    """Trains runs epoch by epoch, each as it would be alone. The seconds of a run are its own.

    Args:
        members: The runs.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        self.members = list(members)
        self._seconds = [0.0] * len(self.members)

    def train(self) -> bool:
        """Train for an epoch; returns whether any run goes on."""
        goes_on = False
        for k, member in enumerate(self.members):
            started = time.perf_counter()
            if not member.start_epoch():
                continue
            goes_on = True
            with member.in_front() as run:
                try:
                    train_epoch(run)
                except NonFiniteLoss as error:
                    run.rollbacks.go_back(error)  # raises the error again if no rollback is left
                    continue
            member.end_epoch()
            self._seconds[k] += time.perf_counter() - started
            epochs = member.run.state.history.epochs
            epochs[-1] = replace(epochs[-1], seconds=self._seconds[k])
        return goes_on

    def end(self, reason: str) -> None:
        """End the runs with their best weights."""
        for member in self.members:
            if not member.is_over:
                member.finish(reason)

    def close(self) -> None:
        """Nothing is left to be done."""
