"""Steps of an objective made of phases: whose parameters are whose, and one optimizer for each phase."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_vae.elbo.adversarial.phases import Phase, PhasedELBO
from pyro_vae.elbo.tracing import fork_rng, recording
from pyro_vae.precision import networks_in

__all__ = ["PhasedSteps"]

Program = Callable[..., Any]


class _Parameters(Messenger):
    """Notes the unconstrained parameters that a program registers, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, Tensor] = {}

    def _pyro_post_param(self, msg: Any) -> None:
        self.found[msg["name"]] = msg["value"].unconstrained()


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
        self._sides = {"model": _Parameters(), "guide": _Parameters()}
        # wrapped once, so that what an objective remembers of a pair fits at the next step
        self._model, self._guide = self._sides["model"](model), self._sides["guide"](guide)
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self._held: dict[str, dict[Tensor, str]] = {}  # by phase
        self.params: dict[Tensor, str] = {}

    def gradients(self, args: tuple[Any, ...], kwargs: dict[str, Any], scale: float) -> Tensor:
        """Run the phases; the last one's gradients stay in `.grad`. Returns its loss, NaN if any of them is not finite.

        Raises:
            ValueError: If a phase finds none of its parameters, or its loss depends on none.
        """
        *before, last = [phase for phase in self.objective.phases for _ in range(phase.steps)]
        finite = None
        for phase in before:
            loss = self._backward(phase, args, kwargs, scale)
            self._move(phase)
            finite = loss.isfinite() if finite is None else finite & loss.isfinite()
        loss = self._backward(last, args, kwargs, scale)
        return loss if finite is None else torch.where(finite, loss, torch.full_like(loss, torch.nan))

    def update(self) -> None:
        """Move the last phase's parameters along its gradients."""
        self._move(self.objective.phases[-1])
        self.objective.updated(self._sides["model"].found)

    def prepare(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Make critics and optimizers as the first step would, and train nothing."""
        with fork_rng(), recording():
            for phase in self.objective.phases:
                self._loss(phase, args, kwargs)
                self._own(phase)
        self.objective.trained = dict(self._sides["model"].found)

    def _loss(self, phase: Phase, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        with networks_in(self._dtype, *self._pair):
            return phase.loss(self._model, self._guide, *args, **kwargs)

    def _backward(self, phase: Phase, args: tuple[Any, ...], kwargs: dict[str, Any], scale: float) -> Tensor:
        loss = self._loss(phase, args, kwargs)
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
