"""A Gaussian pair whose model and guide have one mask and one subsampled plate."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_vae.oracles import Oracle
from pyro_vae.pair.names import unique_name

__all__ = ["Masked"]


class Masked(Oracle):
    r"""`z ~ N(0, 1), x ~ N(a z, 1), q(z|x) = N(m x, e^{2t})`, the latent and the datum counted every other time.

    The batch is one of `times` as many data. Exact in closed form.

    Args:
        times: By how much the plate scales the batch up.
        scale: Of the latent, on both sides.
    """

    guide_parameters = ("m", "t")
    reparameterized = True
    is_bound = False

    def __init__(self, times: int = 5, scale: float = 1.0) -> None:
        super().__init__()
        self.a, self.m, self.t = (nn.Parameter(torch.tensor(v, dtype=torch.float64)) for v in (0.8, 0.3, -0.4))
        self.times, self.scale = times, scale
        self.keep: Any = torch.zeros(0, dtype=torch.bool)

    def num_data(self, x: Tensor) -> int:
        return self.times * len(x)

    def _plate(self, x: Tensor) -> Any:
        if len(self.keep) != len(x):
            self.keep = torch.arange(len(x)) % 2 == 0
        return pyro.plate("data", self.times * len(x), subsample=torch.arange(len(x)), dim=-1)

    def model(self, x: Tensor) -> None:
        pyro.module(unique_name(self), self)
        with self._plate(x), poutine.mask(mask=self.keep):
            with poutine.scale(scale=self.scale):
                z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
            pyro.sample("x", dist.Normal(self.a * z, 1.0), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module(unique_name(self), self)
        with self._plate(x), poutine.mask(mask=self.keep), poutine.scale(scale=self.scale):
            pyro.sample("z", dist.Normal(self.m * x, self.t.exp()))

    def simulate(self, n: int) -> Tensor:
        with torch.no_grad():
            return (1 + self.a**2).sqrt() * torch.randn(n, dtype=torch.float64)

    def _counted(self, x: Tensor) -> Tensor:
        return (torch.arange(len(x)) % 2 == 0).to(x)

    def elbo(self, x: Tensor, weight: float = 1.0) -> Tensor:
        square, variance = (self.m * x).square(), (2 * self.t).exp()
        kl = 0.5 * (square + variance - 1) - self.t
        error = (x - self.a * self.m * x).square() + self.a.square() * variance
        given = -0.5 * math.log(2 * math.pi) - error / 2
        return self._counted(x) * (given - weight * self.scale * kl)

    def log_prob(self, x: Tensor) -> Tensor:
        return self._counted(x) * dist.Normal(torch.zeros_like(x), (1 + self.a**2).sqrt()).log_prob(x)
