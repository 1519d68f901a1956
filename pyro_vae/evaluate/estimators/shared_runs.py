"""Gradients of several estimators at once, from one run of the pair on the draws that they have in common."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from pyro_vae import elbo as elbos
from pyro_vae.elbo.estimators.bounds import scaled_kl
from pyro_vae.elbo.estimators.densities import Densities
from pyro_vae.elbo.estimators.surrogate import TINY, Coefficients, DetachedDraw
from pyro_vae.elbo.estimators.terms import kl_sites
from pyro_vae.evaluate.estimators.gradients import Gradients, Moments
from pyro_vae.pair.plates import DataPlate, data_plate
from pyro_vae.pair.running import Running, traced
from pyro_vae.pair.tracing import PairTrace, checked_pair, sample_sites
from pyro_vae.support.random import fork_rng

__all__ = ["SharedRuns", "may_share"]

AGREEMENT = 1e-3  # of a gradient alone and among others, relative to its norm: float32 at 50 particles has 1e-5
Grads = dict[int, Tensor]


def may_share(objective: Any) -> bool:
    """Whether an estimator is one of those whose gradient `SharedRuns` can put together.

    All of these draw the guide once, and are known by coefficients of the log-weights, or have the KL in closed form.
    """
    kind = type(objective)
    by_weights = isinstance(objective, elbos.SurrogateELBO) and all(
        getattr(kind, name) is getattr(elbos.SurrogateELBO, name)
        for name in ("differentiable_loss", "factors", "extra_loss", "rows", "layout")
    )
    return by_weights or kind in (elbos.Trace, elbos.MeanField)


@dataclass
class _OneRun:
    """A run of the pair with the draws as leaves: `for_model` where the model reads them, `for_guide` in the guide."""

    traces: PairTrace
    plate: DataPlate
    draws: list[DetachedDraw]
    for_model: list[Tensor]
    observed: Tensor  # log p of the observations, (K, N)
    latents: Tensor  # log p of the latents
    log_q: Tensor
    drawn: Tensor  # log q without masks

    @property
    def leaves(self) -> list[Tensor]:
        return [*self.for_model, *(draw.for_guide for draw in self.draws)]


class SharedRuns:
    r"""The gradients of estimators of a pathwise pair, which differ in factors of its log-densities alone.

    .. math:: \nabla = \sum_k model_k \nabla_\theta \log p(x|z_k) + \dots

    The observations' density, which is nearly all of the work, is computed once for all estimators, and differentiated
    once for each set of factors `model_k` that there is: even ones, normalized weights. What remains is a pass through
    the guide for each.

    Args:
        every: Estimators on one pair and its data, with one number of particles that run at once.
    """

    def __init__(self, every: Sequence[Gradients]) -> None:
        self.every, self.first = list(every), every[0]

    def agree(self, seed: int) -> bool:
        """Whether each estimator has its own gradient of this seed; not for pairs of which less is known."""
        try:
            shared = self.gradients(seed)
        except (ValueError, AssertionError, RuntimeError):  # particles one by one, no plate over the data, no path
            return False
        for alone, (loss, grads) in zip(self.every, shared, strict=True):
            right_loss, right = alone.gradient(seed)
            pairs = [(loss.reshape(1), right_loss.reshape(1)), *((grads[key], right[key]) for key in right)]
            away, size = (sum(float(t.double().square().sum()) for t in ts) for ts in _differences(pairs))
            if not away <= AGREEMENT**2 * size:
                return False
        return True

    def repeat(self, seeds: Iterable[int], advance: Any) -> list[tuple[dict[str, Moments], Tensor]]:
        """For each estimator the moments of its gradient by program, and the values of its bound."""
        moments = [{program: Moments() for program in self.first.params_by_program} for _ in self.every]
        values: list[list[float]] = [[] for _ in self.every]
        for seed in seeds:
            for i, (loss, grads) in enumerate(self.gradients(seed)):
                values[i].append(-float(loss))
                for program, vector in self.every[i].by_program(grads).items():
                    moments[i][program].add(vector)
                advance()
        return [(m, torch.tensor(v, dtype=torch.float64)) for m, v in zip(moments, values, strict=True)]

    def gradients(self, seed: int) -> list[tuple[Tensor, Grads]]:
        """The mean loss and the gradients of each estimator, as from `Gradients.gradient`."""
        with fork_rng(seed), Running():
            run = self._run()
        of_observations: list[tuple[Tensor, list[Tensor | None]]] = []
        result = []
        for each in self.every:
            c = _coefficients(each.objective, run)
            assert isinstance(c.model, Tensor)
            by_model = torch.where(c.model.abs() < TINY, TINY, c.model)
            found = [slopes for factor, slopes in of_observations if torch.equal(factor, by_model)]
            if not found:
                whole = (by_model * run.observed).sum()
                at = [*self.first.params, *run.for_model]
                found = [list(torch.autograd.grad(whole, at, retain_graph=True, allow_unused=True))]
                of_observations.append((by_model, found[0]))
            result.append(self._gradient(each, run, c._replace(model=by_model), found[0]))
        return result

    def _run(self) -> _OneRun:
        (args, kwargs), objective = self.first.data, self.first.objective
        count, dim, model, guide = objective.programs(self.first.model, self.first.guide, args, kwargs)
        if count != 1:
            raise ValueError("the particles run one by one")
        drawn = traced(guide, args, kwargs)
        on_model, on_guide, draws, for_model = drawn.copy(), drawn.copy(), [], []
        for name, site in sample_sites(prune_subsample_sites(drawn)):
            if site["is_observed"]:
                continue
            if not site["fn"].has_rsample:
                raise ValueError(f"site {name!r} does not move")
            draws.append(DetachedDraw(site))
            for_model.append(site["value"].detach().clone().requires_grad_())
            on_model.nodes[name] = {**site, "value": for_model[-1]}
            on_guide.nodes[name] = {**site, "value": draws[-1].for_guide}
        traces = checked_pair(traced(model, args, kwargs, on=on_model), traced(guide, args, kwargs, on=on_guide), dim)
        plate = data_plate(traces, len(args[0]))
        densities = Densities(traces, plate)
        sites = list(sample_sites(traces.model))
        observed = densities.counted([(name, site) for name, site in sites if site["is_observed"]])
        latents = densities.counted([(name, site) for name, site in sites if not site["is_observed"]])
        of_guide = list(sample_sites(traces.guide))
        log_q = densities.counted(of_guide)
        unmasked = densities.drawn(of_guide, log_q)
        if observed is None or latents is None or log_q is None or unmasked is None:
            raise ValueError("the pair has no observations or no latents")
        if any(site["is_observed"] for _, site in of_guide):
            raise ValueError("the guide has terms of its own")
        return _OneRun(traces, plate, draws, for_model, observed, latents, log_q, unmasked)

    def _gradient(
        self, each: Gradients, run: _OneRun, c: Coefficients, of_observations: list[Tensor | None]
    ) -> tuple[Tensor, Grads]:
        """One estimator's loss and gradient, given the slopes of its factors times the observations' density."""
        objective, dim = each.objective, run.traces.particle_dim
        ratio: Any = 1.0
        if type(objective) is elbos.MeanField:
            direct = moved = -_kl(run).sum() / objective.num_particles
            value = (run.observed.sum() / objective.num_particles + direct).detach()
        else:
            direct = (c.model * run.latents).sum() + (c.guide * run.log_q).sum() + (c.score_r * run.drawn).sum()
            moved = (c.path * (run.latents - run.log_q)).sum()
            value = c.value.sum()
            ratio = c.path / c.model
        count = len(self.first.params)
        slopes: list[Tensor | None] = [None] * len(run.leaves)
        if moved.requires_grad:
            slopes = list(torch.autograd.grad(moved, run.leaves, retain_graph=True, allow_unused=True))
        for i, draw in enumerate(run.draws):
            slope: Any = sum(s for s in (slopes[i], slopes[len(run.draws) + i]) if s is not None)
            seen = of_observations[count + i]
            if seen is not None:
                slope = slope + (seen if not isinstance(ratio, Tensor) else draw.expand(ratio, run.plate, dim) * seen)
            if isinstance(slope, Tensor) and draw.draw.requires_grad:
                direct = direct + (slope * draw.draw).sum()
        grads: list[Tensor | None] = [None] * count
        if direct.requires_grad and count:
            grads = list(torch.autograd.grad(direct, self.first.params, retain_graph=True, allow_unused=True))
        result = {}
        for param, own, seen in zip(self.first.params, grads, of_observations[:count], strict=True):
            total: Any = sum(g for g in (own, seen) if g is not None)
            result[id(param)] = -total / each.n if isinstance(total, Tensor) else torch.zeros_like(param)
        return -value / each.n, result


def _coefficients(objective: Any, run: _OneRun) -> Coefficients:
    """The factors of an estimator's gradient; for the two that are a plain mean of the log-weights, even ones."""
    with torch.no_grad():
        log_w = run.observed + run.latents - run.log_q
        if isinstance(objective, elbos.SurrogateELBO):
            found: Coefficients = objective.coefficients(log_w)
            return found
        even = torch.full_like(log_w, 1 / len(log_w))
        return Coefficients(log_w.mean(0), model=even, path=even, guide=-even)


def _kl(run: _OneRun) -> Tensor:
    """The sum of the KL terms as `MeanField` has them, a 0-d tensor."""
    known = kl_sites(run.traces)
    terms = [
        scaled_kl(name, q, run.traces.model.nodes.get(name), known.get(name)).sum()
        for name, q in sample_sites(run.traces.guide)
    ]
    return torch.stack(terms).sum()


def _differences(pairs: list[tuple[Tensor, Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
    return [a - b for a, b in pairs], [b for _, b in pairs]
