"""Rollbacks after a NaN: to the end of an earlier epoch, with half the learning rate."""

from __future__ import annotations

import math
import warnings
from contextlib import suppress
from typing import Any

import pyro
import torch

from pyro_vae.elbo import PhasedELBO
from pyro_vae.pair.untouched import kept_buffers
from pyro_vae.support.random import fork_rng, rng_state, set_rng_state
from pyro_vae.support.snapshots import Snapshot
from pyro_vae.training.nonfinite import NonFiniteLoss
from pyro_vae.training.state import TrainState

__all__ = ["Rollbacks"]

STATES = 2  # that can be gone back to: the last one may be finite, and yet give a NaN in the next step


class Rollbacks:
    """Takes a run back to the end of the previous epoch, or of the one before.

    The states to go back to are part of the run's state, so that a resumed run goes back to the same ones. A run that
    was resumed from a checkpoint without them can go back to this checkpoint.

    Args:
        state: The state of the run.
        limit: The largest number of rollbacks in the run.
        example_args: A few data, on which the pair is run to find its parameters.
        keeps: Whether to keep the latest state also if `limit` is 0.

    Attributes:
        latest: The state at the end of the latest epoch; None if there is none, or it is not kept.
    """

    def __init__(self, state: TrainState, limit: int, example_args: tuple[Any, ...], *, keeps: bool) -> None:
        self._state, self._limit, self._example_args, self._keeps = state, limit, example_args, keeps
        self.latest: Snapshot | None = None
        if not limit:
            state.good = []
        elif not state.good:
            if not state.svi.params:
                state.svi.prepare(*example_args)
            self.store()

    def store(self) -> None:
        """Store the current state, at the end of an epoch, as one to go back to."""
        if self._limit or self._keeps:
            self.latest = self._state.current().copy()
        if self._limit and self.latest is not None:
            self._state.good = [*self._state.good, self.latest][-STATES:]

    def go_back(self, error: NonFiniteLoss) -> None:
        """Return to a stored state, with half the learning rate and other noise.

        That is the latest one, unless its loss on the batch of the failed step is not finite either.

        Raises:
            NonFiniteLoss: The error itself, if no rollback is left.
        """
        state = self._state
        if state.rollbacks >= self._limit:
            raise error
        lr_factor, rollbacks, failed = state.lr_factor / 2, state.rollbacks + 1, state.step
        self._load(state.good[-1])
        while len(state.good) > 1 and not self._has_loss(error.batch):
            state.good.pop()
            self._load(state.good[-1])
        self._load(state.good[-1])  # the question may have changed the objective
        state.lr_factor, state.rollbacks = lr_factor, rollbacks
        warnings.warn(
            f"{error}. Going back from step {failed + 1} to step {state.step}, with {lr_factor:g} times the learning "
            "rate",
            stacklevel=3,
        )

    def _load(self, good: Snapshot) -> None:
        # a copy: training changes the tensors in place, and there may be a second rollback
        rng = rng_state()
        self._state.go_back_to(good.copy(), self._example_args)
        set_rng_state(rng)

    def _has_loss(self, batch: tuple[Any, ...]) -> bool:
        """Whether the current weights have a finite loss on a batch."""
        svi = self._state.svi
        critics = svi.objective.critics.values() if isinstance(svi.objective, PhasedELBO) else ()
        loss = math.nan
        kept = kept_buffers(svi.model, svi.guide, networks=critics)
        with fork_rng(), kept, pyro.validation_enabled(False), suppress(ValueError, RuntimeError):
            loss = float(torch.as_tensor(svi.evaluate_loss(*batch)).sum())
        (fails,) = self._state.ranks.any(not math.isfinite(loss))
        return not fails
