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
    """Moves the parameters along the gradient of the mean loss of a batch.

    Args:
        state: Of the run.
        batches: Where batches come from, which tells the share of each process.
        schedules: Learning rate and weight of the KL.
        scale: What turns a summed loss into nats per datum, found at the first step.
        check: What looks at the losses.
        parts: Take the gradient of each batch in so many parts.
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
        """Make one step; returns the loss before it, in nats per datum.

        Raises:
            NonFiniteLoss: If the loss, or one not looked at before, is NaN or infinite.
        """
        epochs, step = self._state.epochs, self._state.step
        self._schedules.set_kl_weight(epochs)
        self._check.before_step()
        loss = self._svi.reduce(self._gradient(batch))
        self._check.check(step, loss, batch)
        self._schedules.set_lr(self._svi, epochs, step, self._state.lr_factor)
        self._svi.update()
        return loss

    def _gradient(self, batch: tuple[Any, ...]) -> Tensor:
        """Leave this process's part of the gradient in the parameters; returns its part of the loss."""
        rows, share = self._batches.shard(batch)
        try:
            return self._gradient_of(rows, share)
        except (ValueError, RuntimeError):
            try:
                self._check.look_into(self._state.step, rows)
            except NonFiniteLoss:
                if self._batches.ranks.size == 1:
                    raise
                return torch.tensor(math.nan, device=self._batches.device)  # which all processes will see at once
            raise

    def _gradient_of(self, rows: tuple[Any, ...], share: float) -> Tensor:
        """Leave the gradient of `share` times the mean loss of some data in the parameters; returns that loss."""
        n = len(rows[0])
        loss: Any = 0.0
        for start, stop in slices(n, -(-n // self._parts)):
            part = rows if self._parts == 1 else take(rows, {}, start, stop)[0]
            scale = share * (stop - start) / n / self._scale().num_data(part)
            total = self._svi.gradients(part, scale=scale)
            loss = loss + scale * torch.stack(total if isinstance(total, tuple) else (total,)).sum()
        return loss
