"""The scale of a loss whose gradient passes through half precision."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

__all__ = ["LossScaler"]


class LossScaler:
    """Scales losses for "float16", as `torch.amp.GradScaler` does; for other precisions it changes nothing.

    Args:
        dtype: The dtype that the networks run in; None leaves it unchanged.
    """

    def __init__(self, dtype: torch.dtype | None) -> None:
        self.enabled = dtype == torch.float16
        self._scaler: torch.amp.GradScaler | None = None

    def factor(self, scale: float, params: list[Tensor]) -> float | Tensor:
        """The factor for a loss that replaces `scale`, on the device of `params`."""
        if not self.enabled:
            return scale
        device = params[0].device if params else torch.device("cpu")
        if self._scaler is None:
            self._scaler = torch.amp.GradScaler(device.type)
        return self._scaler.scale(torch.tensor(scale, device=device))

    @property
    def scale(self) -> float:
        """The factor that the gradients contain now."""
        return 1.0 if self._scaler is None else float(self._scaler.get_scale())

    def handles(self, norm: float) -> bool:
        """Whether a gradient of this norm is an overflow of half precision, whose step `step` leaves out."""
        return self._scaler is not None and not math.isfinite(norm)

    def unscale(self, optimizer: torch.optim.Optimizer | None) -> None:
        """Divide the gradients of an optimizer's parameters by the scale."""
        if self._scaler is not None and optimizer is not None:
            self._scaler.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer | None) -> None:
        """Step an optimizer, unless a scaled gradient overflowed."""
        if optimizer is None:
            return
        if self._scaler is None:
            optimizer.step()
        else:
            self._scaler.step(optimizer)
            self._scaler.update()

    def state_dict(self) -> dict[str, Any] | None:
        """The current scale; None if nothing was scaled."""
        return None if self._scaler is None else self._scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any] | None, params: list[Tensor]) -> None:
        """Restore the scale of a `state_dict`."""
        if state is not None and self.enabled:
            self.factor(1.0, params)
            assert self._scaler is not None
            self._scaler.load_state_dict(state)
