"""The gradient of one phase of an objective, and the step along it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae.compilation.effects import modules_called
from pyro_vae.compilation.gradients import CompiledGradients, Recording
from pyro_vae.compilation.mode import Compile
from pyro_vae.training.optimizers import Updater
from pyro_vae.training.parameters import ParameterRegistry
from pyro_vae.training.phases import BoundPhase, Phases
from pyro_vae.training.scaling import LossScaler

__all__ = ["OwnGradients", "PhaseStepper"]


class PhaseStepper:
    """One phase on one pair: takes the gradient of its loss and updates its own parameters.

    Gradients are taken with respect to the phase's own parameters only, and never added to those of another phase.

    Args:
        bound: The phase.
        phases: All phases of the objective.
        registry: The registry of the pair's parameters.
        updater: The updater of the phase's parameters.
        scaler: The scaler of its loss.
        networks: Makes a context for the precision of the networks.
    """

    def __init__(
        self,
        bound: BoundPhase,
        phases: Phases,
        registry: ParameterRegistry,
        updater: Updater,
        scaler: LossScaler,
        networks: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self.name, self.steps = bound.phase.name, bound.phase.steps
        self.updater = updater
        self.compiled: CompiledGradients | None = None
        self.is_verified = False  # whether its loss is known to depend on parameters that it owns
        self._bound, self._phases = bound, phases
        self._registry, self._scaler, self._networks = registry, scaler, networks
        self._modules: list[nn.Module] = []
        self._owned: set[Tensor] = set()

    def gradients(self, args: tuple[Any, ...], kwargs: dict[str, Any], scale: float, compile: Compile) -> Any:
        """Add the gradient of `scale * loss` to the parameters' `.grad`; returns the loss.

        `compile`: use a compiled graph, which is made after the loss has run eagerly once; "auto": after 1000 times.

        Raises:
            ValueError: If the loss depends on no parameter of the phase, or on a network whose name Pyro's store has
                for another one.
        """
        if compile and self.compiled is not None:
            self.compiled.asked = compile
            self.own()
            owned = self.updater.owned
            loss = self.compiled.call(owned, args, kwargs, self._scaler.factor(scale, owned))
            if loss is not None:
                self.updater.note(self.compiled.registered)
                return loss
        self._registry.latest.clear()
        with self._registry, self._noting_modules(bool(compile) and self.compiled is None):
            loss = self._forward(args, kwargs)
        self._register_critics()
        self.own()
        self.updater.note(self._registry.latest)
        loss = self._backward(loss, scale)
        if compile and self.compiled is None:
            self.compiled = self._compiled_gradients()
        return loss

    def loss(self, *args: Any, **kwargs: Any) -> Any:
        """The loss of the phase on a batch."""
        with self._networks():
            return self._bound.loss(*args, **kwargs)

    def prepare(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Evaluate the loss once, to find the parameters and the modules that it uses."""
        with self._registry, self._noting_modules(True):
            self._evaluate(args, kwargs)
        self._register_critics()

    def own(self) -> None:
        """Add this phase's parameters that the registry has noted since the last call."""
        names = self._registry.names
        if len(self._owned) == len(names):
            return
        may_touch, roles = self._bound.phase.may_touch, self._registry.roles
        new = [p for p, name in names.items() if p not in self._owned and may_touch(name, roles(p))]
        if new:
            self._owned.update(new)
            self.updater.own(new)

    def record(self, args: tuple[Any, ...]) -> Recording:
        """The graph of the loss and its gradients, not compiled. Call `prepare` first."""
        self.own()
        return self._compiled_gradients().record(self.updater.owned, args, {})

    def load_compiled(self, state: dict[str, Any]) -> None:
        """Restore a `CompiledGradients.state()`; graphs are compiled when a step needs them. Call `prepare` first."""
        self.compiled = self._compiled_gradients(state)

    def _evaluate(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.loss(*args, **kwargs)

    def _forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self.loss(*args, **kwargs)

    def _backward(self, loss: Any, scale: float) -> Any:
        """Add the gradient of `scale * loss` to the parameters' `.grad`; returns the loss without a gradient."""
        if not getattr(loss, "requires_grad", False):
            if not self.is_verified and not _is_empty(loss):
                raise ValueError(self._bound.no_parameters)
            return torch.as_tensor(loss)
        factor = self._scaler.factor(scale, self.updater.owned)
        scaled = loss if isinstance(factor, float) and factor == 1.0 else loss * factor
        inputs = [p for p in self.updater.trained if p.requires_grad]
        inputs += [] if self.is_verified else self._shadowed().values()
        if inputs:
            scaled.backward(inputs=inputs)
        self._check()
        return loss.detach()

    def _check(self) -> None:
        """Refuse a loss that trains nothing, or not the network that it depends on; checked until it passes once."""
        if self.is_verified:
            return
        shadowed = {name: tensor for name, tensor in self._shadowed().items() if tensor.grad is not None}
        for tensor in shadowed.values():
            tensor.grad = None
        if shadowed:
            raise ValueError(
                f"Pyro's parameter store holds other tensors under the names {', '.join(shadowed)}: they would be "
                "trained, and the network that the loss depends on would not. Call pyro.clear_param_store() before "
                "building a pair, or give each network a name of its own in pyro.module"
            )
        if all(p.grad is None for p in self.updater.params):
            raise ValueError(self._bound.no_parameters)
        self.is_verified = True

    def _shadowed(self) -> dict[str, Tensor]:
        """Leaves that are not trained, because Pyro's store has other tensors under their names."""
        trained = set(self.updater.trained)
        return {name: tensor for name, tensor in self._registry.shadowed_leaves() if tensor not in trained}

    def _register_critics(self) -> None:
        for critic, net in self._phases.critics.items():
            self._registry.add((f"critic/{critic}.{name}", param) for name, param in net.named_parameters())

    @contextmanager
    def _noting_modules(self, enabled: bool) -> Iterator[None]:
        """A context in which the modules that are called are noted, if `enabled`."""
        if not enabled:
            yield
            return
        with modules_called() as modules:
            yield
        self._modules = modules

    def _compiled_gradients(self, state: dict[str, Any] | None = None) -> CompiledGradients:
        bound = self._bound
        return CompiledGradients(
            self.loss,
            self._phases.objective,
            self._modules,
            state,
            bound.label,
            makes_gradients=bound.makes_gradients,
        )


class OwnGradients(PhaseStepper):
    """A phase whose loss computes its gradients itself and adds them to the parameters' `.grad`."""

    def _evaluate(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        with torch.no_grad(), self._networks():
            self._bound.value(*args, **kwargs)

    def _forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._before = {p: p.grad for p in self.updater.trained if p.grad is not None}
        self.updater.zero_grad()
        return self.loss(*args, **kwargs)

    def _backward(self, loss: Any, scale: float) -> Any:
        if not _is_empty(loss):
            self._check()
        for p in self.updater.trained:
            parts = [g for g in (None if p.grad is None else p.grad * scale, self._before.get(p)) if g is not None]
            p.grad = sum(parts[1:], start=parts[0]) if parts else None
        # ReweightedWakeSleep has one loss for the model and one for the guide
        return tuple(map(torch.as_tensor, loss)) if isinstance(loss, tuple) else torch.as_tensor(loss)


def _is_empty(loss: Any) -> bool:
    """Whether a loss is that of a batch without a single site, which trains nothing where others do."""
    return not isinstance(loss, tuple) and bool(torch.as_tensor(loss) == 0)
