"""Which epoch was the best, and when there is no use in going on."""

from __future__ import annotations

from pyro_vae.training.state import TrainState

__all__ = ["BestWeights", "EarlyStopping"]


class BestWeights:
    """Keeps the weights of the epoch with the best validation ELBO.

    Args:
        state: Of the run.
        compares: Whether the ELBO says which weights are good: there are validation data, and the objective is a bound.
        keeps: Whether the run ends with the best weights.
    """

    def __init__(self, state: TrainState, *, compares: bool, keeps: bool) -> None:
        self._state, self._compares, self._keeps = state, compares, keeps

    def compare(self) -> None:
        """Keep the weights of the epoch that just ended if they are better than all before."""
        state = self._state
        elbo = state.history[-1].monitored
        if self._compares and elbo > state.best:
            state.best, state.history.best = elbo, state.epoch
            state.weights.keep_best()

    def restore(self) -> None:
        """Bring the best weights back, if the run is to end with them."""
        if self._keeps and self._state.history.best is not None:
            self._state.weights.restore_best()
        else:
            self._state.history.best = None


class EarlyStopping:
    """Says when a run has gone too long without a better ELBO.

    Args:
        patience: Epochs without a better one; None to go on in any case.
    """

    def __init__(self, patience: int | None) -> None:
        self._patience = patience

    def is_over(self, state: TrainState) -> bool:
        """Whether to stop before the next epoch."""
        if self._patience is None or state.losses:
            return False
        waited = state.epoch - 1 - (state.history.best or state.epoch - 1)
        return waited >= self._patience
