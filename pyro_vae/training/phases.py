"""A loss as phases: an objective made of several has its own, any other loss is one phase that owns every parameter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyro.infer
from torch import Tensor, nn

from pyro_vae.elbo.adversarial.phases import Phase, PhasedELBO
from pyro_vae.training.parameters import ParameterRegistry

__all__ = ["Phases", "loss_of", "loss_phases"]

Program = Callable[..., Any]

_NO_PARAMETERS = (
    "the loss depends on no parameter that the optimizer holds: register networks with pyro.module(name, net) and "
    "single parameters with pyro.param(name, value) inside the model or the guide"
)
_NO_OWN_PARAMETERS = (
    "the loss of the phase {!r} depends on no parameter that it owns ({}): register the networks of the model and of "
    "the guide with pyro.module, and see that draws of the latents and means of the observations can be differentiated"
)
EVERYTHING = ("",)  # how the name of any parameter begins


@dataclass(frozen=True)
class BoundPhase:
    """A phase on one pair.

    Attributes:
        phase: Its name, what it owns, how often it is run.
        loss: `(*args, **kwargs) -> tensor`, to be differentiated unless it `makes_gradients`.
        makes_gradients: Whether `loss` leaves gradients of its own making in the parameters' `.grad`, and returns
            numbers.
        value: `(*args, **kwargs) -> loss`, without a gradient.
        label: What a warning calls its steps.
        without_parameters: What to say if its loss depends on no parameter that it owns.
    """

    phase: Phase
    loss: Callable[..., Any]
    value: Callable[..., Any]
    label: str
    without_parameters: str
    makes_gradients: bool = False


@dataclass(frozen=True)
class Phases:
    """The phases of one step, in their order.

    Attributes:
        phases: Of these the last one's loss is the loss of the step.
        objective: What they belong to.
        critics: Networks of the objective, which no program registers.
        updated: Called with the model's parameters by name after each step.
        prepared: Likewise, once the parameters are known and nothing was trained.
    """

    phases: list[BoundPhase]
    objective: Any
    critics: Mapping[str, nn.Module]
    updated: Callable[[Mapping[str, Tensor]], None]
    prepared: Callable[[Mapping[str, Tensor]], None]


def loss_phases(loss: Any, model: Program, guide: Program, registry: ParameterRegistry) -> Phases:
    """The phases of a loss on a pair, whose parameters go to `registry`."""
    if isinstance(loss, PhasedELBO):
        # watched once, so that what an objective remembers of a pair fits at the next step
        pair = registry.watch("model", model), registry.watch("guide", guide)
        phases = [_bound(phase, *pair) for phase in loss.phases]
        return Phases(phases, loss, loss.critics, loss.updated, loss.prepared)
    return Phases([_whole(loss, model, guide)], loss, {}, _ignore, _ignore)


def _bound(phase: Phase, model: Program, guide: Program) -> BoundPhase:
    loss = _on_pair(phase.loss, model, guide)
    missing = _NO_OWN_PARAMETERS.format(phase.name, ", ".join(phase.owns))
    return BoundPhase(phase, loss, loss, f"steps of the phase {phase.name!r}", missing)


def _whole(loss: Any, model: Program, guide: Program) -> BoundPhase:
    # Pyro's own RenyiELBO and TraceGraph_ELBO have no loss that can be differentiated
    function = getattr(loss, "differentiable_loss", None) if isinstance(loss, pyro.infer.ELBO) else loss
    return BoundPhase(
        Phase("loss", loss, EVERYTHING),
        _on_pair(loss.loss_and_grads if function is None else function, model, guide),
        _on_pair(loss_of(loss), model, guide),
        "steps",
        _NO_PARAMETERS,
        makes_gradients=function is None,
    )


def loss_of(objective: Any) -> Callable[..., Any]:
    """`(model, guide, *args, **kwargs) -> loss` of an objective."""
    bound: Any = objective
    function: Callable[..., Any] = bound.loss if isinstance(objective, pyro.infer.ELBO) else objective
    return function


def _ignore(params: Mapping[str, Tensor]) -> None:
    """For a loss that takes no note of parameters."""


def _on_pair(function: Callable[..., Any], model: Program, guide: Program) -> Callable[..., Any]:
    return lambda *args, **kwargs: function(model, guide, *args, **kwargs)
