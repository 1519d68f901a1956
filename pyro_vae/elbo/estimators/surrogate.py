"""Gradient estimators given by coefficients: one mechanism for every estimator built on importance weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from pyro_vae.elbo.estimators.bounds import TensorELBO
from pyro_vae.pair.plates import DataPlate, data_plate, sum_to_data
from pyro_vae.pair.protocol import Program
from pyro_vae.pair.running import traced
from pyro_vae.pair.tracing import PairTrace, Site, checked_pair, draw_log_prob, has_mask, log_prob, sample_sites
from pyro_vae.support.arguments import checked

__all__ = ["Coefficients", "SurrogateELBO", "Weights", "weights_of"]


Sites = list[tuple[str, Site]]


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


@dataclass(frozen=True)
class Weights:
    """Log-densities of K particles for N data, `(K, N)` each: the model's, and the guide's by kind of site.

    They are scaled and masked, as they stand in the weight. `drawn_path` and `drawn_score` compute the guide's as it
    drew: the same tensors where there is no scale and no mask. `guide_terms` is what the guide observes, or adds by
    `pyro.factor`.
    """

    log_p: Tensor
    log_q_path: Tensor
    drawn_path: Callable[[], Tensor]
    log_q_score: Tensor
    drawn_score: Callable[[], Tensor]
    guide_terms: Tensor | None = None

    @property
    def log_w(self) -> Tensor:
        """Log importance weights."""
        return self.path - self.log_q_score

    @property
    def path(self) -> Tensor:
        """Log importance weights without the densities of sites that are not reparameterized."""
        path = self.log_p - self.log_q_path
        return path if self.guide_terms is None else path - self.guide_terms


def weights_of(traces: PairTrace, plate: DataPlate) -> Weights:
    """Read a run's log-densities per particle and datum.

    A site's scale stays inside its weight, as a KL weight has to, except for the data plate's own scale: a minibatch
    represents more data, not a sharper likelihood.
    """
    subsampling = plate.subsampling

    def total(values: Iterable[Tensor]) -> Tensor | None:
        sums = [sum_to_data(value, plate, traces.particle_dim) for value in values]
        sums = sums if traces.particle_dim is not None else [value.unsqueeze(0) for value in sums]
        return sum(sums[1:], start=sums[0]) if sums else None

    def scale(site: Site) -> Any:
        return site["scale"] if subsampling == 1.0 else site["scale"] / subsampling

    def counted(sites: Sites) -> Tensor | None:
        return total(scale_and_mask(log_prob(name, site), scale(site)) for name, site in sites)

    def drawn(sites: Sites, in_weight: Tensor) -> Tensor:
        plain = all(not isinstance(scale(s), Tensor) and scale(s) == 1 and not has_mask(s) for _, s in sites)
        found = None if plain else total(draw_log_prob(name, site) for name, site in sites)
        return in_weight if found is None else found

    log_p = counted(list(sample_sites(traces.model)))
    assert log_p is not None  # a plate over the data was found
    found: list[Any] = [log_p]
    of_guide = list(sample_sites(traces.guide))
    for kind in (True, False):
        sites = [(name, s) for name, s in of_guide if not s["is_observed"] and s["fn"].has_rsample == kind]
        log_q = counted(sites)
        found += [log_p.new_zeros(()) if log_q is None else log_q]
        found += [partial(drawn, sites, found[-1])]
    found.append(counted([(name, site) for name, site in of_guide if site["is_observed"]]))
    return Weights(*found)


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

    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        count, dim, model, guide = self.programs(model, guide, args, kwargs)
        runs: list[_Run] = []
        detach = True
        for _ in range(count):  # each scored before the next is drawn: some flows know their latest draw alone
            drawn = traced(guide, args, kwargs)
            if not runs:
                pathwise = all(site["fn"].has_rsample for _, site in _drawn_sites(drawn))
                if self.needs_path and not pathwise:
                    self._refuse(drawn)
                detach = not (self.follows_value and pathwise)
            runs.append(_run(model, guide, drawn, dim, args, kwargs, detach))
        plate = runs[0].plate
        log_w = torch.cat([run.weights.log_w for run in runs])
        if detach:
            with torch.no_grad():
                c = self.coefficients(log_w, *args)
            loss = sum((_surrogate(run, c, i, count, dim) for i, run in enumerate(runs)), start=log_w.new_zeros(()))
            loss = loss - loss.detach() - c.value.sum()
        else:
            loss = -self.coefficients(log_w, *args).value.sum()
        return plate.subsampling * (loss + self.extra_loss(log_w.detach(), *args))

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


class _Run(NamedTuple):
    weights: Weights
    plate: DataPlate
    draws: list[_DetachedDraw]


class _DetachedDraw:
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


def _run(
    model: Program, guide: Program, drawn: Any, dim: int | None, args: Any, kwargs: dict[str, Any], detach: bool
) -> _Run:
    """The log-weights of the draws in a guide's trace, detached from the parameters or not."""
    if not detach:
        scored = traced(model, args, kwargs, on=drawn)
        traces = checked_pair(scored, drawn, dim)
        plate = data_plate(traces, len(args[0]))
        return _Run(weights_of(traces, plate), plate, [])
    draws, for_model, for_guide = [], drawn.copy(), drawn.copy()
    for name, site in _drawn_sites(drawn):
        model_value = guide_value = site["value"].detach()
        if site["fn"].has_rsample:
            draws.append(_DetachedDraw(site))
            model_value, guide_value = draws[-1].for_model, draws[-1].for_guide
        for_model.nodes[name] = {**site, "value": model_value}
        for_guide.nodes[name] = {**site, "value": guide_value}
    scored = traced(model, args, kwargs, on=for_model)
    weighed = traced(guide, args, kwargs, on=for_guide)
    traces = checked_pair(scored, weighed, dim)
    plate = data_plate(traces, len(args[0]))
    return _Run(weights_of(traces, plate), plate, draws)


def _surrogate(run: _Run, c: Coefficients, i: int, count: int, dim: int | None) -> Tensor:
    """A loss with the gradient that the coefficients say; its value means nothing."""
    # where particles ran one by one, run i holds row i
    rows = {name: x[i : i + 1] for name, x in c._asdict().items() if isinstance(x, Tensor) and x.dim() == 2}
    own = c._replace(**rows) if count > 1 else c
    w, by_model, by_path = run.weights, own.model, own.path
    loss = -(own.guide * w.log_q_path).sum() - (own.guide_s * w.log_q_score).sum()
    by_score = (own.score * w.drawn_score()).sum()
    loss = loss - by_score
    if isinstance(own.score_r, Tensor):
        loss = loss - (own.score_r * w.drawn_path()).sum()
    if w.guide_terms is not None:
        loss = loss + ((own.model if own.term is None else own.term) * w.guide_terms).sum()
    moved = [draw for draw in run.draws if draw.draw.requires_grad]
    if moved and isinstance(by_path, Tensor):
        # One backward pass through the model serves both its parameters and its draws: each (particle, datum) has its
        # own draws, so their slope only has to be multiplied by path/model. A weight too small to divide by is raised
        # to one that does not change the sum.
        by_model = torch.where(by_model.abs() < TINY, TINY, by_model)
        for draw in moved:
            draw.factor.append(draw.expand(by_path / by_model, run.plate, dim))
        # what the guide's densities make of the draws: inside the weight, and where they are what is scored
        of_draws = (by_path * (w.log_q_path + w.log_q_score)).sum() - by_score
        if w.guide_terms is not None:
            of_draws = of_draws + (by_path * w.guide_terms).sum()
        slopes = torch.autograd.grad(of_draws, [draw.for_guide for draw in moved], retain_graph=True, allow_unused=True)
        for slope, draw in zip(slopes, moved, strict=True):
            if slope is not None:
                loss = loss + (slope.detach() * draw.draw).sum()
    return loss - (by_model * w.log_p).sum()


TINY = 1e-20
