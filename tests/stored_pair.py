"""The class of a stored run: it must stay as it is, so that the run can be loaded forever."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor, nn

__all__ = ["StoredPair"]

outside = nn.Sequential(nn.Linear(2, 64), nn.BatchNorm1d(64))


class StoredPair(nn.Module):
    """State in all places: a network of the pair, one of the module, and Pyro's parameter store."""

    def __init__(self, width: int = 2) -> None:
        super().__init__()
        self.encoder = nn.Linear(64, width)

    def model(self, x: Tensor) -> None:
        pyro.module("outside", outside)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=outside(z)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("encoder", self.encoder)
        scale = pyro.param("scale", lambda: torch.full((2,), 0.5), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x), scale).to_event(1))
