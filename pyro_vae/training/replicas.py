"""Parameters that are equal in several processes, at the start and after every step."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from pyro_vae.distributed.ranks import Ranks

__all__ = ["Replicas"]


class Replicas:
    """Keeps parameters and buffers equal in all processes of a run; with a single process, it does nothing.

    Args:
        ranks: The processes.
        params: The parameters found so far.
        buffers: Tensors that networks change by themselves, such as running means; all processes get those of rank 0.
    """

    def __init__(
        self, ranks: Ranks | None = None, params: Iterable[Tensor] = (), buffers: Iterable[Tensor] = ()
    ) -> None:
        self.ranks, self._buffers = ranks or Ranks(), list(buffers)
        params = list(params)
        self.ranks.broadcast_([*params, *self._buffers])
        self._num_equal = len(params)

    def reduce(self, params: Iterable[Tensor], loss: Tensor) -> Tensor:
        """Sum the gradients of parameters over the processes, in place; returns the sum of the losses."""
        return self.ranks.sum_gradients(params, loss)

    def synchronize(self, params: Iterable[Tensor]) -> None:
        """Make the buffers equal again, and parameters that have been found since."""
        if self.ranks.size == 1:
            return
        params = list(params)
        if len(params) > self._num_equal:  # a branch that ran for the first time
            self.ranks.broadcast_(params[self._num_equal :])
            self._num_equal = len(params)
        self.ranks.broadcast_(self._buffers)
