"""Steps whose gradient is too large to be taken."""

from __future__ import annotations

import warnings

import torch

from pyro_vae.training.svi import SVI

__all__ = ["GradientSkips"]


class GradientSkips:
    """Says which steps to leave out: those whose gradient has a norm above a limit, or one that is not a number.

    A rare batch with a gradient many times the usual one undoes the work of many steps and spoils the optimizer's
    moments, which clipping the gradient does not prevent: its direction stays. The norm is that of the gradient of the
    mean loss over all parameters, after the sum over processes and before any clipping. On a GPU each step waits for
    it.

    Args:
        svi: The `SVI` that takes the steps.
        limit: The largest norm; without it no step is left out.

    Attributes:
        skipped: The number of steps that were left out so far.

    Reference: Child 2021, arXiv 2011.10650, section 4.1 and appendix.
    """

    def __init__(self, svi: SVI, limit: float | None) -> None:
        self._svi, self._limit = svi, limit
        self.skipped = 0
        self._in_epoch = 0

    def skips(self) -> bool:
        """Whether the step with the present gradients is to be left out; counts it if so."""
        if self._limit is None:
            return False
        gradients = [p.grad for p in self._svi.params.values() if p.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(gradients)) / self._svi.scaler.scale
        if norm <= self._limit or self._svi.scaler.handles(norm):
            return False
        self.skipped += 1
        self._in_epoch += 1
        return True

    def end_epoch(self, steps: int) -> None:
        """Warn if more than half of an epoch's steps were left out."""
        if self._in_epoch > steps / 2:
            warnings.warn(
                f"skip_norm={self._limit:g} left out {self._in_epoch} of the {steps} steps of this epoch: the gradient "
                "is usually larger, so choose a larger limit, some ten times the usual norm",
                stacklevel=2,
            )
        self._in_epoch = 0
