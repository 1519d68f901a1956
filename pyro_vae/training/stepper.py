"""Gradient steps of an objective, phase by phase."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from pyro_vae.compilation.gradients import Recording
from pyro_vae.compilation.mode import Compile, recording
from pyro_vae.support.random import fork_rng
from pyro_vae.training.parameters import ParameterRegistry
from pyro_vae.training.phase_stepper import OwnGradients, PhaseStepper
from pyro_vae.training.phases import Phases
from pyro_vae.training.replicas import Replicas
from pyro_vae.training.scaling import LossScaler

__all__ = ["Stepper"]


class Stepper:
    """The steps of an objective on one pair.

    `gradients` completes the steps of all phases except the last one. The gradients of the last phase stay in `.grad`
    until `update`.

    Args:
        phases: The phases, with the hooks that are called after a step.
        steppers: One stepper per phase.
        registry: The parameters of the pair and of the objective's critics.
        scaler: The scaler of the losses.
        clip_norm: Rescale the gradient of each phase to at most this norm, if given.
    """

    def __init__(
        self,
        phases: Phases,
        steppers: list[PhaseStepper],
        registry: ParameterRegistry,
        scaler: LossScaler,
        clip_norm: float | None,
    ) -> None:
        self.steppers, self.last = steppers, steppers[-1]
        self.registry, self.scaler = registry, scaler
        self._phases, self._clip_norm = phases, clip_norm
        self._replicas = Replicas()

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """The optimizers made so far, in the order of the phases."""
        return [s.updater.optimizer for s in self.steppers if s.updater.optimizer is not None]

    def gradients(self, args: tuple[Any, ...], kwargs: dict[str, Any], scale: float, compile: Compile) -> Any:
        """Run the phases; the gradients of the last one stay in `.grad`.

        Returns the loss of the last phase, or NaN if that of an earlier one is not finite. `compile`: compile each
        phase after it has run once; "auto": after 1000 times.

        Raises:
            ValueError: If the loss of a phase depends on none of its parameters.
        """
        finite = None
        for stepper in self.steppers[:-1]:
            for _ in range(stepper.steps):
                finite = self._full_step(stepper, args, kwargs, scale, compile, finite)
        for _ in range(self.last.steps - 1):
            finite = self._full_step(self.last, args, kwargs, scale, compile, finite)
        loss = self.last.gradients(args, kwargs, scale, compile)
        return loss if finite is None else torch.where(finite, loss, torch.full_like(loss, torch.nan))

    def reduce(self, loss: Tensor, weight: float | None, rows: float) -> Tensor:
        """Sum the loss and the gradients of the last phase over the processes of the run; merge running averages."""
        loss = self._replicas.reduce(self.last.updater.params, loss)
        self._replicas.synchronize(self.registry.names, weight, rows)
        return loss

    def sharing(self) -> AbstractContextManager[None]:
        """A context for the gradients of a step on this process's share of a batch."""
        return self._replicas.sharing()

    def update(self) -> None:
        """Update the last phase's parameters, and clear their gradients."""
        self.last.updater.update(self.scaler, self._clip_norm)
        self._phases.on_step(self.registry.registered_by("model"))

    def zero_grad(self) -> None:
        """Clear all gradients, also those of a step that failed."""
        self._replicas.forget()
        for stepper in self.steppers:
            stepper.updater.zero_grad()
        for param in self.registry.names:
            param.grad = None

    def prepare(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Find the parameters and make the critics as the first step would, without training."""
        with fork_rng(), recording():
            for stepper in self.steppers:
                stepper.prepare(args, kwargs)
                stepper.own()
        self._phases.on_prepare(self.registry.registered_by("model"))

    def adopt(self, params: Mapping[str, Tensor]) -> None:
        """Pass these parameters to the optimizers, in this order if no optimizer was made yet."""
        self.registry.reorder(params.items())
        for stepper in self.steppers:
            stepper.own()
            stepper.updater.reorder(params.values())
            stepper.is_verified = True

    def record(self, args: tuple[Any, ...]) -> Recording:
        """The graph of the loss and its gradients, not compiled. Call `prepare` first.

        Raises:
            ValueError: For an objective with more than one phase or step, or with gradients of its own.
        """
        if len(self.steppers) > 1 or self.last.steps > 1 or isinstance(self.last, OwnGradients):
            raise ValueError(f"a step of {type(self._phases.objective).__name__} is more than one gradient of one loss")
        return self.last.record(args)

    def join(self, replicas: Replicas) -> None:
        """Take each step together with other processes from now on."""
        self._replicas = replicas

    def compiled_state(self) -> dict[str, Any] | None:
        """The `CompiledGradients.state()` of each phase, ready for JSON; None if nothing was compiled."""
        return {s.name: s.compiled.state() for s in self.steppers if s.compiled is not None} or None

    def load_compiled(self, state: Mapping[str, Any]) -> None:
        """Restore a `compiled_state`; graphs are compiled when a step needs them. Call `prepare` first."""
        for stepper in self.steppers:
            if stepper.name in state:
                stepper.load_compiled(state[stepper.name])

    def _full_step(
        self,
        stepper: PhaseStepper,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        scale: float,
        compile: Compile,
        finite: Tensor | None,
    ) -> Tensor:
        loss = stepper.gradients(args, kwargs, scale, compile)
        loss = self._replicas.reduce(stepper.updater.params, loss)
        stepper.updater.update(self.scaler, self._clip_norm)
        return loss.isfinite() if finite is None else finite & loss.isfinite()
