"""Rollbacks after a NaN: to the end of the previous epoch, with half the learning rate."""

from __future__ import annotations

import warnings

from pyro_vae.support.random import rng_state, set_rng_state
from pyro_vae.support.snapshots import Snapshot
from pyro_vae.training.checkpoints.svi import load_svi_state
from pyro_vae.training.nonfinite import NonFiniteLoss
from pyro_vae.training.state import TrainState

__all__ = ["Rollbacks"]


class Rollbacks:
    """Takes a run back to the end of the previous epoch.

    Args:
        state: The state of the run.
        limit: The largest number of rollbacks in the run.

    Attributes:
        good: The state to go back to; None for the start of the run.
    """

    def __init__(self, state: TrainState, limit: int) -> None:
        self._state, self._limit = state, limit
        self.good: Snapshot | None = None
        if state.step and not state.losses:  # resumed at the start of an epoch
            self.store()

    def store(self) -> None:
        """Store the current state, at the end of an epoch, as the one to go back to."""
        if self._limit:
            self.good = self._state.state_dict().copy()

    def go_back(self, error: NonFiniteLoss) -> None:
        """Return to the stored state, or to the start, with half the learning rate and other noise.

        Raises:
            NonFiniteLoss: The error itself, if no rollback is left.
        """
        state = self._state
        if state.rollbacks >= self._limit:
            raise error
        lr_factor, rollbacks, failed = state.lr_factor / 2, state.rollbacks + 1, state.step
        if self.good is None:
            state.weights.restore()
            for optimizer in state.svi.optimizers:
                optimizer.state.clear()
            state.epoch, state.step, state.losses = 1, 0, []
        else:
            good = self.good.copy()  # training changes the tensors in place, and there may be a second rollback
            rng = rng_state()
            load_svi_state(state.svi, good.part("svi"), error.batch, compiled=False)
            state.load_progress(good)
            set_rng_state(rng)
        state.lr_factor, state.rollbacks = lr_factor, rollbacks
        state.weights.store()
        warnings.warn(
            f"{error}. Going back from step {failed + 1} to step {state.step}, with {lr_factor:g} times the learning "
            "rate",
            stacklevel=3,
        )
