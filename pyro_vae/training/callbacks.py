"""Callbacks of `fit`, and the state of the run that they get."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pyro_vae.training.history import Epoch, History
from pyro_vae.training.svi import SVI

__all__ = ["Callback", "State"]


@dataclass(frozen=True)
class State:
    """The state of a run after an epoch, as passed to callbacks.

    Attributes:
        history: The epochs so far.
        svi: The `SVI` that takes the steps, with the parameters and optimizers.
    """

    history: History
    svi: SVI

    @property
    def epoch(self) -> Epoch:
        """The latest epoch."""
        return self.history[-1]


Callback = Callable[[State], bool | None]
