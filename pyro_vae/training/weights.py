"""Copies of a pair's weights: the last good ones, and the best ones."""

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
        self._constants = {
            id(m._buffers[name]) for net in nets for m in net.modules() for name in m._non_persistent_buffers_set
        }

    @property
    def running(self) -> list[Tensor]:
        """What the networks change by themselves, such as running means: the buffers that they would save."""
        return [b for b in self._buffers if id(b) not in self._constants]

    @property
    def has_good(self) -> bool:
        """Whether `keep` was called."""
        return bool(self._good)

    def keep(self) -> None:
        """Remember the present weights as good."""
        self._good = [w.detach().clone() for w in self._weights()]

    def keep_best(self) -> None:
        """Remember the last good weights as the best."""
        self.best = self._good

    def load_best(self, best: list[Tensor]) -> None:
        """Remember the present weights as good, and these as the best."""
        self.keep()
        self.best = [b.to(w) for b, w in zip(best, self._weights(), strict=False)]

    def restore(self) -> None:
        """Bring the last good weights back."""
        _copy(self._weights(), self._good)

    def restore_best(self) -> None:
        """Bring the best weights back."""
        _copy(self._weights(), self.best)

    def restore_buffers(self) -> None:
        """Bring the last good buffers back, if the present ones are not finite."""
        if not all(bool(b.isfinite().all()) for b in self._buffers):
            _copy(self._buffers, self._good)

    def nonfinite(self) -> list[str]:
        """The names of the parameters that are NaN or infinite somewhere."""
        return [name for name, p in self.svi.params.items() if not bool(p.detach().isfinite().all())]

    def _weights(self) -> list[Tensor]:
        # parameters last: a branch of the pair that runs late adds to them
        return [*self._buffers, *self.svi.params.values()]


def _copy(weights: list[Tensor], kept: list[Tensor]) -> None:
    with torch.no_grad():
        # parameters first seen after the copy was taken stay as they are
        for weight, value in zip(weights, kept, strict=False):
            weight.copy_(value)
