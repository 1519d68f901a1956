"""Copies of a pair's weights: the last good ones and the best ones."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_vae.pair.networks import modules_of
from pyro_vae.training.svi import SVI

__all__ = ["WeightCopies"]


class WeightCopies:
    """Copies, in memory, of the parameters of `svi` and the buffers of its networks.

    Attributes:
        best: The best weights so far, in the order of buffers, then parameters; empty before the first.
    """

    def __init__(self, svi: SVI) -> None:
        self.svi = svi
        self.best: list[Tensor] = []
        self._good: list[Tensor] = []
        nets = modules_of(svi.model, svi.guide).values()
        self._buffers = [b for net in nets for b in net.buffers()]

    @property
    def has_good(self) -> bool:
        """Whether `store` was called."""
        return bool(self._good)

    def store(self) -> None:
        """Store the current weights as good."""
        self._good = [w.detach().clone() for w in self._weights()]

    def store_best(self, *, latest: bool = False) -> None:
        """Store the last good weights as the best ones, or with `latest` a copy of the present ones."""
        self.best = [w.detach().clone() for w in self._weights()] if latest else self._good

    def load_best(self, best: list[Tensor]) -> None:
        """Store the current weights as good, and `best` as the best ones."""
        self.store()
        self.best = [b.to(w) for b, w in zip(best, self._weights(), strict=False)]

    def restore(self) -> None:
        """Restore the last good weights."""
        _copy(self._weights(), self._good)

    def restore_best(self) -> None:
        """Restore the best weights."""
        _copy(self._weights(), self.best)

    def restore_buffers(self) -> None:
        """Restore the last good buffers, if the current ones are not finite."""
        if not all(bool(b.isfinite().all()) for b in self._buffers):
            _copy(self._buffers, self._good)

    def nonfinite(self) -> list[str]:
        """The names of the parameters with NaN or infinite elements."""
        return [name for name, p in self.svi.params.items() if not bool(p.detach().isfinite().all())]

    def _weights(self) -> list[Tensor]:
        # parameters last: a branch of the pair that runs later adds to them
        return [*self._buffers, *self.svi.params.values()]


def _copy(weights: list[Tensor], stored: list[Tensor]) -> None:
    with torch.no_grad():
        # parameters that were first seen after the copy was made stay as they are
        for weight, value in zip(weights, stored, strict=False):
            weight.copy_(value)
