"""A pair with bits in an inner plate, after a Gaussian on which they depend."""

from __future__ import annotations

import itertools
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from pyro_vae.oracles.base import Oracle, normal_parameters
from pyro_vae.oracles.gaussian import normal_grid
from pyro_vae.pair.names import unique_name
from pyro_vae.support.arguments import checked_from

__all__ = ["Grid"]


class Grid(Oracle):
    r"""Bits of event shape (1, 2), two of them in another plate, under a mask, after a Gaussian on which they depend.

    .. math:: z \sim N(0, 1), \; b_{pi} \sim \mathrm{Bernoulli}, \quad
        x_0 \sim N\big(z + \textstyle\prod_p \sum_i b_{pi} w_i, 1\big); \qquad
        q(z|x) = N(s x_0, 0.7^2), \; q(b_p|z) \text{ with logits } (z + p/2) h

    for the parts p = 0, 1. A datum is the observation `x_0` and a switch `x_1`: unless that is positive, the datum's
    bits and observation are masked. Exact by enumeration of the bits on a fine grid over z, for data that are not
    masked: `log_prob`, `elbo` and `iwae`, with their gradients.

    Args:
        name: Of the site of the bits.
        full_size: Size of the data that `x` is a minibatch of; None takes `x` for all data.
    """

    guide_parameters = ("slope", "shift")

    @checked_from(full_size=1)
    def __init__(self, name: str = "bits", full_size: int | None = None) -> None:
        super().__init__()
        normal = normal_parameters(1)
        self.slope, self.shift, self.prior, self.weight = normal(1), normal(2), normal(2), normal(2)
        self.name, self.full_size = name, full_size

    def plate(self, x: Tensor) -> Any:
        """The plate over the data, of `full_size` if that is given."""
        if self.full_size is None:
            return pyro.plate("data", len(x), dim=-1)
        return pyro.plate("data", self.full_size, subsample=torch.arange(len(x), device=x.device), dim=-1)

    def model(self, x: Tensor) -> None:
        """The generative model of `x`, `(N, 2)`."""
        pyro.module(unique_name(self), self)
        keep: Any = x[..., 1] > 0
        with self.plate(x):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            with poutine.mask(mask=keep), pyro.plate("parts", 2, dim=-2):
                b = pyro.sample(self.name, dist.Bernoulli(logits=self.prior).expand([1, 2]).to_event(2))
            with poutine.mask(mask=keep):
                pyro.sample("x", dist.Normal(z + self.signal(b, -2, keepdim=True), 1.0), obs=x[..., 0])

    def guide(self, x: Tensor) -> None:
        """The guide: z, then the bits."""
        pyro.module(unique_name(self), self)
        keep: Any = x[..., 1] > 0
        with self.plate(x):
            z = pyro.sample("z", dist.Normal(self.slope * x[..., 0], 0.7))
            with poutine.mask(mask=keep), pyro.plate("parts", 2, dim=-2):
                logits = self.logits(z, torch.arange(2.0, device=x.device).reshape(2, 1))
                pyro.sample(self.name, dist.Bernoulli(logits=logits.unsqueeze(-2)).to_event(2))

    def logits(self, z: Tensor, part: Tensor) -> Tensor:
        """Of q(b|z), `(*, 2)`."""
        return (z + 0.5 * part).unsqueeze(-1) * self.shift

    def signal(self, b: Tensor, part_dim: int, keepdim: bool = False) -> Tensor:
        """What the bits, `(*, 1, 2)`, add to the observation's mean: a product over the parts."""
        return (b.sum(-2) @ self.weight).prod(part_dim, keepdim=keepdim)

    def states(self) -> Tensor:
        """Every state of the bits, `(16, 2, 1, 1, 2)`: parts, then a datum's dimension, then the event's."""
        return torch.tensor(list(itertools.product((0.0, 1.0), repeat=4))).to(self.weight).reshape(16, 2, 1, 1, 2)

    def simulate(self, n: int) -> Tensor:
        """`n` data from the model, `(n, 2)`, none of them masked."""
        with torch.no_grad():
            b = dist.Bernoulli(logits=self.prior).sample((n, 2, 1))  # (n, parts, 1, 2)
            mean = self.signal(b, -1)
            return torch.stack([mean + 2**0.5 * torch.randn_like(mean), torch.ones_like(mean)], -1)

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x), `(N,)`: a mixture of Gaussians over the states of the bits."""
        b = self.states()
        log_p = dist.Bernoulli(logits=self.prior).log_prob(b).sum((-4, -2, -1))  # (16, 1)
        return (log_p + dist.Normal(self.signal(b, 1), 2**0.5).log_prob(x[..., 0])).logsumexp(0)

    def log_weight_parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """log p(x|z, b), log p(z, b) - log q(z, b|x), and log q, of points `(M, 16, N)` or `(M, 16, 1)`."""
        noise, log_mass = normal_grid(1, x)
        q_z, b = dist.Normal(self.slope * x[..., 0], 0.7), self.states()
        z = q_z.mean + 0.7 * noise  # (M, N)
        logits = self.logits(z.unsqueeze(1), torch.arange(2.0).to(x).reshape(2, 1)).unsqueeze(1)  # (M, 1, 2, N, 2)
        log_q = dist.Bernoulli(logits=logits).log_prob(b.squeeze(-2)).sum((-1, -3))  # (M, 16, N)
        log_p = dist.Bernoulli(logits=self.prior).log_prob(b).sum((-4, -2, -1))
        given = dist.Normal(z.unsqueeze(1) + self.signal(b, 1), 1.0).log_prob(x[..., 0])
        log_z = dist.Normal(torch.zeros_like(z), 1.0).log_prob(z) - q_z.log_prob(z)
        return given, log_p - log_q + log_z.unsqueeze(1), log_q + log_mass.reshape(-1, 1, 1)

    def elbo(self, x: Tensor, weight: float = 1.0) -> Tensor:
        """The ELBO with its KL times `weight`, `(N,)`."""
        given, log_ratio, log_q = self.log_weight_parts(x)
        return (log_q.exp() * (given + weight * log_ratio)).sum((0, 1))

    def weights(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Of every state of the bits, on a grid over z."""
        given, log_ratio, log_q = self.log_weight_parts(x)
        return (given + log_ratio).flatten(0, 1), log_q.flatten(0, 1)
