"""Stochastic variational inference: the interface of `pyro.infer.SVI` with fused optimizers and no waiting per step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any

import pyro.infer
import torch
from pyro.optim import PyroOptim
from torch import Tensor

from pyro_vae.compilation.gradients import CompiledGradients, modules_called
from pyro_vae.compilation.mode import recording
from pyro_vae.compilation.precision import Precision, networks_in, precision_dtype
from pyro_vae.distributed.ranks import Ranks
from pyro_vae.elbo.adversarial import PhasedELBO
from pyro_vae.support.random import fork_rng
from pyro_vae.training.phases import Parameters, PhasedSteps

__all__ = ["SVI", "fused_adam"]

_NO_PARAMETERS = (
    "the loss depends on no parameter that the optimizer holds: register networks with pyro.module(name, net) and "
    "single parameters with pyro.param(name, value) inside the model or the guide"
)

OptimizerFactory = Callable[[list[Tensor]], torch.optim.Optimizer]


def fused_adam(lr: float = 1e-3) -> OptimizerFactory:
    """A function that builds Adam in one kernel for all parameters."""
    # PyTorch's default for-each Adam costs more than the whole backward pass of a small VAE on a CPU
    return lambda params: torch.optim.Adam(params, lr=lr, fused=all(p.is_floating_point() for p in params))


class SVI:
    """Gradient steps on the parameters of any model/guide pair; a drop-in for `pyro.infer.SVI`.

    Differences: `step` returns the loss as a 0-d tensor on the device (`float(loss)` waits for it), and one optimizer
    holds all parameters. An objective made of phases (`pv.elbo.PhasedELBO`) has one optimizer for each phase, all made
    by `optim`, and compiles each phase by itself.

    Args:
        model, guide: The pair: two callables with the same latent sites.
        optim: A `torch.optim.Optimizer`, a function `params -> Optimizer`, or a `pyro.optim.PyroOptim`. Default: fused
            Adam at rate 1e-3.
        loss: A `pyro.infer.ELBO` (of this library, of Pyro or your own), or a function `(model, guide, *args, **kwargs)
            -> tensor`. Summed over the data, as in Pyro.
        clip_norm: Rescale the gradient to at most this norm, if given.
        compile: Record loss and gradients of the pair after the first step and compile the graph, which takes 10 to
            30 seconds; what cannot be compiled runs eagerly, after a warning with the reason. `.compile` may be set
            between steps. See `pyro_vae.compilation.gradients` for what is recorded and how it is checked.
        precision: "float32"; "bfloat16" or "float16" run the networks (whatever is an `nn.Module`) so, and everything
            outside them, log-probabilities and their sums above all, as before. "float16" scales the loss.

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
        model: Callable[..., Any],
        guide: Callable[..., Any],
        optim: torch.optim.Optimizer | OptimizerFactory | PyroOptim | None = None,
        loss: pyro.infer.ELBO | Callable[..., Any] | None = None,
        *,
        clip_norm: float | None = None,
        compile: bool = False,
        precision: Precision = "float32",
    ) -> None:
        if clip_norm is not None and not clip_norm > 0:
            raise ValueError(f"clip_norm must be positive, got {clip_norm}")
        if optim is not None and not callable(optim) and not isinstance(optim, torch.optim.Optimizer):
            raise TypeError(
                f"optim must be a torch.optim.Optimizer, a function params -> Optimizer or a PyroOptim, got {optim!r}"
            )
        if loss is None:
            from pyro_vae.elbo import MeanField

            loss = MeanField()
        if not isinstance(loss, pyro.infer.ELBO) and not callable(loss):
            raise TypeError(f"loss must be a pyro.infer.ELBO or a function, got {loss!r}")
        self.model, self.guide, self.clip_norm = model, guide, clip_norm
        self.loss: Any = loss
        self.optimizer = optim if isinstance(optim, torch.optim.Optimizer) else None
        self.pyro_optim = optim if isinstance(optim, PyroOptim) else None
        # a ready optimizer keeps the parameters that its maker gave it; only our own grows with the pair
        ready = isinstance(optim, torch.optim.Optimizer | PyroOptim)
        self._factory: Any = None if ready else (optim or fused_adam())
        self._params: dict[Tensor, str] = {}
        self._trains = False
        self.compile = compile
        self._compiled: CompiledGradients | None = None
        self._called: list[torch.nn.Module] = []
        self._dtype = precision_dtype(precision)
        self._scaler: torch.amp.GradScaler | None = None
        self._ranks = Ranks()
        self._buffers: list[Tensor] = []
        self._shared = 0  # parameters that all ranks have alike
        self._phases = self._phased()
        if self._dtype == torch.float16 and self.pyro_optim is not None:
            raise ValueError(
                "precision='float16' scales the loss, which a PyroOptim cannot undo: use a torch optimizer"
            )

    @property
    def params(self) -> dict[str, Tensor]:
        """The unconstrained parameters seen so far, by their name in Pyro's parameter store."""
        params = self._params if self._phases is None else self._phases.params
        return {name: param for param, name in params.items()}

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """The optimizers made so far: one, or one for each phase of the objective in the order of their first step."""
        if self._phases is not None:
            return list(self._phases.optimizers.values())
        return [] if self.optimizer is None else [self.optimizer]

    def prepare(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Run the loss without a step, so that a state can be loaded; returns the parameters by name.

        Critics and optimizers of an objective made of phases are made; other optimizers at the first step or `adopt`.
        """
        if self._phases is not None:
            self._phases.prepare(args, kwargs)
            return self.params
        loss = self.evaluate_loss if self._differentiable() is None else self._loss_of
        with fork_rng(), recording(), Parameters() as capture, modules_called() as called:
            loss(*args, **kwargs)
        self._called = called
        return capture.found

    def adopt(self, params: dict[str, Tensor]) -> None:
        """Let the optimizer hold these parameters, in their order; those of phases are held already."""
        if self._phases is None:
            self._register(params.items())
            self._trains = True

    def join(self, ranks: Ranks, buffers: list[Tensor], args: tuple[Any, ...]) -> None:
        """Train with the SVIs of other processes: all begin with the weights of rank 0.

        Each process then takes the gradients of its own share of a batch, scaled so that their sum is that of the whole
        batch, and `share`s them before it updates. The pair is run on `args` to find its parameters; `buffers` are
        what its networks change by themselves, such as running means.
        """
        params = self.prepare(*args)
        self._ranks = ranks
        if self._phases is not None:
            self._phases.ranks = ranks
        else:
            self._register(params.items())
        critics = self.loss.critics.values() if self._phases is not None else ()
        self._buffers = [*buffers, *(b for critic in critics for b in critic.buffers())]
        ranks.copy_from_leader_([*self.params.values(), *self._buffers])
        self._shared = len(self.params)

    def share(self, loss: Tensor) -> Tensor:
        """Sum loss and gradients over the processes that have joined; buffers of networks become those of rank 0."""
        if self._ranks.size == 1:
            return loss
        if self._phases is not None:
            loss = self._phases.share(self.loss.phases[-1], loss)
        else:
            loss = self._ranks.sum_gradients(self._held(), loss)
        if len(self.params) > self._shared:  # a branch that ran for the first time
            self._ranks.copy_from_leader_(list(self.params.values())[self._shared :])
            self._shared = len(self.params)
        self._ranks.copy_from_leader_(self._buffers)
        return loss

    @property
    def scaler(self) -> torch.amp.GradScaler | None:
        """What scales the loss for "float16", once a step was made."""
        return self._scaler

    def load_scaler(self, state: dict[str, Any] | None) -> None:
        """Set the scale to what `scaler.state_dict()` said."""
        if state is not None:
            self._scaled(1.0)
            if self._scaler is not None:
                self._scaler.load_state_dict(state)

    def compiled_state(self) -> dict[str, Any] | None:
        """What has been compiled, so that `load_compiled` can bring it about again; None if nothing."""
        if self._phases is not None:
            return self._phases.compiled_state()
        return None if self._compiled is None else self._compiled.state()

    def load_compiled(self, state: dict[str, Any] | None) -> None:
        """Compile what was compiled then, as soon as a step needs it. Call `prepare` first."""
        if state is not None and self._phases is not None:
            self._phases.load_compiled(state)
        elif state is not None:
            self._compiled = self._compiler(self._called, state)

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """One gradient step; returns the loss before it (0-d tensor, nats summed over the batch)."""
        loss = self.gradients(args, kwargs)
        self.update()
        return loss

    def gradients(self, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None, *, scale: float = 1.0) -> Any:
        """Leave the gradient of `scale * loss` of `(*args, **kwargs)` in the parameters' `.grad`; return the loss.

        Of an objective made of phases, all but the last take their steps here; that one's loss and gradient are left.

        Raises:
            ValueError: If the loss depends on no parameter, on none that the optimizer holds, or on a network whose
                name stands for another one in Pyro's parameter store.
        """
        kwargs = kwargs or {}
        if self._phases is not None:
            loss = self._phases.gradients(args, kwargs, scale, self.compile)
            self.optimizer = self._phases.optimizers.get(self.loss.phases[-1].name)
            return loss
        if self.compile and self._compiled is not None:
            compiled = self._compiled.call(list(self._params), args, kwargs, self._scaled(scale))
            if compiled is not None:
                return compiled
        before = self._set_aside() if self._differentiable() is None else {}
        look = modules_called() if self.compile and self._compiled is None else nullcontext()
        with Parameters() as capture, look as modules:
            loss, rescaled = self._backward(scale, args, kwargs)
        self._register(capture.found.items())
        if not self._trains:
            self._check_names(capture.passed_over)
        if not self._trains and all(p.grad is None for p in self._held()):
            raise ValueError(_NO_PARAMETERS)
        self._trains = True
        if not rescaled:
            self._rescale(scale, before)
        if modules is not None:
            self._compiled = self._compiler(modules)
        return loss

    def update(self) -> None:
        """Move the parameters along the gradients left by `gradients`, then clear these."""
        if self._phases is not None:
            return self._phases.update()
        scaler = self._scaler
        if scaler is not None and self.optimizer is not None:
            scaler.unscale_(self.optimizer)
        if self.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self._held(), self.clip_norm)
        if self.pyro_optim is not None:
            self.pyro_optim([p for p in self._params if p.grad is not None])
        elif self.optimizer is not None and scaler is not None:
            scaler.step(self.optimizer)  # not at all, if a gradient overflowed
            scaler.update()
        elif self.optimizer is not None:
            self.optimizer.step()
        self.zero_grad()

    def zero_grad(self) -> None:
        """Clear the gradients."""
        for param in (*self._held(), *self.params.values()):
            param.grad = None

    def _phased(self) -> PhasedSteps | None:
        wrapped = getattr(self.loss, "elbo", None)
        if isinstance(wrapped, PhasedELBO):
            raise ValueError(
                f"{type(wrapped).__name__} consists of phases with weights of their own: it takes no kl_weight and no "
                f"{type(self.loss).__name__} around it"
            )
        if not isinstance(self.loss, PhasedELBO):
            return None
        if self._factory is None:
            raise TypeError(
                f"{type(self.loss).__name__} has an optimizer for each phase: optim must be a function params -> "
                "Optimizer that makes them"
            )
        if self._dtype == torch.float16:
            raise ValueError(f"{type(self.loss).__name__} does not scale its losses, as precision='float16' must")
        return PhasedSteps(self.loss, self.model, self.guide, self._factory, self.clip_norm, self._dtype)

    def _held(self) -> list[Tensor]:
        """What the optimizer trains: of a ready one its own weights, whether or not the pair registers them."""
        if self._factory is None and self.optimizer is not None:
            return [p for group in self.optimizer.param_groups for p in group["params"]]
        return list(self._params)

    def evaluate_loss(self, *args: Any, **kwargs: Any) -> Any:
        """The loss without a gradient (0-d tensor, nats summed over the batch)."""
        with torch.no_grad(), networks_in(self._dtype, self.model, self.guide):
            loss = getattr(self.loss, "loss", self.loss)
            return torch.as_tensor(loss(self.model, self.guide, *args, **kwargs))

    def _differentiable(self) -> Any:
        """The loss as a function with a gradient; None for Pyro's own RenyiELBO and TraceGraph_ELBO."""
        if isinstance(self.loss, pyro.infer.ELBO):
            return getattr(self.loss, "differentiable_loss", None)
        return self.loss

    def _loss_of(self, *args: Any, **kwargs: Any) -> Tensor:
        with networks_in(self._dtype, self.model, self.guide):
            return self._differentiable()(self.model, self.guide, *args, **kwargs)

    def _compiler(self, modules: list[torch.nn.Module], state: dict[str, Any] | None = None) -> CompiledGradients:
        loss_of = None if self._differentiable() is None else self._loss_of
        return CompiledGradients(loss_of, self.loss, modules, state)

    def _scaled(self, scale: float) -> Any:
        """What the loss is multiplied with before its gradient is taken."""
        if self._dtype != torch.float16:
            return scale
        if self._scaler is None:
            devices = {p.device for p in self._params} or {torch.device("cpu")}
            self._scaler = torch.amp.GradScaler(next(iter(devices)).type)
        device = next(iter(self._params), torch.empty(0)).device
        return self._scaler.scale(torch.tensor(scale, device=device))

    def _backward(self, scale: float, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, bool]:
        if self._differentiable() is None:
            if self._dtype is not None:
                raise ValueError(f"{type(self.loss).__name__} has no differentiable_loss, so no precision but float32")
            loss: Any = self.loss.loss_and_grads(self.model, self.guide, *args, **kwargs)
            # ReweightedWakeSleep has one loss for the model and one for the guide
            return (tuple(map(torch.as_tensor, loss)) if isinstance(loss, tuple) else torch.as_tensor(loss)), False
        loss = self._loss_of(*args, **kwargs)
        if not loss.requires_grad:
            raise ValueError(_NO_PARAMETERS)
        factor = self._scaled(scale)
        (loss if isinstance(factor, float) and factor == 1.0 else loss * factor).backward()
        return loss.detach(), True

    def _set_aside(self) -> dict[Tensor, Tensor]:
        """Take the gradients so far away from the parameters."""
        before = {p: p.grad for p in (*self._held(), *self._params) if p.grad is not None}
        self.zero_grad()
        return before

    def _rescale(self, scale: float, before: dict[Tensor, Tensor]) -> None:
        """Multiply the gradients, then add those set aside."""
        for p in {*self._held(), *self._params, *before}:
            parts = [g for g in (None if p.grad is None else p.grad * scale, before.get(p)) if g is not None]
            p.grad = sum(parts[1:], start=parts[0]) if parts else None

    def _check_names(self, passed_over: dict[str, Tensor]) -> None:
        """Refuse networks that the loss depends on where Pyro would train others of the same names."""
        known = {*self._held(), *self._params}
        lost = [name for name, p in passed_over.items() if p.is_leaf and p.grad is not None and p not in known]
        if lost:
            for name in lost:
                passed_over[name].grad = None
            raise ValueError(
                f"Pyro's parameter store holds other tensors under the names {', '.join(lost)}: they would be trained, "
                "and the network that the loss depends on would not. Call pyro.clear_param_store() before building a "
                "pair, or give each network a name of its own in pyro.module"
            )

    def _register(self, found: Iterable[tuple[str, Tensor]]) -> None:
        new = {param: name for name, param in found if param not in self._params}
        if not new:
            return
        self._params.update(new)
        if self._factory is None:
            return
        if self.optimizer is None:
            self.optimizer = self._factory(list(new))
        else:  # a branch of the pair that ran for the first time
            self.optimizer.add_param_group({"params": list(new)})
