"""What moves parameters along their gradients: an optimizer of torch or of Pyro, or a function that makes one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch
from pyro.optim import PyroOptim
from torch import Tensor

from pyro_vae.training.scaling import LossScaler

__all__ = ["OptimizerFactory", "Updater", "fused_adam", "updater_for"]

OptimizerFactory = Callable[[list[Tensor]], torch.optim.Optimizer]


def fused_adam(lr: float = 1e-3) -> OptimizerFactory:
    """A function that builds Adam in one kernel for all parameters."""
    # PyTorch's default for-each Adam costs more than the whole backward pass of a small VAE on a CPU
    return lambda params: torch.optim.Adam(params, lr=lr, fused=all(p.is_floating_point() for p in params))


class Updater(ABC):
    """Moves parameters."""

    def __init__(self) -> None:
        self.owned: list[Tensor] = []

    @property
    @abstractmethod
    def optimizer(self) -> torch.optim.Optimizer | None:
        """The torch optimizer; None before the first parameters are known, and for an optimizer of Pyro."""

    @property
    def held(self) -> list[Tensor]:
        """The parameters that are moved."""
        return self.owned

    @property
    def trained(self) -> list[Tensor]:
        """The parameters to take gradients for: those held, and all others that the pair registers."""
        return self.owned

    def own(self, params: list[Tensor]) -> None:
        """Take parameters that the pair has registered for the first time."""
        self.owned += params

    def reorder(self, params: Iterable[Tensor]) -> None:
        """Put the parameters in this order, in which the norm of the gradient is summed, before they are moved."""
        place = {p: i for i, p in enumerate(params)}
        self.owned.sort(key=lambda p: place.get(p, len(place)))

    def update(self, scaler: LossScaler, clip_norm: float | None) -> None:
        """Rescale the gradient to at most `clip_norm`, if given, move the parameters, and clear the gradients."""
        scaler.unscale(self.optimizer)
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.held, clip_norm)
        self._move(scaler)
        self.zero_grad()

    def zero_grad(self) -> None:
        """Clear the gradients."""
        for param in self.trained:
            param.grad = None

    def _move(self, scaler: LossScaler) -> None:
        scaler.step(self.optimizer)


class _Ready(Updater):
    """A torch optimizer that its user has made: it keeps the parameters that it was given."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        super().__init__()
        self._optimizer = optimizer

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        return self._optimizer

    @property
    def held(self) -> list[Tensor]:
        return [p for group in self._optimizer.param_groups for p in group["params"]]

    @property
    def trained(self) -> list[Tensor]:
        return list(dict.fromkeys([*self.held, *self.owned]))


class _Made(Updater):
    """A torch optimizer that is made from the parameters found, and grows with the pair."""

    def __init__(self, factory: OptimizerFactory, lr: float) -> None:
        super().__init__()
        self._factory, self._lr = factory, lr
        self._optimizer: torch.optim.Optimizer | None = None
        self._given = 0  # how many of the parameters the optimizer has

    @property
    def optimizer(self) -> torch.optim.Optimizer | None:
        new = self.owned[self._given :]
        if not new:
            return self._optimizer
        self._given = len(self.owned)
        groups = 0 if self._optimizer is None else len(self._optimizer.param_groups)
        if self._optimizer is None:
            self._optimizer = self._factory(new)
        else:  # a branch of the pair that ran for the first time
            self._optimizer.add_param_group({"params": new})
        for group in self._optimizer.param_groups[groups:]:
            group["lr"] = group["lr"] * self._lr
        return self._optimizer

    def reorder(self, params: Iterable[Tensor]) -> None:
        if self._optimizer is None:
            super().reorder(params)


class _Pyro(Updater):
    """An optimizer of Pyro, which keeps a torch optimizer for each parameter."""

    optimizer = None

    def __init__(self, optimizer: PyroOptim) -> None:
        super().__init__()
        self._pyro: Any = optimizer

    def _move(self, scaler: LossScaler) -> None:
        self._pyro([p for p in self.owned if p.grad is not None])


def updater_for(optim: torch.optim.Optimizer | PyroOptim | OptimizerFactory, lr: float = 1.0) -> Updater:
    """What moves parameters with `optim`; `lr` is a factor on the rate of one that is yet to be made."""
    if isinstance(optim, torch.optim.Optimizer):
        return _Ready(optim)
    if isinstance(optim, PyroOptim):
        return _Pyro(optim)
    return _Made(optim, lr)
