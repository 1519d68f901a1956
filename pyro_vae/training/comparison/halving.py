"""Sequential halving: estimators train side by side, and those that are beaten end early."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pyro_vae.compilation.stacked import CannotStack
from pyro_vae.training.together.epochs_in_turn import EpochsInTurn
from pyro_vae.training.together.jobs import Fitted, Job, Stacked, train_together, why_not_stacked
from pyro_vae.training.together.members import Member
from pyro_vae.training.together.stacked_epochs import StackedEpochs

__all__ = ["halved", "halving_epochs"]


def halving_epochs(number: int, epochs: int) -> list[int]:
    """The epochs after which half of the estimators that are left end, so that each part costs about as much.

    With r rounds the parts have lengths in the ratios 1, 2, 4, ..., the number of estimators in them falls likewise.

    >>> halving_epochs(4, 70), halving_epochs(5, 150), halving_epochs(1, 10)
    ([10, 30], [10, 30, 70], [])
    """
    rounds = math.ceil(math.log2(number))
    ends = [round(epochs * (2**r - 1) / (2 ** (rounds + 1) - 1)) for r in range(1, rounds + 1)]
    return sorted({max(1, end) for end in ends})


def halved(grid: Mapping[str, list[Job]], epochs: int, how: Stacked) -> dict[str, list[Fitted]]:
    """Train the jobs of all labels, of which half end at each of `halving_epochs`.

    Raises:
        ValueError: If steps cannot be stacked that were said to be, or were found to be when they began.
    """
    is_stacked = {label: why_not_stacked(jobs, how) is None for label, jobs in grid.items()}
    jobs = [job for row in grid.values() for job in row]
    width = len(jobs) // len(grid)

    def train(members: list[Member]) -> list[Any]:
        rows = {label: members[i * width : (i + 1) * width] for i, label in enumerate(grid)}
        groups = {label: StackedEpochs(row) if is_stacked[label] else EpochsInTurn(row) for label, row in rows.items()}
        try:
            _train(groups, halving_epochs(len(grid), epochs))
        except CannotStack as error:
            raise ValueError(f"the runs cannot be stacked: {error}: give stacked=False") from error
        finally:
            for group in groups.values():
                group.close()
        return [member.store for member in members]

    trained, stores = train_together(jobs, train)
    fitted = [
        Fitted(job.seed, history, pair, store)
        for job, (pair, history), store in zip(jobs, trained, stores, strict=True)
    ]
    return {label: fitted[i * width : (i + 1) * width] for i, label in enumerate(grid)}


def _train(groups: dict[str, StackedEpochs | EpochsInTurn], halvings: list[int]) -> None:
    """Train the groups side by side, and end the worse half of those that are left after each of these epochs."""
    left, epoch = dict(groups), 0
    while left:
        for label, group in list(left.items()):
            if not group.train():
                del left[label]
        epoch += 1
        if epoch in halvings and len(left) > 1:
            ranked = sorted(left, key=lambda label: _mean_elbo(left[label].members), reverse=True)
            for label in ranked[math.ceil(len(ranked) / 2) :]:
                left.pop(label).end("beaten")


def _mean_elbo(members: list[Member]) -> float:
    """The mean over the seeds of the latest ELBO; an infinite loss for one that is not a number."""
    mean = sum(member.run.state.history[-1].monitored for member in members) / len(members)
    return -math.inf if math.isnan(mean) else mean
