"""Adam on the ELBO of many data at once, with a learning rate and a stopping time for each datum."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.func import functional_call

from pyro_vae.evaluate.local.posterior import LocalPosterior
from pyro_vae.pair.arguments import map_rows
from pyro_vae.pair.particles import log_weights
from pyro_vae.pair.planning import CPU_ROWS, Plan, plan_for, rows_that_fit
from pyro_vae.pair.protocol import Data, Program
from pyro_vae.support.progress import Advance

__all__ = ["CHECK_EVERY", "Descent"]

CHECK_EVERY = 100  # steps
GPU_ROWS = 65536  # data times particles in one pass
BETA1, BETA2, EPS = 0.9, 0.999, 1e-8


class Descent:
    """The state of a fit: parameters with Adam's moments, and the progress of each datum.

    No two data share a parameter and Adam is elementwise, so the fit of all data equals a separate fit of each. After
    every `CHECK_EVERY` steps, the learning rate of each datum whose mean ELBO over these steps has not improved is
    halved. A datum is finished after `patience` such checks in a row.

    Args:
        posterior: Holds the initial parameters, and after `run` the final ones.
        model: The model.
        args, kwargs: The pair's arguments.
        num_particles: Draws per datum and step.
        lr: Learning rate, in the units of a standard deviation.
        max_steps: Maximum number of steps for one datum.
        patience: Checks without improvement before a datum is finished.
        memory: Approximate bytes for the gradient of one pass.

    Attributes:
        steps: Steps taken, `(N,)`.
        converged: Whether a datum finished before `max_steps`, `(N,)`.
        elbo_history: Mean ELBO between checks, a list of `(N,)`, NaN for finished data.
    """

    def __init__(
        self,
        posterior: LocalPosterior,
        model: Program,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        num_particles: int,
        lr: float,
        max_steps: int,
        patience: int,
        memory: int | None = None,
    ) -> None:
        self.posterior, self.model, self.args, self.kwargs = posterior, model, args, kwargs
        self.num_particles, self.max_steps, self.patience = num_particles, max_steps, patience
        self.memory = memory
        self.params = {name: p.detach() for name, p in posterior.named_parameters()}
        self.moments = [{name: torch.zeros_like(p) for name, p in self.params.items()} for _ in range(2)]
        self.rates = posterior.rates()
        self.n, self.axes = len(args[0]), posterior.axes
        like = next(iter(self.params.values()))
        self.lr = like.new_full((self.n,), lr)
        self.best = like.new_full((self.n,), -math.inf)
        self.stalled = torch.zeros(self.n, dtype=torch.long, device=like.device)
        self.steps, self.converged = self.stalled.clone(), self.stalled.bool()
        self.elbo_history: list[Tensor] = []
        self.current: dict[str, Tensor] | None = None  # parameters of the data in this pass

    def guide(self, x: Tensor, *args: Any, **kwargs: Any) -> None:
        """The guide at the parameters of the data in this pass, or of the first len(x) data."""
        params = self.current
        if params is None:
            params = self._select(self.params, torch.arange(len(x), device=self.lr.device))
        functional_call(self.posterior, params, (x,))

    def run(self, advance: Advance) -> bool:
        """Fit all data; returns whether Ctrl-C stopped the fit, which also issues a warning."""
        self.plan: Plan = plan_for(self.model, self.guide, (self.args, self.kwargs))
        try:
            for start, stop in self.plan.pieces(self._rows_at_once(), self.num_particles):
                active, step = torch.arange(start, stop, device=self.lr.device), 0
                while len(active) and step < self.max_steps:
                    count = min(CHECK_EVERY, self.max_steps - step)
                    mean = self._descend(active, step, count)
                    step += count
                    finished = int(self.converged.sum())
                    self._check(active, step, mean)
                    if not self.plan.whole:
                        active = active[~self.converged[active]]
                    elif self.converged.all():
                        break
                    advance(int(self.converged.sum()) - finished)
        except KeyboardInterrupt:
            warnings.warn(
                f"interrupted: {int(self.converged.sum())} of {self.n} local posteriors have converged, the others "
                "keep their latest parameters",
                stacklevel=3,
            )
            return True
        return False

    def _rows_at_once(self) -> int:
        rows = CPU_ROWS if self.lr.device.type == "cpu" else GPU_ROWS
        if self.memory is None:
            return rows
        example_data, device = self.plan.example_data, self.lr.device
        probe = 2 if self.plan.particles.vectorize else 1

        def run() -> Tensor:
            return self._log_weights(*example_data, num_particles=probe)

        # the backward pass stores the tensors of the forward pass
        return min(rows, rows_that_fit(run, probe * len(example_data[0][0]), device, self.memory, copies=2))

    def _log_weights(self, args: tuple[Any, ...], kwargs: dict[str, Any], num_particles: int) -> Tensor:
        particles = self.plan.particles
        return log_weights(
            self.model,
            self.guide,
            args,
            kwargs,
            num_particles=num_particles,
            vectorize=particles.vectorize,
            nesting=particles.nesting,
        )

    def _select(self, tensors: dict[str, Tensor], active: Tensor) -> dict[str, Tensor]:
        return {name: t.index_select(self.axes[name], active) for name, t in tensors.items()}

    def _select_data(self, active: Tensor) -> Data:
        return map_rows(lambda a: a[active.to(a.device)], self.args, self.kwargs)

    def _descend(self, active: Tensor, steps_before: int, count: int) -> Tensor:
        """Take `count` steps for some of the data; returns their mean ELBO over these steps."""
        args, kwargs = self._select_data(active)
        params, first, second = (self._select(t, active) for t in (self.params, *self.moments))
        lr = {
            name: self.lr[active].reshape(-1, *[1] * (p.dim() - self.axes[name] - 1)) * self.rates[name]
            for name, p in params.items()
        }
        total = torch.zeros_like(self.lr[active])
        self.current = {name: p.requires_grad_() for name, p in params.items()}
        try:
            # the plan has run some of the data with Pyro's checks
            with pyro.validation_enabled(False):
                for t in range(steps_before + 1, steps_before + count + 1):
                    with torch.enable_grad():
                        log_w = self._log_weights(args, kwargs, self.num_particles)
                        elbo = log_w.mean(0)
                        # only these: the model's parameters get no gradients
                        grads = torch.autograd.grad(-elbo.sum(), list(params.values()), allow_unused=True)
                    total += elbo.detach()
                    with torch.no_grad():
                        for name, grad in zip(params, grads, strict=True):
                            if grad is not None:
                                _adam(params[name], grad, first[name], second[name], lr[name], t)
        finally:  # Ctrl-C, too
            for tensors, part in zip((self.params, *self.moments), (params, first, second), strict=True):
                for name, value in part.items():
                    tensors[name].index_copy_(self.axes[name], active, value.detach())
        return total / count

    def _check(self, active: Tensor, step: int, mean: Tensor) -> None:
        if not mean.isfinite().all():
            index = int(active[int((~mean.isfinite()).nonzero()[0])])
            raise ValueError(
                f"the ELBO of {int((~mean.isfinite()).sum())} local posteriors became NaN or infinite before step "
                f"{step}, first that of datum {index}: use a smaller lr, or check whether the model's densities are "
                f"finite there with pv.preflight(model, guide, x[{index}:{index + 1}])"
            )
        better = mean > self.best[active]
        self.best[active] = torch.where(better, mean, self.best[active])
        self.stalled[active] = torch.where(better, 0, self.stalled[active] + 1)
        self.steps[active] = torch.where(self.converged[active], self.steps[active], step)
        self.converged[active] |= self.stalled[active] >= self.patience
        self.lr[active] *= torch.where(better, 1.0, 0.5)
        self.lr[self.converged] = 0.0
        row = torch.full_like(self.lr, math.nan)
        row[active] = mean
        check = math.ceil(step / CHECK_EVERY) - 1
        if check < len(self.elbo_history):  # another piece of the data
            self.elbo_history[check] = torch.where(row.isnan(), self.elbo_history[check], row)
        else:
            self.elbo_history.append(row)


def _adam(p: Tensor, grad: Tensor, first: Tensor, second: Tensor, lr: Tensor, t: int) -> None:
    """A step of Adam (Kingma and Ba 2015, arXiv 1412.6980) with a learning rate per element."""
    first.lerp_(grad, 1 - BETA1)
    second.mul_(BETA2).addcmul_(grad, grad, value=1 - BETA2)
    root = math.sqrt(1 - BETA2**t)
    step = second.sqrt().add_(EPS * root)
    torch.div(first, step, out=step)
    p.addcmul_(step, lr, value=-root / (1 - BETA1**t))
