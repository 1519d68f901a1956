"""What a callback of `fit` sees after each epoch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pyro_vae.training.history import Epoch, History
from pyro_vae.training.svi import SVI

__all__ = ["Callback", "State"]


@dataclass(frozen=True)
class State:
    """What a callback sees after each epoch.

    Attributes:
        history: The epochs so far.
        svi: What takes the steps, with the parameters and optimizers.
    """

    history: History
    svi: SVI

    @property
    def epoch(self) -> Epoch:
        """The epoch that just ended."""
        return self.history[-1]


Callback = Callable[[State], bool | None]
