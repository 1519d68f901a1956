"""Losses that become NaN or infinite: detected before they do harm, and traced to a site."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Any

import pyro
import torch
from torch import Tensor

from pyro_vae.evaluate.preflight.report import find_nonfinite
from pyro_vae.training.weights import WeightCopies

__all__ = ["LossCheck", "NonFiniteLoss"]


class NonFiniteLoss(FloatingPointError):
    """The loss became NaN or infinite; the pair has the last good weights.

    Attributes:
        step: The number of steps before the failed one.
        batch: The arguments of the failed step.
        sites: The sites that were not finite, in order.
        gradients: The largest gradients of that step, by parameter; empty on a GPU, where losses are checked later.
        weights_before: Whether the weights are those before that step; if not, they were not finite, or had gone on,
            and are earlier ones now.
    """

    gradients: dict[str, float]
    weights_before: bool

    def __init__(self, message: str, step: int, batch: tuple[Any, ...], sites: list[str]) -> None:
        super().__init__(message)
        self.step, self.batch, self.sites, self.gradients, self.weights_before = step, batch, sites, {}, False


class LossCheck:
    """Checks the losses of a run, and restores its last good weights when one is not finite.

    On a CPU every loss is checked before its update. On a GPU that would make each step wait, so losses are checked
    every `every` steps.
    """

    def __init__(self, weights: WeightCopies, device: torch.device, every: int = 50) -> None:
        self.weights, self.svi = weights, weights.svi
        self.every = 1 if device.type == "cpu" else every
        self._pending: list[tuple[int, Tensor, tuple[Any, ...]]] = []
        self._batch: tuple[Any, ...] = ()  # of the latest step
        self._rng = torch.get_rng_state()

    def before_step(self) -> None:
        """Store the state of the random generator, so that a failed step can be repeated."""
        if self.every == 1:
            self._rng = torch.get_rng_state()

    def check(self, step: int, loss: Tensor, batch: tuple[Any, ...]) -> None:
        """Check a step's loss, or queue it, before its update.

        Raises:
            NonFiniteLoss: If it, or a queued one, is NaN or infinite.
        """
        if not self.weights.has_good:
            self.weights.store()
        self._batch = batch
        self._pending.append((step, loss, batch))
        if len(self._pending) >= self.every:
            self.flush()

    def confirm(self, step: int) -> None:
        """Check the queued losses and the weights after `step` steps.

        Raises:
            NonFiniteLoss: If the weights or a queued loss are not finite.
        """
        self.flush()
        if self.weights.nonfinite():
            self._fail(step, math.nan, self._batch)

    def end_epoch(self, step: int) -> None:
        """Store the weights after `step` steps as good.

        Raises:
            NonFiniteLoss: If the weights or a queued loss are not finite.
        """
        self.confirm(step)
        self.weights.store()

    def diagnose(self, step: int, batch: tuple[Any, ...]) -> None:
        """After an error in a step, such as one of Pyro's validation: raise NonFiniteLoss if NaN was its cause."""
        self.svi.zero_grad()
        self._restore_rng()
        loss = math.nan if self.weights.nonfinite() else 0.0
        with pyro.validation_enabled(False), suppress(Exception):
            loss = float(self.svi.evaluate_loss(*batch).sum())
        if not math.isfinite(loss):
            self._fail(step, loss, batch)

    def flush(self) -> None:
        """Check the queued losses.

        Raises:
            NonFiniteLoss: If one of them is NaN or infinite.
        """
        if not self._pending:
            return
        finite = torch.stack([loss.detach() for _, loss, _ in self._pending]).isfinite()
        if bool(finite.all()):
            self._pending.clear()
            if self.every > 1:
                self.weights.store()
            return
        step, loss, batch = self._pending[int((~finite).nonzero()[0])]
        self._pending.clear()
        self._fail(step, float(loss), batch)

    def _restore_rng(self) -> None:
        if self.every == 1:
            torch.set_rng_state(self._rng)

    def _largest_gradients(self) -> dict[str, float]:
        """The three parameters with the largest gradients, NaN first."""
        sizes = {name: float(p.grad.detach().abs().max()) for name, p in self.svi.params.items() if p.grad is not None}
        return dict(sorted(sizes.items(), key=lambda item: math.inf if math.isnan(item[1]) else item[1])[:-4:-1])

    def _fail(self, step: int, loss: float, batch: tuple[Any, ...]) -> None:
        bad, gradients = self.weights.nonfinite(), self._largest_gradients()
        self._restore_rng()
        with torch.no_grad():
            sites = find_nonfinite(self.svi.model, self.svi.guide, *batch)
        if bad:
            self.weights.restore()
        else:  # running averages may have seen the NaN
            self.weights.restore_buffers()
        self.svi.zero_grad()
        where = "; ".join(sites[:3]) or "every site is finite by itself (the sum overflowed, or other noise was drawn)"
        shapes = [tuple(b.shape) for b in batch if isinstance(b, Tensor)]
        broken = f" The previous update had made {len(bad)} parameters non-finite, first {bad[0]!r}." if bad else ""
        sizes = ", ".join(f"{size:.3g} of {name!r}" for name, size in gradients.items())
        largest = f" Largest gradients: {sizes}." if gradients else ""
        error = NonFiniteLoss(
            f"the loss is {loss} at step {step + 1}: {where}. The batch has shapes {shapes} (the error's .batch holds "
            f"it).{largest}{broken} The pair has its last good weights. Try a smaller lr, clip_norm, or bounded scales",
            step,
            batch,
            sites,
        )
        error.gradients, error.weights_before = gradients, self.every == 1 and not bad
        raise error
