"""Gradient estimators as coefficients: one mechanism for every estimator built on importance weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from pyro_vae.elbo.bounds import TensorELBO
from pyro_vae.elbo.tracing import (
    DataPlate,
    PairTrace,
    Site,
    checked_pair,
    data_plate,
    log_prob,
    replay_pair,
    sample_sites,
    sum_to_data,
)

__all__ = ["Coefficients", "SurrogateELBO", "Weights", "weights_of"]

Program = Callable[..., Any]


class Coefficients(NamedTuple):
    r"""A bound per datum, `(N,)`, and the factors of its gradient, `(K, N)` each, or 0 to leave a part out.

    .. math:: \nabla = \sum_k model_k \nabla_\theta \log p(x, z_k)
        + path_k \frac{\partial \log w_k}{\partial z_k} \nabla_\phi z_k
        + guide_k \nabla_\phi \log q_r(z_k|x) + score_k \nabla_\phi \log q_s(z_k|x)

    with `log w = log p - log q` and q split into the reparameterised sites r and the other sites s; `path` moves the
    draws of r, `guide` and `score` hold the draws fixed.
    """

    value: Tensor
    model: Tensor
    path: Tensor | float = 0.0
    guide: Tensor | float = 0.0
    score: Tensor | float = 0.0


@dataclass(frozen=True)
class Weights:
    """Log-densities of K particles for N data, `(K, N)` each: the model's, and the guide's by kind of site."""

    log_p: Tensor
    log_q_path: Tensor
    log_q_score: Tensor

    @property
    def log_w(self) -> Tensor:
        """Log importance weights."""
        return self.log_p - self.log_q_path - self.log_q_score


def weights_of(traces: PairTrace, plate: DataPlate) -> Weights:
    """Read a run's log-densities per particle and datum.

    A site's scale stays inside its weight (so that a KL weight does), except for the data plate's own: a minibatch
    stands for more data, not for a sharper likelihood.
    """
    subsampling = plate.subsampling

    def term(name: str, site: Site) -> Tensor:
        scale = site["scale"] if subsampling == 1.0 else site["scale"] / subsampling
        value = sum_to_data(scale_and_mask(log_prob(name, site), scale), plate, traces.particle_dim)
        return value if traces.particle_dim is not None else value.unsqueeze(0)

    parts: dict[str, list[Tensor]] = {"p": [], "path": [], "score": []}
    for name, site in sample_sites(traces.model):
        parts["p"].append(term(name, site))
    for name, site in sample_sites(traces.guide):
        parts["path" if site["fn"].has_rsample else "score"].append(term(name, site))
    zero = torch.zeros((), device=parts["p"][0].device, dtype=parts["p"][0].dtype)
    return Weights(*(sum(parts[kind], start=zero) for kind in ("p", "path", "score")))


class SurrogateELBO(TensorELBO):
    """An estimator that says its gradient by `Coefficients` of the log-weights.

    The guide draws z; guide and model are then run again on copies of z cut off from the parameters, which separates
    the three ways in which a guide's parameter acts: through the draws, through the density of reparameterised sites,
    and through the density of the other sites. Hierarchical guides are right too: a copy of one latent still carries
    the gradient of whatever later sites make of it.
    """

    follows_value: ClassVar[bool] = False  # without such sites, the gradient is simply that of the value
    least_particles: ClassVar[int] = 1

    def __init__(self, num_particles: int = 1, vectorize_particles: bool | None = None) -> None:
        super().__init__(num_particles=num_particles, vectorize_particles=vectorize_particles)
        if self.num_particles < self.least_particles:
            raise ValueError(
                f"{type(self).__name__} compares particles with each other: num_particles must be at least "
                f"{self.least_particles}, got {self.num_particles}"
            )

    def coefficients(self, log_w: Tensor, *args: Any) -> Coefficients:
        """The bound and its gradient's factors, from log-weights `(K, N)` without gradient; `args` are the pair's."""
        raise NotImplementedError(f"{type(self).__name__} must define coefficients(log_w)")

    def extra_loss(self, log_w: Tensor, *args: Any) -> Tensor | float:
        """A loss of the estimator's own parameters (a baseline's), summed over the data."""
        return 0.0

    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        count, dim, model, guide = self.programs(model, guide, args, kwargs)
        drawn = [poutine.trace(guide).get_trace(*args, **kwargs) for _ in range(count)]
        pathwise = all(site["fn"].has_rsample for _, site in sample_sites(prune_subsample_sites(drawn[0])))
        if self.needs_path and not pathwise:
            self._refuse(drawn[0])
        cut = not (self.follows_value and pathwise)
        runs = [_run(model, guide, held, dim, args, kwargs, cut) for held in drawn]
        plate = runs[0].plate
        log_w = torch.cat([run.weights.log_w for run in runs])
        if cut:
            with torch.no_grad():
                c = self.coefficients(log_w, *args)
            loss = sum((_surrogate(run, c, i, count) for i, run in enumerate(runs)), start=log_w.new_zeros(()))
            loss = loss - loss.detach() - c.value.sum()
        else:
            loss = -self.coefficients(log_w, *args).value.sum()
        return plate.subsampling * (loss + self.extra_loss(log_w.detach(), *args))

    def _refuse(self, drawn: Any) -> None:
        for name, site in sample_sites(prune_subsample_sites(drawn)):
            if not site["fn"].has_rsample:
                raise ValueError(
                    f"site {name!r} is drawn from {type(site['fn']).__name__}, which cannot be reparameterised, and "
                    f"{type(self).__name__} differentiates through the draws: use 'vimco' or 'reinforce' for such sites"
                )


class _Run(NamedTuple):
    weights: Weights
    plate: DataPlate
    drawn: list[Tensor]
    cut: list[Tensor]


def _run(
    model: Program, guide: Program, drawn: Any, dim: int | None, args: Any, kwargs: dict[str, Any], cut: bool
) -> _Run:
    """Weigh the draws of a guide's trace, cut off from the parameters or not."""
    if not cut:
        scored = poutine.trace(poutine.replay(model, trace=drawn)).get_trace(*args, **kwargs)
        traces = checked_pair(scored, drawn, dim)
        plate = data_plate(traces, len(args[0]))
        return _Run(weights_of(traces, plate), plate, [], [])
    held: Any = drawn.copy()
    attached, leaves = [], []
    for name, site in sample_sites(prune_subsample_sites(drawn)):
        value = site["value"].detach()
        if site["fn"].has_rsample:
            attached.append(site["value"])
            value = value.clone().requires_grad_()
            leaves.append(value)
        held.nodes[name] = {**site, "value": value}
    traces = replay_pair(model, guide, held, args, kwargs, particle_dim=dim)
    plate = data_plate(traces, len(args[0]))
    return _Run(weights_of(traces, plate), plate, attached, leaves)


def _surrogate(run: _Run, c: Coefficients, i: int, count: int) -> Tensor:
    """A loss with the gradient that the coefficients say; its value means nothing."""
    # where particles ran one by one, run i holds row i
    by_model, by_path, by_guide, by_score = (x[i : i + 1] if count > 1 and isinstance(x, Tensor) else x for x in c[1:])
    w = run.weights
    loss = -(by_model * w.log_p).sum() - (by_guide * w.log_q_path).sum() - (by_score * w.log_q_score).sum()
    if run.cut and isinstance(by_path, Tensor):
        slopes = torch.autograd.grad(w.log_w, run.cut, by_path.expand_as(w.log_w), retain_graph=True, allow_unused=True)
        for slope, z in zip(slopes, run.drawn, strict=True):
            if slope is not None and z.requires_grad:
                loss = loss - (slope.detach() * z).sum()
    return loss
