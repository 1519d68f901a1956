"""A pair and a batch for each objective made of phases."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

import pyro_vae as pv

NAMES = ["factor_vae", "aae", "wae_gan", "gan", "ali", "veegan", "vae_gan", "alpha_gan", "vgh", "vgh++"]


class TwoPlates(nn.Module):
    """Counts in an inner plate, a label as an argument, and two latents of which one is a scalar."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder, self.encoder = nn.Linear(3, 4), nn.Linear(4, 6)

    def model(self, x: Tensor, y: Tensor) -> None:
        pyro.module("two.decoder", self.decoder)
        with pyro.plate("data", len(x), dim=-2):
            with pyro.plate("once", 1, dim=-1):
                a = pyro.sample("a", dist.Normal(y.unsqueeze(1), 1.0))
                b = pyro.sample("b", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            rate = self.decoder(torch.cat([a.unsqueeze(-1), b], -1)).squeeze(-2).exp()
            with pyro.plate("counts", 4, dim=-1):
                pyro.sample("x", dist.Poisson(rate), obs=x)

    def guide(self, x: Tensor, y: Tensor) -> None:
        pyro.module("two.encoder", self.encoder)
        h = self.encoder(x).unsqueeze(1)
        with pyro.plate("data", len(x), dim=-2), pyro.plate("once", 1, dim=-1):
            pyro.sample("a", dist.Normal(h[..., 0], h[..., 1].exp()))
            pyro.sample("b", dist.Normal(h[..., 2:4], h[..., 4:].exp()).to_event(1))


def pair_and_batch(kind: str) -> tuple[Any, tuple[Tensor, ...]]:
    if kind == "vae":
        return pv.VAE((1, 8, 8), 3, (16,)), (torch.rand(6, 1, 8, 8).bernoulli(),)
    return TwoPlates(), (torch.randint(0, 5, (6, 4)).float(), torch.arange(6.0) / 3)
