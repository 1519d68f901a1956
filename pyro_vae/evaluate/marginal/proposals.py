"""Importance weights of a pair under three proposals: the guide, the prior, and their mixture."""

from __future__ import annotations

import math

import pyro
import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyro_vae.elbo.estimators.terms import points_without_density
from pyro_vae.pair.masks import under_model_masks
from pyro_vae.pair.particles import joint_log_weight
from pyro_vae.pair.plates import data_plate, sum_to_data
from pyro_vae.pair.protocol import Data, Program
from pyro_vae.pair.running import traced
from pyro_vae.pair.tracing import PARTICLE_PLATE, PairTrace, checked_pair, log_prob, sample_sites, trace_pair

__all__ = ["NoDensity", "Proposal", "prior_traces"]


def prior_traces(model: Program, data: Data, num_particles: int | None, nesting: int) -> PairTrace:
    """A run of the model on latents from its prior, with these latents as the guide's trace."""
    if num_particles is not None:
        model = pyro.plate(PARTICLE_PLATE, num_particles, dim=-1 - nesting)(model)
    run = traced(model, *data)
    latents = Trace()
    for name, site in sample_sites(run):
        if not site["is_observed"]:
            latents.add_node(name, **site)
    return checked_pair(run, latents, None if num_particles is None else -1 - nesting)


class NoDensity(ValueError):
    """A guide has no density at a continuous site, so there are no importance weights."""


class Proposal:
    r"""Draws log-weights per datum from `(1 - a) q(z|x) + a p(z)`.

    The numbers of draws from the two components are fixed, and their order is random. Each draw is weighted with the
    density of the mixture (the balance heuristic), so the mean weight is unbiased for p(x):

    .. math:: w = \frac{p(x, z)}{(1 - a) q(z|x) + a p(z)} \le \frac{p(x|z)}{a}

    Args:
        model, guide: The pair.
        prior_fraction: a, between 0 (the guide alone) and 1 (the prior alone).
        vectorize: Whether samples run as a leading dimension, or one at a time.
        nesting: The number of batch dimensions of the pair.

    Reference: Hesterberg 1995 (defensive mixtures); Veach and Guibas 1995 (the balance heuristic).
    """

    def __init__(self, model: Program, guide: Program, prior_fraction: float, vectorize: bool, nesting: int) -> None:
        self.model, self.guide, self.prior_fraction = model, guide, prior_fraction
        self.vectorize, self.nesting = vectorize, nesting

    def plan(self, num_samples: int) -> Tensor:
        """Which of some samples are drawn from the prior, `(K,)`."""
        count = 0 if self.prior_fraction == 0 else max(1, round(self.prior_fraction * num_samples))
        return torch.randperm(num_samples) < count if 0 < count < num_samples else torch.full((num_samples,), count > 0)

    def log_weights(self, data: Data, from_prior: Tensor, prior_fraction: float) -> Tensor:
        """Log-weights `(K, N)` for the samples of a plan, or of a part of it.

        `prior_fraction` is that of the whole plan.
        """
        parts = []
        for prior in (False, True):
            count = int((from_prior == prior).sum())
            if count and self.vectorize:
                parts.append(self.draw_log_weights(data, count, prior, prior_fraction))
            elif count:
                parts.append(
                    torch.stack([self.draw_log_weights(data, None, prior, prior_fraction) for _ in range(count)])
                )
        if len(parts) == 1:
            return parts[0].double()
        order = from_prior.int().argsort(stable=True).argsort()  # from "guide first" back to the plan's order
        return torch.cat(parts).double()[order.to(parts[0].device)]

    def draw_log_weights(self, data: Data, count: int | None, prior: bool, prior_fraction: float) -> Tensor:
        """Log-weights of `count` samples, all from the prior or all from the guide, `(K, N)`; of one for None."""
        args, kwargs = data
        n = len(args[0])
        if prior:
            traces = prior_traces(self.model, data, count, self.nesting)
        else:
            traces = trace_pair(self.model, self.guide, args, kwargs, num_particles=count, nesting=self.nesting)
        if prior_fraction in (0, 1):
            return joint_log_weight(traces, data_plate(traces, n))
        if prior:
            guide = self.guide
            if count is not None:
                guide = pyro.plate(PARTICLE_PLATE, count, dim=traces.particle_dim)(guide)
            replayed = traced(guide, args, kwargs, on=traces.guide)
            traces = checked_pair(traces.model, replayed, traces.particle_dim)
        traces = under_model_masks(traces)
        plate = data_plate(traces, n)
        joint, q, p = torch.zeros(()), torch.zeros(()), torch.zeros(())
        for name, site, sign in traces.sites():
            value = sum_to_data(log_prob(name, site), plate, traces.particle_dim)
            if sign < 0:
                q = q + value
            else:
                joint = joint + value
                p = p if site["is_observed"] else p + value
        return joint - torch.logaddexp(q + math.log1p(-prior_fraction), p + math.log(prior_fraction))

    def check(self, data: Data) -> None:
        """Refuse a guide whose density is unknown.

        Raises:
            ValueError: For a point mass at a continuous site; for an auxiliary site, which only the guide has, where
                draws from the prior are mixed in.
        """
        if self.prior_fraction == 1:
            return
        traces = trace_pair(self.model, self.guide, *data)
        extra = [name for name, site in sample_sites(traces.guide) if site["infer"].get("is_auxiliary")]
        for name in points_without_density(traces):
            raise NoDensity(
                f"the guide has a point mass at the continuous site {name!r}, which has no density, so there "
                "are no importance weights. Use a guide with a density; or method='prior' "
                "or 'ais', which need no guide, if the prior is a density"
            )
        if self.prior_fraction > 0 and extra:
            raise ValueError(
                f"the guide's auxiliary site {extra[0]!r} is not in the model, so the density of a mixture "
                "with the prior is unknown: use defensive=0"
            )
