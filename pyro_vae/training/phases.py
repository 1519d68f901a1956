"""Steps of an objective made of phases: whose parameters are whose, and one optimizer for each phase."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_vae.compilation.gradients import CompiledGradients, modules_called
from pyro_vae.compilation.mode import recording
from pyro_vae.compilation.precision import networks_in
from pyro_vae.distributed.ranks import Ranks
from pyro_vae.elbo.adversarial.phases import Phase, PhasedELBO
from pyro_vae.support.random import fork_rng

__all__ = ["Parameters", "PhasedSteps"]

Program = Callable[..., Any]


class Parameters(Messenger):
    """Notes the unconstrained parameters that a program registers, by name, and what Pyro did not take for one."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, Tensor] = {}
        self.passed_over: dict[str, Tensor] = {}

    def _pyro_post_param(self, msg: Any) -> None:
        found = self.found[msg["name"]] = msg["value"].unconstrained()
        for offered in msg["args"][1:]:  # nothing, a tensor, or a function that makes one
            if isinstance(offered, Tensor) and offered is not found:
                self.passed_over[msg["name"]] = offered


class PhasedSteps:
    """The phases of `objective` on one pair.

    Gradients are taken with respect to a phase's own parameters alone and never added to another's. All phases but the
    last are finished within `gradients`; what the last one found waits in `.grad` for `update`.

    Args:
        objective: What is minimised.
        model, guide: The pair.
        factory: Makes the optimizer of each phase from its parameters.
        clip_norm: Rescale the gradient of each phase to at most this norm, if given.
        dtype: Of the pair's networks, None for their own.
    """

    def __init__(
        self,
        objective: PhasedELBO,
        model: Program,
        guide: Program,
        factory: Callable[[list[Tensor]], torch.optim.Optimizer],
        clip_norm: float | None,
        dtype: torch.dtype | None,
    ) -> None:
        self.objective, self._pair = objective, (model, guide)
        self._factory, self._clip_norm, self._dtype = factory, clip_norm, dtype
        self._sides = {"model": Parameters(), "guide": Parameters()}
        # wrapped once, so that what an objective remembers of a pair fits at the next step
        self._model, self._guide = self._sides["model"](model), self._sides["guide"](guide)
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self._held: dict[str, dict[Tensor, str]] = {}  # by phase
        self.params: dict[Tensor, str] = {}
        self.ranks = Ranks()
        self._compiled: dict[str, CompiledGradients] = {}
        self._called: dict[str, list[torch.nn.Module]] = {}

    def gradients(self, args: tuple[Any, ...], kwargs: dict[str, Any], scale: float, compile: bool = False) -> Tensor:
        """Run the phases; the last one's gradients stay in `.grad`. Returns its loss, NaN if any of them is not finite.

        `compile`: compile each phase by itself after it has run once.

        Raises:
            ValueError: If a phase finds none of its parameters, or its loss depends on none.
        """
        *before, last = [phase for phase in self.objective.phases for _ in range(phase.steps)]
        finite = None
        for phase in before:
            loss = self.share(phase, self._backward(phase, args, kwargs, scale, compile))
            self._move(phase)
            finite = loss.isfinite() if finite is None else finite & loss.isfinite()
        loss = self._backward(last, args, kwargs, scale, compile)
        return loss if finite is None else torch.where(finite, loss, torch.full_like(loss, torch.nan))

    def share(self, phase: Phase, loss: Tensor) -> Tensor:
        """Sum a phase's loss and gradients over the processes of the run."""
        return self.ranks.sum_gradients(self._held.get(phase.name, {}), loss)

    def update(self) -> None:
        """Move the last phase's parameters along its gradients."""
        self._move(self.objective.phases[-1])
        self.objective.updated(self._sides["model"].found)

    def prepare(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Make critics and optimizers as the first step would, and train nothing."""
        with fork_rng(), recording():
            for phase in self.objective.phases:
                with modules_called() as called:
                    self._loss(phase, args, kwargs)
                self._called[phase.name] = called
                self._own(phase)
        self.objective.trained = dict(self._sides["model"].found)

    def compiled_state(self) -> dict[str, Any] | None:
        """What has been compiled of each phase; None if nothing."""
        return {name: compiled.state() for name, compiled in self._compiled.items()} or None

    def load_compiled(self, state: Mapping[str, Any]) -> None:
        """Compile what was compiled then, as soon as a step needs it. Call `prepare` first."""
        for phase in self.objective.phases:
            if phase.name in state:
                self._compiled[phase.name] = self._compiler(phase, self._called[phase.name], state[phase.name])

    def _compiler(
        self, phase: Phase, modules: list[torch.nn.Module], state: dict[str, Any] | None = None
    ) -> CompiledGradients:
        def loss(*args: Any, **kwargs: Any) -> Tensor:
            return self._loss(phase, args, kwargs)

        return CompiledGradients(loss, self.objective, modules, state, f"steps of the phase {phase.name!r}")

    def _loss(self, phase: Phase, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        with networks_in(self._dtype, *self._pair):
            return phase.loss(self._model, self._guide, *args, **kwargs)

    def _backward(
        self, phase: Phase, args: tuple[Any, ...], kwargs: dict[str, Any], scale: float, compile: bool
    ) -> Tensor:
        compiled = self._compiled.get(phase.name) if compile else None
        if compiled is not None:
            found = compiled.call(list(self._held[phase.name]), args, kwargs, scale)
            if found is not None:
                return found
        look = modules_called() if compile and compiled is None else nullcontext()
        with look as modules:
            loss = self._loss(phase, args, kwargs)
        if modules is not None:
            self._compiled[phase.name] = self._compiler(phase, modules)
        owned = self._own(phase)
        grads = torch.autograd.grad(loss * scale, owned, allow_unused=True) if loss.requires_grad and owned else ()
        if all(grad is None for grad in grads):
            raise ValueError(
                f"the loss of the phase {phase.name!r} depends on no parameter that it owns ({', '.join(phase.owns)}): "
                "register the networks of the model and of the guide with pyro.module, and see that draws of the "
                "latents and means of the observations can be differentiated"
            )
        for param, grad in zip(owned, grads, strict=True):
            param.grad = grad
        return loss.detach()

    def _own(self, phase: Phase) -> list[Tensor]:
        """A phase's trainable parameters among all seen so far, in its optimizer."""
        held = self._held.setdefault(phase.name, {})
        new = {}
        for name, param, sides in self._seen():
            self.params.setdefault(param, name)
            if param.requires_grad and param not in held and phase.may_touch(name, sides):
                new[param] = name
        if new:
            held.update(new)
            optimizer = self.optimizers.get(phase.name)
            if optimizer is None:
                optimizer = self.optimizers[phase.name] = self._factory(list(new))
                for group in optimizer.param_groups:
                    group["lr"] = group["lr"] * phase.lr
            else:  # a branch that ran for the first time
                lr = optimizer.param_groups[0]["lr"]
                optimizer.add_param_group({"params": list(new), "lr": lr})
        return list(held)

    def _seen(self) -> Iterator[tuple[str, Tensor, list[str]]]:
        found: dict[Tensor, tuple[str, list[str]]] = {}
        for side, parameters in self._sides.items():
            for name, param in parameters.found.items():
                found.setdefault(param, (name, []))[1].append(side)
        for param, (name, sides) in found.items():
            yield name, param, sides
        for critic, net in self.objective.critics.items():
            for name, param in net.named_parameters():
                yield f"critic/{critic}.{name}", param, []

    def _move(self, phase: Phase) -> None:
        held = self._held.get(phase.name, {})
        if self._clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(list(held), self._clip_norm)
        if phase.name in self.optimizers:
            self.optimizers[phase.name].step()
        for param in held:
            param.grad = None
