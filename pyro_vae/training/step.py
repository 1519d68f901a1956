"""One training step: shard, split, scale, gradient, reduce, check, update."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_vae.pair.arguments import slices, take
from pyro_vae.pair.scale import DataScale
from pyro_vae.training.batches import Batches
from pyro_vae.training.nonfinite import LossCheck, NonFiniteLoss
from pyro_vae.training.schedules import Schedules
from pyro_vae.training.state import TrainState

__all__ = ["TrainStep"]


class TrainStep:
    """Updates the parameters along the gradient of the mean loss of a batch.

    Args:
        state: The state of the run.
        batches: The source of the batches, which takes the shard of each process.
        schedules: The schedules of the learning rate and the KL weight.
        scale: Returns the scale that turns a summed loss into nats per datum.
        check: Checks that the losses are finite.
        parts: The number of parts in which the gradient of each batch is computed.
    """

    def __init__(
        self,
        state: TrainState,
        batches: Batches,
        schedules: Schedules,
        scale: Callable[[], DataScale],
        check: LossCheck,
        parts: int,
    ) -> None:
        self._state, self._svi = state, state.svi
        self._batches, self._schedules, self._scale = batches, schedules, scale
        self._check, self._parts = check, parts

    def __call__(self, batch: tuple[Any, ...]) -> Tensor:
        """Take one step; returns the loss before it, in nats per datum.

        Raises:
            NonFiniteLoss: If the loss, or an earlier one that was not checked yet, is NaN or infinite.
        """
        epochs, step = self._state.epochs, self._state.step
        self._schedules.set_kl_weight(epochs)
        self._check.before_step()
        rows, weight = self._batches.shard(batch)
        loss = self._svi.reduce(self._gradient(rows, weight), weight=weight, rows=len(rows[0]) / self._parts)
        self._check.check(step, loss, batch)
        self._schedules.set_lr(self._svi, epochs, step, self._state.lr_factor)
        if self._state.skips.skips():
            self._svi.zero_grad()
        else:
            self._svi.update()
            self._state.average.update()
        return loss

    def num_data(self, rows: tuple[Any, ...]) -> float:
        """The number of data that the summed loss of these rows is of."""
        return self._scale().num_data(rows)

    def _gradient(self, rows: tuple[Any, ...], weight: float) -> Tensor:
        """Add this process's part of the gradient to the parameters' `.grad`; returns its part of the loss."""
        try:
            return self._weighted_gradient(rows, weight)
        except (ValueError, RuntimeError):
            try:
                self._check.diagnose(self._state.step, rows)
            except NonFiniteLoss:
                if self._batches.ranks.size == 1:
                    raise
                return torch.tensor(math.nan, device=self._batches.device)  # the sum is NaN in all processes
            raise

    def _weighted_gradient(self, rows: tuple[Any, ...], weight: float) -> Tensor:
        """Add the gradient of `weight` times the mean loss of `rows` to the `.grad`s; returns the weighted loss."""
        n = len(rows[0])
        loss: Any = 0.0
        for start, stop in slices(n, -(-n // self._parts)):
            part = rows if self._parts == 1 else take(rows, {}, start, stop)[0]
            scale = weight * (stop - start) / n / self._scale().num_data(part)
            total = self._svi.gradients(part, scale=scale)
            loss = loss + scale * torch.stack(total if isinstance(total, tuple) else (total,)).sum()
        return loss
