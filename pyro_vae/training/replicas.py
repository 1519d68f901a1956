"""Parameters and running averages that are equal in several processes, at the start and after every step."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager

from torch import Tensor

from pyro_vae.distributed.division import sharing
from pyro_vae.distributed.ranks import Ranks
from pyro_vae.training.averages import RunningAverages

__all__ = ["Replicas"]


class Replicas:
    """Keeps parameters and running averages equal in all processes of a run; with a single process, it does nothing.

    Args:
        ranks: The processes.
        params: The parameters found so far.
        averages: The tensors that networks change by themselves. All processes begin with those of rank 0.
    """

    def __init__(
        self, ranks: Ranks | None = None, params: Iterable[Tensor] = (), averages: RunningAverages | None = None
    ) -> None:
        self.ranks, self._averages = ranks or Ranks(), averages
        params = list(params)
        self.ranks.broadcast_([*params, *(averages.tensors if averages is not None else ())])
        self._num_equal = len(params)

    def sharing(self) -> AbstractContextManager[None]:
        """A context for the gradients of a step on this process's share of a batch."""
        if self._averages is not None:
            self._averages.start()
        return sharing(self.ranks.size)

    def forget(self) -> None:
        """Forget the step that has begun, which failed."""
        if self._averages is not None:
            self._averages.forget()

    def reduce(self, params: Iterable[Tensor], loss: Tensor) -> Tensor:
        """Sum the gradients of parameters over the processes, in place; returns the sum of the losses."""
        return self.ranks.sum_gradients(params, loss)

    def synchronize(self, params: Iterable[Tensor], weight: float | None, rows: float) -> None:
        """Merge the running averages, and make parameters equal that have been found since.

        Args:
            params: All parameters.
            weight: The share of this process in the batch. Default: that of equal shares.
            rows: How many data it passes through the networks at a time.
        """
        if self.ranks.size == 1:
            return
        params = list(params)
        if len(params) > self._num_equal:  # a branch that ran for the first time
            self.ranks.broadcast_(params[self._num_equal :])
            self._num_equal = len(params)
        if self._averages is not None:
            self._averages.merge(1 / self.ranks.size if weight is None else weight, rows)
