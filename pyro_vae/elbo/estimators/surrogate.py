"""Gradient estimators given by coefficients: one mechanism for every estimator built on importance weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from pyro_vae.elbo.estimators.bounds import TensorELBO
from pyro_vae.elbo.estimators.densities import Sites, Weights, weights_of
from pyro_vae.pair.plates import DataPlate, data_plate
from pyro_vae.pair.protocol import Program
from pyro_vae.pair.running import traced
from pyro_vae.pair.tracing import PairTrace, Site, checked_pair, sample_sites
from pyro_vae.support.arguments import checked

__all__ = ["Coefficients", "DetachedDraw", "Factors", "Run", "SurrogateELBO", "detached", "surrogate_loss"]


class Coefficients(NamedTuple):
    r"""A bound per datum, `(N,)`, and the factors of its gradient, `(K, N)` or `(N,)` each, or 0 to leave a part out.

    .. math:: \nabla = \sum_k model_k \nabla_\theta \log \tilde p(x, z_k)
        + path_k \frac{\partial \log w_k}{\partial z_k} \nabla_\phi z_k
        + guide_k \nabla_\phi \log \tilde q_r(z_k|x) + guide\_s_k \nabla_\phi \log \tilde q_s(z_k|x)
        + score_k \nabla_\phi \log q_s(z_k|x) + score\_r_k \nabla_\phi \log q_r(z_k|x)

    with `log w = log p~ - log q~` and q split into the reparameterized sites r and the other sites s. The tilde marks
    what a site counts in the weight: its log-density times its scale, under its mask. Without it, the density is that
    from which the value was drawn. `path` moves the draws of r, and with it `score` follows log q_s(z|x) through them;
    all else holds the draws fixed. What the guide observes, or adds by `pyro.factor`, is a term of the loss and no
    density of draws: inside the weight it stands beside log q, and the gradient of its parameters has the factor
    `term`, by default `model`.
    """

    value: Tensor
    model: Tensor
    path: Tensor | float = 0.0
    guide: Tensor | float = 0.0
    score: Tensor | float = 0.0
    guide_s: Tensor | float = 0.0
    score_r: Tensor | float = 0.0
    term: Tensor | None = None


class Factors(NamedTuple):
    """`Coefficients` by group of the guide's sites, each group with its own `guide` and `score`.

    `follow` are the groups whose density the draws move together with the weight, where it is scored.
    """

    value: Tensor
    model: Tensor
    path: Tensor | float
    guide: Mapping[str, Tensor | float]
    score: Mapping[str, Tensor | float]
    follow: frozenset[str] = frozenset({"score"})


class SurrogateELBO(TensorELBO):
    """An estimator whose gradient is given by `Coefficients` of the log-weights.

    The guide draws z; guide and model then run again on detached copies of z. This separates the three ways in which a
    guide's parameter acts: through the draws, through the density of reparameterized sites, and through the density of
    the other sites. It is right for hierarchical guides, too: a copy of one latent still has the gradient through
    later sites.

    Args:
        num_particles: K, at least the class attribute `min_particles`.
        vectorize_particles: As for `TensorELBO`.

    Raises:
        ValueError: For too few particles; with `needs_path`, for a latent site that cannot be reparameterized.
    """

    follows_value: ClassVar[bool] = False  # whether the gradient is that of the value if all sites are reparameterized
    min_particles: ClassVar[int] = 1

    @checked
    def __init__(self, num_particles: int = 1, vectorize_particles: bool | None = None) -> None:
        super().__init__(num_particles=num_particles, vectorize_particles=vectorize_particles)
        if self.num_particles < self.min_particles:
            raise ValueError(
                f"{type(self).__name__} compares particles with each other: num_particles must be at least "
                f"{self.min_particles}, got {self.num_particles}"
            )

    def coefficients(self, log_w: Tensor, *args: Any) -> Coefficients:
        """The bound and its gradient's factors, from log-weights `(K, N)` without gradient; `args` are the pair's."""
        raise NotImplementedError(f"{type(self).__name__} must define coefficients(log_w)")

    def extra_loss(self, log_w: Tensor, *args: Any) -> Tensor | float:
        """A loss of the estimator's own parameters (a baseline's), summed over the data."""
        return 0.0

    def factors(self, runs: list[Run], *args: Any) -> Factors:
        """`coefficients` of all runs, by group of sites."""
        c = self.coefficients(torch.cat([run.weights.log_w for run in runs]), *args)
        guide, score = {"path": c.guide, "score": c.guide_s}, {"path": c.score_r, "score": c.score}
        if "term" in runs[0].weights.log_q:
            guide["term"] = -(c.model if c.term is None else c.term)
        return Factors(c.value, c.model, c.path, guide, score)

    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        count, dim, model, guide = self.programs(model, guide, args, kwargs)
        runs: list[Run] = []
        detach = True
        for _ in range(count):  # each scored before the next is drawn: some flows know their latest draw alone
            drawn = traced(guide, args, kwargs)
            if not runs:
                pathwise = all(site["fn"].has_rsample for _, site in _drawn_sites(drawn))
                if self.needs_path and not pathwise:
                    self._refuse(drawn)
                detach = not (self.follows_value and pathwise)
            moved = _moved(drawn) if detach else None
            runs.append(_run(model, guide, drawn, dim, args, kwargs, moved))
        log_w = torch.cat([run.weights.log_w for run in runs])
        if detach:
            with torch.no_grad():
                factors = self.factors(runs, *args)
            loss = surrogate_loss(runs, factors, dim)
        else:
            loss = -self.coefficients(log_w, *args).value.sum()
        return runs[0].plate.subsampling * (loss + self.extra_loss(log_w.detach(), *args))

    def _refuse(self, drawn: Any) -> None:
        for name, site in _drawn_sites(drawn):
            if not site["fn"].has_rsample:
                raise ValueError(
                    f"site {name!r} is drawn from {type(site['fn']).__name__}, which cannot be reparameterized, and "
                    f"{type(self).__name__} differentiates through the draws: use 'vimco' or 'reinforce' for such sites"
                )


def _drawn_sites(trace: Any) -> Sites:
    """The sites of a guide's trace that it draws."""
    return [(name, site) for name, site in sample_sites(prune_subsample_sites(trace)) if not site["is_observed"]]


class Run(NamedTuple):
    """One run of the pair: its log-densities, the plate over the data, and the draws that move."""

    weights: Weights
    plate: DataPlate
    draws: list[DetachedDraw]


class DetachedDraw:
    """One reparameterized draw, detached from the parameters wherever a density is evaluated at it.

    `for_model` is the copy that the model sees, `for_guide` the copy for the guide's own density.
    """

    def __init__(self, site: Site) -> None:
        self.draw: Tensor = site["value"]
        self.event_dim: int = site["fn"].event_dim
        self.for_guide = self.draw.detach().clone().requires_grad_()
        self.for_model = self.draw.detach().clone()
        self.factor: list[Tensor] = []
        if self.draw.requires_grad:
            factor = self.factor  # not self: a hook that refers to its own tensor is never freed
            self.for_model = self.draw.view_as(self.draw)
            self.for_model.register_hook(lambda slope: slope * factor[0] if factor else torch.zeros_like(slope))

    def expand(self, factor: Tensor, plate: DataPlate, particle_dim: int | None) -> Tensor:
        """Factors `(K, N)` in the layout of the draw."""
        dims = {plate.dim: factor.shape[1]} | ({} if particle_dim is None else {particle_dim: factor.shape[0]})
        shape = [dims.get(d, 1) for d in range(min(dims), 0)]
        return factor.reshape(*shape, *[1] * self.event_dim)


def _moved(drawn: Any) -> set[str]:
    return {name for name, site in _drawn_sites(drawn) if site["fn"].has_rsample}


def _run(
    model: Program, guide: Program, drawn: Any, dim: int | None, args: Any, kwargs: Any, moved: set[str] | None
) -> Run:
    """The log-weights of the draws in a guide's trace: as they are, or with those that move as `detached` copies."""
    if moved is not None:
        traces, draws = detached(model, guide, drawn, dim, args, kwargs, moved)
    else:
        scored = traced(model, args, kwargs, on=drawn)
        traces, draws = checked_pair(scored, drawn, dim), []
    plate = data_plate(traces, len(args[0]))
    return Run(weights_of(traces, plate), plate, draws)


def detached(
    model: Program, guide: Program, drawn: Any, dim: int | None, args: Any, kwargs: dict[str, Any], moved: set[str]
) -> tuple[PairTrace, list[DetachedDraw]]:
    """The pair run on the draws of a guide's trace, held fixed; those of `moved` sites as copies that have slopes."""
    draws, for_model, for_guide = [], drawn.copy(), drawn.copy()
    for name, site in _drawn_sites(drawn):
        model_value = guide_value = site["value"].detach()
        if name in moved:
            draws.append(DetachedDraw(site))
            model_value, guide_value = draws[-1].for_model, draws[-1].for_guide
        for_model.nodes[name] = {**site, "value": model_value}
        for_guide.nodes[name] = {**site, "value": guide_value}
    scored = traced(model, args, kwargs, on=for_model)
    weighed = traced(guide, args, kwargs, on=for_guide)
    return checked_pair(scored, weighed, dim), draws


def surrogate_loss(runs: list[Run], factors: Factors, dim: int | None) -> Tensor:
    """A loss with the gradient that the factors say and their negative value, summed over the data."""
    loss: Any = sum(_surrogate(run, factors, i, len(runs), dim) for i, run in enumerate(runs))
    return torch.as_tensor(loss - loss.detach() - factors.value.sum())


def _surrogate(run: Run, c: Factors, i: int, count: int, dim: int | None) -> Tensor:
    """A loss with the gradient that the factors say for one run; its value means nothing."""

    def own(x: Tensor | float) -> Tensor | float:  # where particles ran one by one, run i holds row i
        return x[i : i + 1] if count > 1 and isinstance(x, Tensor) and x.dim() == 2 else x

    w, by_model, by_path = run.weights, own(c.model), own(c.path)
    loss: Any = 0.0
    for group, factor in c.guide.items():
        if isinstance(factor, Tensor):
            loss = loss - (own(factor) * w.log_q[group]).sum()
    followed: Any = 0.0
    for group, factor in c.score.items():
        if isinstance(factor, Tensor):
            scored = (own(factor) * w.drawn[group]()).sum()
            followed, loss = (followed + scored if group in c.follow else followed), loss - scored
    moved = [draw for draw in run.draws if draw.draw.requires_grad]
    if moved and isinstance(by_path, Tensor):
        # One backward pass through the model serves both its parameters and its draws: each (particle, datum) has its
        # own draws, so their slope only has to be multiplied by path/model. A weight too small to divide by is raised
        # to one that does not change the sum.
        assert isinstance(by_model, Tensor)
        by_model = torch.where(by_model.abs() < TINY, TINY, by_model)
        for draw in moved:
            draw.factor.append(draw.expand(by_path / by_model, run.plate, dim))
        # what the guide's densities make of the draws: inside the weight, and where they are what is scored
        of_draws = (by_path * sum(w.log_q.values())).sum() - followed
        slopes = torch.autograd.grad(of_draws, [draw.for_guide for draw in moved], retain_graph=True, allow_unused=True)
        for slope, draw in zip(slopes, moved, strict=True):
            if slope is not None:
                loss = loss + (slope.detach() * draw.draw).sum()
    return loss - (by_model * w.log_p).sum()


TINY = 1e-20
