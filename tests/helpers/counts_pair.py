"""A pair unlike the library's own: counts, two latent sites of other names and supports, an extra argument."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

__all__ = ["counts_guide", "counts_log_prob", "counts_model", "counts_posterior_mean"]


def counts_model(x: Tensor, exposure: Tensor) -> None:
    """`mood ~ N(0, 1)`, `rate ~ LogNormal(mood, 0.5)`, `x ~ Poisson(rate * exposure)`, all `(N,)`."""
    with pyro.plate("people", len(x)):
        mood = pyro.sample("mood", dist.Normal(torch.zeros_like(exposure), 1.0))
        rate = pyro.sample("rate", dist.LogNormal(mood, 0.5))
        pyro.sample("calls", dist.Poisson(rate * exposure), obs=x)


def counts_guide(x: Tensor, exposure: Tensor) -> None:
    """A guide in the opposite order, wide enough."""
    with pyro.plate("people", len(x)):
        rate = pyro.sample("rate", dist.LogNormal(((x + 1) / exposure).log() / 2, 1.2))
        pyro.sample("mood", dist.Normal(0.8 * rate.log(), 0.7))


def _log_joint(x: Tensor, exposure: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A grid of moods, `(1, G)`, and log-rates, `(G, 1)`, and log p(x, mood, log rate) on it, `(N, G, G)`."""
    grid = torch.linspace(-9, 9, 721, dtype=torch.float64)
    mood, log_rate = grid, grid.unsqueeze(-1)
    prior = dist.Normal(0.0, 1.0).log_prob(mood) + dist.Normal(mood, 0.5).log_prob(log_rate)
    likelihood = dist.Poisson(grid.exp() * exposure.unsqueeze(-1)).log_prob(x.unsqueeze(-1))
    cell = 2 * (grid[1] - grid[0]).log()
    return mood.unsqueeze(0), log_rate, prior + likelihood.unsqueeze(-1) + cell


def counts_log_prob(x: Tensor, exposure: Tensor) -> Tensor:
    """log p(x) by quadrature, `(N,)`."""
    return _log_joint(x, exposure)[2].logsumexp((-2, -1))


def counts_posterior_mean(x: Tensor, exposure: Tensor) -> tuple[Tensor, Tensor]:
    """Posterior means of mood and log rate by quadrature, each `(N,)`."""
    mood, log_rate, joint = _log_joint(x, exposure)
    p = (joint - joint.logsumexp((-2, -1), keepdim=True)).exp()
    return (p * mood).sum((-2, -1)), (p * log_rate).sum((-2, -1))
