"""The phases of a loss: a `PhasedELBO` has its own, any other loss is one phase that owns every parameter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyro.infer
from torch import Tensor, nn

from pyro_vae.elbo.adversarial.phases import Phase, PhasedELBO
from pyro_vae.pair.protocol import Program
from pyro_vae.training.parameters import ParameterRegistry

__all__ = ["Phases", "loss_of", "loss_phases"]


_NO_PARAMETERS = (
    "the loss depends on no parameter that the optimizer holds: register networks with pyro.module(name, net) and "
    "single parameters with pyro.param(name, value) inside the model or the guide"
)
_NO_OWN_PARAMETERS = (
    "the loss of the phase {!r} depends on no parameter that it owns ({}): register the networks of the model and of "
    "the guide with pyro.module, and make samples of the latents and means of the observations differentiable"
)
EVERYTHING = ("",)  # a prefix of every parameter's name
# they compute what the classes above them do, by torch.jit: the steps here have a compiler of their own
_TRACED = (
    pyro.infer.JitTrace_ELBO,
    pyro.infer.JitTraceMeanField_ELBO,
    pyro.infer.JitTraceEnum_ELBO,
    pyro.infer.JitTraceGraph_ELBO,
)


@dataclass(frozen=True)
class BoundPhase:
    """A phase bound to one pair.

    Attributes:
        phase: Its name, the parameters that it owns, the number of its steps.
        loss: `(*args, **kwargs) -> tensor`, to be differentiated unless it `makes_gradients`.
        makes_gradients: Whether `loss` computes gradients itself, adds them to the parameters' `.grad`, and returns
            numbers.
        value: `(*args, **kwargs) -> loss`, without a gradient.
        label: What warnings call its steps.
        no_parameters: The error message if its loss depends on no parameter that it owns.
    """

    phase: Phase
    loss: Callable[..., Any]
    value: Callable[..., Any]
    label: str
    no_parameters: str
    makes_gradients: bool = False


@dataclass(frozen=True)
class Phases:
    """The phases of one step, in their order.

    Attributes:
        phases: The phases in their order; the loss of the last one is the loss of the step.
        objective: The objective that they belong to.
        critics: Networks of the objective, which no program registers.
        on_step: Called with the model's parameters by name after each step.
        on_prepare: Called likewise once the parameters are known, before the first step.
    """

    phases: list[BoundPhase]
    objective: Any
    critics: Mapping[str, nn.Module]
    on_step: Callable[[Mapping[str, Tensor]], None]
    on_prepare: Callable[[Mapping[str, Tensor]], None]


def loss_phases(loss: Any, model: Program, guide: Program, registry: ParameterRegistry) -> Phases:
    """The phases of a loss on a pair, whose parameters are noted in `registry`."""
    if isinstance(loss, PhasedELBO):
        # watched once, so that an objective finds the same two functions again at the next step
        pair = registry.watch("model", model), registry.watch("guide", guide)
        phases = [_bind_phase(phase, *pair) for phase in loss.phases]
        return Phases(phases, loss, loss.critics, loss.on_step, loss.on_prepare)
    return Phases([_single_phase(loss, model, guide)], loss, {}, _ignore, _ignore)


def _bind_phase(phase: Phase, model: Program, guide: Program) -> BoundPhase:
    loss = _bind(phase.loss, model, guide)
    missing = _NO_OWN_PARAMETERS.format(phase.name, ", ".join(phase.owns))
    return BoundPhase(phase, loss, loss, f"steps of the phase {phase.name!r}", missing)


def _single_phase(loss: Any, model: Program, guide: Program) -> BoundPhase:
    # Pyro's own RenyiELBO and TraceGraph_ELBO have no loss that can be differentiated
    function = _method(loss, "differentiable_loss") if isinstance(loss, pyro.infer.ELBO) else loss
    return BoundPhase(
        Phase("loss", loss, EVERYTHING),
        _bind(_method(loss, "loss_and_grads") if function is None else function, model, guide),
        _bind(loss_of(loss), model, guide),
        "steps",
        _NO_PARAMETERS,
        makes_gradients=function is None,
    )


def loss_of(objective: Any) -> Callable[..., Any]:
    """`(model, guide, *args, **kwargs) -> loss` of an objective."""
    bound: Any = objective
    function: Callable[..., Any] = bound.loss if isinstance(objective, pyro.infer.ELBO) else objective
    return function


def _method(elbo: pyro.infer.ELBO, name: str) -> Any:
    """A method of an objective, without the tracing of Pyro's `Jit...` classes; None if it has none of this name."""
    owners = [kind for kind in type(elbo).__mro__ if name in vars(kind)]
    if owners and owners[0] in _TRACED:
        return vars(owners[1])[name].__get__(elbo) if len(owners) > 1 else None
    return getattr(elbo, name, None)


def _ignore(params: Mapping[str, Tensor]) -> None:
    """The hooks of a loss that is not a `PhasedELBO`."""


def _bind(function: Callable[..., Any], model: Program, guide: Program) -> Callable[..., Any]:
    return lambda *args, **kwargs: function(model, guide, *args, **kwargs)
