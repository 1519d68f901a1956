"""Stochastic variational inference with the interface of `pyro.infer.SVI`, fused optimizers and asynchronous steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import pyro.infer
import torch
from pyro.optim import PyroOptim
from torch import Tensor

from pyro_vae.compilation.gradients import Recording
from pyro_vae.compilation.mode import Compile
from pyro_vae.compilation.precision import Precision, networks_in, precision_dtype
from pyro_vae.distributed.ranks import Ranks
from pyro_vae.elbo import MeanField, PhasedELBO
from pyro_vae.pair.networks import modules_of
from pyro_vae.pair.protocol import Program
from pyro_vae.pair.rows import rows_named
from pyro_vae.pair.running import Running
from pyro_vae.pair.untouched import kept_buffers
from pyro_vae.support.arguments import flag, function, real
from pyro_vae.training.averages import RunningAverages
from pyro_vae.training.guards import check_grad_enabled
from pyro_vae.training.minibatches import check_autoguide
from pyro_vae.training.optimizers import OptimizerFactory, fused_adam, updater_for
from pyro_vae.training.parameters import ParameterRegistry
from pyro_vae.training.phase_stepper import OwnGradients, PhaseStepper
from pyro_vae.training.phases import loss_of, loss_phases
from pyro_vae.training.replicas import Replicas
from pyro_vae.training.scaling import LossScaler
from pyro_vae.training.stepper import Stepper
from pyro_vae.training.what_is_compiled import CompiledReport, compiled_report

__all__ = ["SVI", "Compilation", "fused_adam"]


@dataclass(frozen=True)
class Compilation:
    """Whether the steps of an `SVI` run compiled.

    Attributes:
        graphs: The number of compiled graphs: one per shape of batch that was seen often enough.
        reason: Why there are none; "" if there are some. For an objective made of phases, it names the phases that run
            eagerly, even if others are compiled.

    >>> Compilation(0, "no step was made yet")
    not compiled: no step was made yet
    """

    graphs: int
    reason: str = ""

    def __bool__(self) -> bool:
        return self.graphs > 0

    def __repr__(self) -> str:
        state = f"compiled, {self.graphs} graph{'s' * (self.graphs != 1)}" if self else "not compiled"
        return state + f": {self.reason}" * bool(self.reason)


class SVI:
    """Gradient steps on the parameters of any model/guide pair; a drop-in for `pyro.infer.SVI`.

    Two things differ: `step` returns the loss as a 0-d tensor on the device (`float(loss)` waits for it), and one
    optimizer updates all parameters. An objective made of phases (`pv.elbo.PhasedELBO`) has one optimizer per phase,
    all made by `optim`, and each phase is compiled separately.

    Args:
        model, guide: The pair: two callables with the same latent sites.
        optim: A `torch.optim.Optimizer`, a function `params -> Optimizer`, or a `pyro.optim.PyroOptim`. Default: fused
            Adam at rate 1e-3.
        loss: A `pyro.infer.ELBO` (of this library, of Pyro or your own), or a function `(model, guide, *args, **kwargs)
            -> tensor`. Summed over the data, as in Pyro. The attribute `objective` is what was given here; `loss`,
            `loss_and_grads` and `optim` are those of `pyro.infer.SVI`.
        clip_norm: Rescale the gradient to at most this norm, if given.
        compile: Record loss and gradients of the pair and compile the graph, which takes 10 to 30 seconds, or some
            three where an earlier process has compiled the same. True: after the first step; a loss that cannot be
            compiled then runs eagerly, after a warning with the reason. "auto": after 1000 steps with arguments of the
            same shape, and without a warning. `.compile` may be set between steps, and `.compilation` says whether
            steps run compiled. See `pyro_vae.compilation` for what is recorded and how it is checked.
        precision: "float32", "bfloat16" or "float16": what the networks (every `nn.Module`) compute in. Everything
            outside them, such as log-probabilities and their sums, stays in float32. "float16" scales the loss.

    Raises:
        TypeError, ValueError: For an argument of another type or out of its range, or combinations that do not work.

    Example:
        >>> import pyro, torch, pyro.distributions as dist
        >>> from pyro_vae.elbo import MeanField
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     loc = pyro.param("loc", torch.zeros(len(x)))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(loc, 0.5**0.5))
        >>> svi = SVI(model, guide, lambda p: torch.optim.SGD(p, lr=0.5), MeanField())
        >>> for _ in range(30):
        ...     loss = svi.step(torch.tensor([2.0, -4.0]))
    """

    def __init__(
        self,
        model: Program,
        guide: Program,
        optim: torch.optim.Optimizer | OptimizerFactory | PyroOptim | None = None,
        loss: pyro.infer.ELBO | Callable[..., Any] | None = None,
        *,
        clip_norm: float | None = None,
        compile: Compile = "auto",
        precision: Precision = "float32",
    ) -> None:
        self.model, self.guide = function("model", model), function("guide", guide)
        self.clip_norm, self.compile = clip_norm, flag("compile", compile, "auto")
        self.objective: Any = MeanField() if loss is None else loss
        self.optim = fused_adam() if optim is None else optim
        self.pyro_optim = optim if isinstance(optim, PyroOptim) else None
        self._dtype = precision_dtype(precision)
        _check_arguments(optim, self.objective, clip_norm, self._dtype)
        self._stepper = self._make_stepper(self.optim)
        self._is_checked = False

    def _make_stepper(self, optim: Any) -> Stepper:
        registry, scaler = ParameterRegistry(), LossScaler(self._dtype)
        phases = loss_phases(self.objective, self.model, self.guide, registry)
        steppers = []
        for bound in phases.phases:
            if bound.makes_gradients and self._dtype is not None:
                raise ValueError(f"{type(self.objective).__name__} has no differentiable_loss: use precision='float32'")
            kind = OwnGradients if bound.makes_gradients else PhaseStepper
            updater = updater_for(optim, bound.phase.lr)
            steppers.append(kind(bound, phases, registry, updater, scaler, self._networks))
        return Stepper(phases, steppers, registry, scaler, self.clip_norm)

    def _networks(self) -> AbstractContextManager[None]:
        return networks_in(self._dtype, self.model, self.guide)

    def loss(self, *args: Any, **kwargs: Any) -> Any:
        """The loss of `(model, guide, *args, **kwargs)`, as the objective gives it."""
        return loss_of(self.objective)(*args, **kwargs)

    def loss_and_grads(self, *args: Any, **kwargs: Any) -> Any:
        """The loss of `(model, guide, *args, **kwargs)`; adds its gradient to the parameters' `.grad`."""
        objective = self.objective
        if isinstance(objective, pyro.infer.ELBO):
            return getattr(objective, "loss_and_grads")(*args, **kwargs)  # noqa: B009 - which its base class lacks
        loss = objective(*args, **kwargs)
        if getattr(loss, "requires_grad", False):
            loss.backward(retain_graph=True)
        return loss

    @property
    def params(self) -> dict[str, Tensor]:
        """The unconstrained parameters found so far, by their names in Pyro's parameter store."""
        return self._stepper.registry.by_name()

    @property
    def optimizer(self) -> torch.optim.Optimizer | None:
        """The optimizer of the last phase (most objectives have only one phase); None before it is made."""
        return self._stepper.last.updater.optimizer

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """The optimizers made so far, one per phase of the objective, in the order of the phases."""
        return self._stepper.optimizers

    @property
    def lr(self) -> float:
        """The current learning rate, of the first parameter if it has one of its own; NaN before it is known."""
        return float(self.optimizer.param_groups[0].get("lr", math.nan)) if self.optimizer else math.nan

    @property
    def compilation(self) -> Compilation:
        """Whether steps run compiled, and if not, why not."""
        compiled = {s.name: s.compiled for s in self._stepper.steppers if s.compiled is not None}
        if not compiled:
            return Compilation(0, "no step was made yet" if self.compile else "compile=False")
        graphs = sum(c.num_graphs for c in compiled.values())
        reasons = [f"{c.label} run eagerly: {c.reason}" for c in compiled.values() if c.reason is not None]
        first = "1000 steps with arguments of one shape run" if self.compile == "auto" else "step runs"
        waiting = "" if graphs else f"nothing was recorded yet: the first {first} eagerly"
        return Compilation(graphs, "; ".join(reasons) or waiting)

    def compiled_report(self) -> CompiledReport:
        """Which kinds of arguments run compiled, how long their graphs took to make, and why others run eagerly."""
        return compiled_report([s.compiled for s in self._stepper.steppers if s.compiled is not None])

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """One gradient step; returns the loss before it (0-d tensor, nats summed over the batch)."""
        loss = self.gradients(args, kwargs)
        self.update()
        return loss

    def gradients(self, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None, *, scale: float = 1.0) -> Any:
        """Add the gradient of `scale * loss(*args, **kwargs)` to the parameters' `.grad`; return the loss.

        For an objective made of phases, all phases except the last take their steps here. The loss and the gradient are
        those of the last phase.

        Raises:
            ValueError: If the loss depends on no parameter, on none that the optimizer updates, or on a network whose
                name Pyro's parameter store has for another one; if an autoguide has parameters for a part of a
                subsampled plate only.
            RuntimeError: Under `torch.no_grad` or `torch.inference_mode`.
        """
        check_grad_enabled("a gradient step")
        with Running(), rows_named(self.model, self.guide, args, kwargs or {}), self._stepper.sharing():
            loss = self._stepper.gradients(args, kwargs or {}, scale, self.compile)
        if not self._is_checked:  # an autoguide is set up at its first run
            check_autoguide(self.guide)
            self._is_checked = True
        return loss

    def update(self) -> None:
        """Update the parameters with the gradients of `gradients`, then clear the gradients."""
        self._stepper.update()

    def zero_grad(self) -> None:
        """Clear the gradients."""
        self._stepper.zero_grad()

    def evaluate_loss(self, *args: Any, **kwargs: Any) -> Any:
        """The loss without a gradient (0-d tensor, nats summed over the batch)."""
        with torch.no_grad(), Running(), self._networks():
            return torch.as_tensor(self.loss(self.model, self.guide, *args, **kwargs))

    def prepare(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Evaluate the loss without a step, so that a state can be loaded; returns the parameters by name.

        This makes the critics of an objective made of phases. Optimizers are made at the first step or by `adopt`.
        Running averages of the networks stay as they were.
        """
        critics = self.objective.critics.values() if isinstance(self.objective, PhasedELBO) else ()
        with Running(), kept_buffers(self.model, self.guide, networks=critics):
            self._stepper.prepare(args, kwargs)
        return self.params

    def record(self, *args: Any) -> Recording:
        """The graph of the loss of these arguments and its gradients, not compiled. Call `prepare` first.

        Raises:
            ValueError: For an objective with more than one phase or step, or with gradients of its own.
            Exception: Whatever the pair or the recorder raise.
        """
        with Running(), rows_named(self.model, self.guide, args, {}):
            return self._stepper.record(args)

    def adopt(self, params: dict[str, Tensor]) -> None:
        """Pass these parameters to the optimizer, in this order if it was not made yet."""
        self._stepper.adopt(params)

    def join(self, ranks: Ranks, args: tuple[Any, ...]) -> None:
        """Train together with the SVIs of other processes; all begin with the weights of rank 0.

        Each process then takes the gradients of its shard of a batch, scaled so that their sum is the gradient of the
        whole batch, and calls `reduce` before `update`. The pair is run on `args`, a few data, to find its parameters.
        """
        if isinstance(self.objective, PhasedELBO):
            self.prepare(*args)  # which makes the critics
        critics = self.objective.critics.values() if isinstance(self.objective, PhasedELBO) else ()
        averages = RunningAverages([*modules_of(self.model, self.guide).values(), *critics], ranks)
        with averages.measuring(len(args[0])):
            params = self.prepare(*args)
        self._stepper.join(Replicas(ranks, params.values(), averages))

    def reduce(self, loss: Tensor, *, weight: float | None = None, rows: float = 1.0) -> Tensor:
        """Sum loss and gradients over the joined processes, and merge running averages; returns the summed loss.

        Args:
            loss: This process's part of the loss.
            weight: The share of this process in the batch; all shares sum to 1. Default: equal shares.
            rows: How many data of it pass through the networks at a time, for variances of batch normalization.
        """
        return self._stepper.reduce(loss, weight, rows)

    @property
    def scaler(self) -> LossScaler:
        """The scaler of the loss for "float16"."""
        return self._stepper.scaler

    def compiled_state(self) -> dict[str, Any] | None:
        """What was compiled of each phase, for `load_compiled`; None if nothing was compiled."""
        return self._stepper.compiled_state()

    def load_compiled(self, state: dict[str, Any] | None) -> None:
        """Restore a `compiled_state`; graphs are compiled when a step needs them. Call `prepare` first."""
        if state is not None:
            self._stepper.load_compiled(state)


def _check_arguments(optim: Any, loss: Any, clip_norm: float | None, dtype: torch.dtype | None) -> None:
    real("clip_norm", clip_norm, above=0, none=True)
    if optim is not None and not callable(optim) and not isinstance(optim, torch.optim.Optimizer):
        raise TypeError(
            f"optim must be a torch.optim.Optimizer, a function params -> Optimizer or a PyroOptim, got {optim!r}"
        )
    if not isinstance(loss, pyro.infer.ELBO) and not callable(loss):
        raise TypeError(f"loss must be a pyro.infer.ELBO or a function, got {loss!r}")
    if dtype == torch.float16 and isinstance(optim, PyroOptim):
        raise ValueError("precision='float16' scales the loss, which a PyroOptim cannot undo: use a torch optimizer")
    wrapped = getattr(loss, "elbo", None)
    if isinstance(wrapped, PhasedELBO):
        raise ValueError(
            f"{type(wrapped).__name__} consists of phases with weights of their own: leave out kl_weight, and pass it "
            f"without {type(loss).__name__} around it"
        )
    if isinstance(loss, PhasedELBO):
        if isinstance(optim, torch.optim.Optimizer | PyroOptim):
            raise TypeError(
                f"{type(loss).__name__} has an optimizer for each phase: optim must be a function params -> Optimizer "
                "that makes them"
            )
        if dtype == torch.float16:
            raise ValueError(
                f"precision='float16' scales the loss, which {type(loss).__name__} does not support: use 'bfloat16'"
            )
