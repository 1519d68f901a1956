"""A pair in which a later site of the guide reads all elements of an inner plate, and the model reads it for each."""

from __future__ import annotations

import itertools

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae.oracles import Oracle
from pyro_vae.oracles.gaussian import normal_grid
from pyro_vae.pair.names import unique_name

__all__ = ["Pooled"]


class Pooled(Oracle):
    r"""Two bits in an inner plate, and a Gaussian outside of it that reads their mean in the guide.

    .. math:: z \sim N(0, 1), \; b_p \sim \mathrm{Bernoulli}(\sigma(g z)), \; x \sim N(z + w \bar b, 0.8^2); \qquad
        q(b_p|x) \text{ with logits } h x + p, \; q(z|b, x) = N(2 r \bar b + u x, 0.7^2)

    What a bit's draw costs is in the density of the other bit, too. Exact by enumeration on a fine grid.
    """

    guide_parameters = ("h", "r", "u")

    def __init__(self) -> None:
        super().__init__()
        values = (-2.0, 0.8, 0.6, 1.3, 0.3)
        self.g, self.w, self.h, self.r, self.u = (nn.Parameter(torch.tensor(v, dtype=torch.float64)) for v in values)

    def model(self, x: Tensor) -> None:
        pyro.module(unique_name(self), self)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
            with pyro.plate("parts", 2, dim=-2):
                b = pyro.sample("b", dist.Bernoulli(logits=self.g * z))
            pyro.sample("x", dist.Normal(z + self.w * b.mean(-2, keepdim=True), 0.8), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module(unique_name(self), self)
        with pyro.plate("data", len(x), dim=-1):
            with pyro.plate("parts", 2, dim=-2):
                b = pyro.sample("b", dist.Bernoulli(logits=self.h * x + torch.arange(2.0).to(x).unsqueeze(-1)))
            pyro.sample("z", dist.Normal(2 * self.r * b.mean(-2, keepdim=True) + self.u * x, 0.7))

    def simulate(self, n: int) -> Tensor:
        with torch.no_grad():
            z = torch.randn(n, dtype=torch.float64)
            b = dist.Bernoulli(logits=self.g * z).sample((2,)).mean(0)
            return z + self.w * b + 0.8 * torch.randn_like(z)

    def _terms(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        noise, log_mass = normal_grid(1, x)
        b = torch.tensor(list(itertools.product((0.0, 1.0), repeat=2))).to(x).reshape(4, 2, 1)
        part = torch.arange(2.0).to(x).unsqueeze(-1)
        z = 2 * self.r * b.mean(-2) + self.u * x + 0.7 * noise.unsqueeze(-1)  # (M, 4, N)
        q_b = dist.Bernoulli(logits=self.h * x + part).log_prob(b).sum(-2)  # (4, N)
        p_b = dist.Bernoulli(logits=self.g * z.unsqueeze(-2)).log_prob(b).sum(-2)
        q_z = dist.Normal(2 * self.r * b.mean(-2) + self.u * x, 0.7).log_prob(z)
        latents = dist.Normal(torch.zeros_like(z), 1.0).log_prob(z) + p_b - q_z - q_b
        given = dist.Normal(z + self.w * b.mean(-2), 0.8).log_prob(x)
        return given, latents, (log_mass.reshape(-1, 1, 1) + q_b)

    def elbo(self, x: Tensor, weight: float = 1.0) -> Tensor:
        given, latents, log_q = self._terms(x)
        return (log_q.exp() * (given + weight * latents)).sum((0, 1))

    def weights(self, x: Tensor) -> tuple[Tensor, Tensor]:
        given, latents, log_q = self._terms(x)
        return (given + latents).flatten(0, 1), log_q.flatten(0, 1)

    def log_prob(self, x: Tensor) -> Tensor:
        noise, log_mass = normal_grid(1, x, points=400)
        b = torch.tensor([0.0, 1.0, 2.0]).to(x)
        bits = dist.Binomial(2, logits=self.g * noise).log_prob(b)  # (M, 3)
        given = dist.Normal((noise + self.w * b / 2).unsqueeze(-1), 0.8).log_prob(x)
        return (log_mass.reshape(-1, 1, 1) + bits.unsqueeze(-1) + given).logsumexp((0, 1))
