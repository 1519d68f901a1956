"""The best epoch, and early stopping."""

from __future__ import annotations

from pyro_vae.training.state import TrainState

__all__ = ["BestWeights", "EarlyStopping"]


class BestWeights:
    """Stores the weights of the epoch with the best validation ELBO.

    Args:
        state: The state of the run.
        compares: Whether epochs can be compared: there are validation data, and the objective is a bound on log p(x).
        keeps: Whether the run ends with the best weights.
    """

    def __init__(self, state: TrainState, *, compares: bool, keeps: bool) -> None:
        self._state, self._compares, self._keeps = state, compares, keeps

    def compare(self) -> None:
        """Store the weights of the latest epoch if they are better than all before."""
        state = self._state
        elbo = state.history[-1].monitored
        if self._compares and elbo > state.best:
            state.best, state.history.best = elbo, state.epoch
            with state.average.in_use():
                state.weights.store_best(latest=state.average.is_kept)

    def restore(self) -> None:
        """Restore the best weights, if the run ends with them; else the average of the weights, if there is one."""
        if self._keeps and self._state.history.best is not None:
            self._state.weights.restore_best()
        else:
            self._state.average.keep()
            self._state.history.best = None


class EarlyStopping:
    """Ends a run after too many epochs without a better ELBO.

    Args:
        patience: The number of epochs without a better one after which the run ends; None: never.
    """

    def __init__(self, patience: int | None) -> None:
        self._patience = patience

    def is_over(self, state: TrainState) -> bool:
        """Whether to stop before the next epoch."""
        if self._patience is None or state.losses:
            return False
        epochs_since_best = state.epoch - 1 - (state.history.best or state.epoch - 1)
        return epochs_since_best >= self._patience
