"""The weights of a pair kept in memory, and the check that training has not lost them."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Any

import pyro
import torch
from torch import Tensor

from pyro_vae.evaluate.preflight.report import find_nonfinite
from pyro_vae.pair.networks import modules_of
from pyro_vae.training.svi import SVI

__all__ = ["NonFiniteLoss", "WeightGuard"]


class NonFiniteLoss(FloatingPointError):
    """The loss became NaN or infinite; the pair has the last good weights.

    Attributes: `step`, `batch` (the arguments of the failed step), `sites` (what was not finite, in order) and
    `gradients` (the largest gradients of that step, by parameter; empty where its losses were looked at later).
    """

    gradients: dict[str, float]

    def __init__(self, message: str, step: int, batch: tuple[Any, ...], sites: list[str]) -> None:
        super().__init__(message)
        self.step, self.batch, self.sites, self.gradients = step, batch, sites, {}


class WeightGuard:
    """Watches the losses of `svi` and keeps copies of its weights, the last good ones and the best ones.

    On a CPU every loss is looked at before its update. On a GPU that would make each step wait, so losses are looked
    at `every` steps.
    """

    def __init__(self, svi: SVI, device: torch.device, every: int = 50) -> None:
        self.svi = svi
        self.every = 1 if device.type == "cpu" else every
        nets = modules_of(svi.model, svi.guide).values()
        self._buffers = [b for net in nets for b in net.buffers()]
        self._constants = {
            id(m._buffers[name]) for net in nets for m in net.modules() for name in m._non_persistent_buffers_set
        }
        self._good: list[Tensor] = []
        self._best: list[Tensor] = []
        self._unseen: list[tuple[int, Tensor, tuple[Any, ...]]] = []
        self._rng = torch.get_rng_state()

    def _weights(self) -> list[Tensor]:
        # parameters last: a branch of the pair that runs late adds to them
        return [*self._buffers, *self.svi.params.values()]

    def keep(self) -> None:
        """Remember the present weights as good."""
        self._good = [w.detach().clone() for w in self._weights()]

    def keep_best(self) -> None:
        """Remember the last good weights as the best."""
        self._best = self._good

    def restore_good(self) -> None:
        """Bring the last good weights back."""
        self._restore(self._good)

    @property
    def running(self) -> list[Tensor]:
        """What the networks change by themselves, such as running means: the buffers that they would save."""
        return [b for b in self._buffers if id(b) not in self._constants]

    @property
    def best(self) -> list[Tensor]:
        """The best weights so far, in the order of buffers, then parameters; empty before the first."""
        return self._best

    def resume(self, best: list[Tensor]) -> None:
        """Go on with the present weights as good ones, and with these as the best ones."""
        self.keep()
        self._best = [b.to(w) for b, w in zip(best, self._weights(), strict=False)]

    def restore_best(self) -> None:
        """Bring the best weights back."""
        self._restore(self._best)

    def _restore(self, kept: list[Tensor]) -> None:
        with torch.no_grad():
            # parameters first seen after the copy was taken stay as they are
            for weight, value in zip(self._weights(), kept, strict=False):
                weight.copy_(value)

    def before_step(self) -> None:
        """Note the noise that the step will use, so that a failure can be looked at again."""
        if self.every == 1:
            self._rng = torch.get_rng_state()

    def check(self, step: int, loss: Tensor, batch: tuple[Any, ...]) -> None:
        """Take a step's loss, before its update.

        Raises:
            NonFiniteLoss: If it, or one not yet looked at, is NaN or infinite.
        """
        if not self._good:
            self.keep()
        self._unseen.append((step, loss, batch))
        if len(self._unseen) >= self.every:
            self.flush()

    def end_epoch(self, step: int, batch: tuple[Any, ...]) -> None:
        """Remember the weights after `step` steps, the last of them on `batch`, as good.

        Raises:
            NonFiniteLoss: If they are not finite, or a loss not yet looked at.
        """
        self.flush()
        if self._broken():
            self._fail(step, math.nan, batch)
        self.keep()

    def look_into(self, step: int, batch: tuple[Any, ...]) -> None:
        """After an error in a step, such as Pyro's validation raises: raise NonFiniteLoss if NaN was behind it."""
        self.svi.zero_grad()
        self._rewind()
        loss = math.nan if self._broken() else 0.0
        with pyro.validation_enabled(False), suppress(Exception):
            loss = float(self.svi.evaluate_loss(*batch).sum())
        if not math.isfinite(loss):
            self._fail(step, loss, batch)

    def flush(self) -> None:
        """Look at the losses that wait."""
        if not self._unseen:
            return
        finite = torch.stack([loss.detach() for _, loss, _ in self._unseen]).isfinite()
        if bool(finite.all()):
            self._unseen.clear()
            if self.every > 1:
                self.keep()
            return
        step, loss, batch = self._unseen[int((~finite).nonzero()[0])]
        self._unseen.clear()
        self._fail(step, float(loss), batch)

    def _rewind(self) -> None:
        if self.every == 1:
            torch.set_rng_state(self._rng)

    def _broken(self) -> list[str]:
        return [name for name, p in self.svi.params.items() if not bool(p.detach().isfinite().all())]

    def _largest_gradients(self) -> dict[str, float]:
        """The three parameters with the largest gradients, NaN first."""
        sizes = {name: float(p.grad.detach().abs().max()) for name, p in self.svi.params.items() if p.grad is not None}
        return dict(sorted(sizes.items(), key=lambda item: math.inf if math.isnan(item[1]) else item[1])[:-4:-1])

    def _fail(self, step: int, loss: float, batch: tuple[Any, ...]) -> None:
        bad, gradients = self._broken(), self._largest_gradients()
        self._rewind()
        with torch.no_grad():
            sites = find_nonfinite(self.svi.model, self.svi.guide, *batch)
        if bad:
            self._restore(self._good)
        elif not all(bool(b.isfinite().all()) for b in self._buffers):  # running averages that have seen the NaN
            self._restore(self._good[: len(self._buffers)])
        self.svi.zero_grad()
        where = "; ".join(sites[:3]) or "no site by itself (the sum overflowed, or other noise was drawn)"
        shapes = [tuple(b.shape) for b in batch if isinstance(b, Tensor)]
        broken = f" The update before it had made {len(bad)} parameters non-finite, first {bad[0]!r}." if bad else ""
        sizes = ", ".join(f"{size:.3g} of {name!r}" for name, size in gradients.items())
        largest = f" Largest gradients: {sizes}." if gradients else ""
        error = NonFiniteLoss(
            f"the loss is {loss} at step {step + 1}: {where}. The batch has shapes {shapes} (the error's .batch holds "
            f"it).{largest}{broken} The pair has its last good weights. Try a smaller lr, clip_norm, or bounded scales",
            step,
            batch,
            sites,
        )
        error.gradients = gradients
        raise error
