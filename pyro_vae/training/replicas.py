"""The same parameters in several processes: equal at the start, and kept equal."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from pyro_vae.distributed.ranks import Ranks

__all__ = ["Replicas"]


class Replicas:
    """Keeps what is trained equal in all processes of a run; a process alone does nothing here.

    Args:
        ranks: The processes.
        params: What is trained, as far as it is known.
        buffers: What networks change by themselves, such as running means: those of rank 0 count.
    """

    def __init__(
        self, ranks: Ranks | None = None, params: Iterable[Tensor] = (), buffers: Iterable[Tensor] = ()
    ) -> None:
        self.ranks, self._buffers = ranks or Ranks(), list(buffers)
        params = list(params)
        self.ranks.broadcast_([*params, *self._buffers])
        self._equal = len(params)

    def reduce(self, params: Iterable[Tensor], loss: Tensor) -> Tensor:
        """Sum the gradients of parameters, in place, and a loss over the processes; returns the latter."""
        return self.ranks.sum_gradients(params, loss)

    def synchronize(self, params: Iterable[Tensor]) -> None:
        """Make buffers equal again, and parameters that have appeared since."""
        if self.ranks.size == 1:
            return
        params = list(params)
        if len(params) > self._equal:  # a branch that ran for the first time
            self.ranks.broadcast_(params[self._equal :])
            self._equal = len(params)
        self.ranks.broadcast_(self._buffers)
