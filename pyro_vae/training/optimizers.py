"""The update of parameters by an optimizer of torch or of Pyro, or by a function that makes one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable

import torch
from pyro.optim import PyroOptim
from torch import Tensor

from pyro_vae.training.pyro_optimizers import MergedOptimizer
from pyro_vae.training.scaling import LossScaler

__all__ = ["OptimizerFactory", "Updater", "fused_adam", "updater_for"]

OptimizerFactory = Callable[[list[Tensor]], torch.optim.Optimizer]


def fused_adam(lr: float = 1e-3) -> OptimizerFactory:
    """A function that makes an Adam optimizer which updates all parameters in one kernel."""
    # PyTorch's default for-each Adam costs more than the whole backward pass of a small VAE on a CPU
    return lambda params: torch.optim.Adam(params, lr=lr, fused=all(p.is_floating_point() for p in params))


class Updater(ABC):
    """Updates parameters along their gradients."""

    def __init__(self) -> None:
        self.owned: list[Tensor] = []
        self._registered: dict[Tensor, None] = {}  # since the last update

    @property
    @abstractmethod
    def optimizer(self) -> torch.optim.Optimizer | None:
        """The torch optimizer; None before the first parameters are known."""

    @property
    def params(self) -> list[Tensor]:
        """The parameters that are updated."""
        return self.owned

    @property
    def trained(self) -> list[Tensor]:
        """The parameters to take gradients for: those that are updated, and all others that the pair registers."""
        return self.owned

    def own(self, params: list[Tensor]) -> None:
        """Add parameters that the pair has registered for the first time."""
        self.owned += params

    def note(self, registered: Iterable[Tensor]) -> None:
        """Note the parameters that the programs have registered in the run whose gradients come next."""
        self._registered.update(dict.fromkeys(registered))

    def reorder(self, params: Iterable[Tensor]) -> None:
        """Put the parameters into this order, in which the norm of the gradient is summed."""
        place = {p: i for i, p in enumerate(params)}
        self.owned.sort(key=lambda p: place.get(p, len(place)))

    def update(self, scaler: LossScaler, clip_norm: float | None) -> None:
        """Rescale the gradient to at most `clip_norm`, if given, update the parameters, and clear the gradients."""
        scaler.unscale(self.optimizer)
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.params, clip_norm)
        self._step(scaler)
        self.zero_grad()

    def zero_grad(self) -> None:
        """Clear the gradients."""
        self._registered.clear()
        for param in self.trained:
            param.grad = None

    def _step(self, scaler: LossScaler) -> None:
        scaler.step(self.optimizer)


class _GivenOptimizer(Updater):
    """A torch optimizer that the user has made: it updates the parameters that it was made for."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        super().__init__()
        self._optimizer = optimizer

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        return self._optimizer

    @property
    def params(self) -> list[Tensor]:
        return [p for group in self._optimizer.param_groups for p in group["params"]]

    @property
    def trained(self) -> list[Tensor]:
        return list(dict.fromkeys([*self.params, *self.owned]))


class _LazyOptimizer(Updater):
    """A torch optimizer that is made for the first parameters found, and gets parameters that are found later."""

    def __init__(self, factory: OptimizerFactory, lr: float) -> None:
        super().__init__()
        self._factory, self._lr = factory, lr
        self._optimizer: torch.optim.Optimizer | None = None
        self._num_added = 0  # how many of the owned parameters the optimizer has

    @property
    def optimizer(self) -> torch.optim.Optimizer | None:
        new = self.owned[self._num_added :]
        if not new:
            return self._optimizer
        self._num_added = len(self.owned)
        num_groups = 0 if self._optimizer is None else len(self._optimizer.param_groups)
        if self._optimizer is None:
            self._optimizer = self._factory(new)
        else:  # a branch of the pair that ran for the first time
            self._optimizer.add_param_group({"params": new})
        for group in self._optimizer.param_groups[num_groups:]:
            group["lr"] = group["lr"] * self._lr
        return self._optimizer

    def note(self, registered: Iterable[Tensor]) -> None:
        """Note the parameters that the programs have registered in the run whose gradients come next."""
        self._registered.update(dict.fromkeys(registered))

    def reorder(self, params: Iterable[Tensor]) -> None:
        if self._optimizer is None:
            super().reorder(params)


class _PyroUpdater(Updater):
    """An optimizer of Pyro, which updates what the programs register in a step."""

    def __init__(self, optim: PyroOptim) -> None:
        super().__init__()
        self._merged = MergedOptimizer(optim)

    @property
    def optimizer(self) -> MergedOptimizer | None:
        self._merged.add(self.owned)
        return self._merged if self.owned else None

    def _step(self, scaler: LossScaler) -> None:
        self._merged.update([p for p in self.owned if p in self._registered])


def updater_for(optim: torch.optim.Optimizer | PyroOptim | OptimizerFactory, lr: float = 1.0) -> Updater:
    """An updater that uses `optim`; `lr` is a factor on the learning rate of an optimizer that is made here."""
    if isinstance(optim, torch.optim.Optimizer):
        return _GivenOptimizer(optim)
    if isinstance(optim, PyroOptim):
        return _PyroUpdater(optim)
    return _LazyOptimizer(optim, lr)
