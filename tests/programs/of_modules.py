"""Modules of Pyro and of torch: parameters, samples instead of weights, dropout, batch normalization."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import Tensor, nn
from torch.distributions import constraints

from tests.programs.entry import Pair, program
from tests.programs.of_globals import SHARED

X = torch.tensor([0.4, -1.2, 2.0, 0.1, -0.5, 1.3])
LOG_P = dist.Normal(0.0, math.sqrt(2)).log_prob(X)
LINEAR: Any = PyroModule[nn.Linear]


class Model(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.scale: Any = PyroParam(torch.tensor(1.0), constraint=constraints.positive)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, self.scale), obs=x)


class Guide(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.head = LINEAR(1, 1)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.head(x.unsqueeze(-1)).squeeze(-1), 0.8))


@program()
def pyro_modules() -> Pair:
    """a model and a guide that are `PyroModule`s"""
    return Pair(Model(), Guide(), (X,), exact=LOG_P)


class Bayesian(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.w: Any = PyroSample(dist.Normal(torch.zeros(2), 1.0).to_event(1))

    def forward(self, inputs: Tensor, x: Tensor) -> None:
        w = self.w
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal((inputs * w).sum(-1), 1.0), obs=x)


@program(SHARED, per_datum=False)
def sampled_weights() -> Pair:
    """weights that are a `PyroSample`"""
    torch.manual_seed(3)
    inputs = torch.randn(6, 2)

    def guide(inputs: Tensor, x: Tensor) -> None:
        pyro.sample("w", dist.Normal(pyro.param("loc", torch.zeros(2)), 0.5).to_event(1))

    exact = dist.MultivariateNormal(torch.zeros(6), inputs @ inputs.T + torch.eye(6)).log_prob(X).reshape(1)
    return Pair(Bayesian(), guide, (inputs, X), exact=exact)


def with_layer(layer: nn.Module) -> Pair:
    body, head = nn.Linear(1, 4), nn.Linear(4, 1)
    encoder = nn.Sequential(body, layer, head)
    head.weight.data *= 0.2

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(encoder(x.unsqueeze(-1)).squeeze(-1), 0.9))

    encoder.eval()  # what questions look at; steps are put in training mode by their caller
    return Pair(model, guide, (X,), exact=LOG_P)


@program()
def dropout() -> Pair:
    """an encoder with dropout"""
    return with_layer(nn.Dropout(0.5))


@program()
def dropout_of_zero() -> Pair:
    """an encoder with a dropout of 0, in training mode"""
    pair = with_layer(nn.Dropout(0.0))
    return pair


@program()
def batch_normalization() -> Pair:
    """an encoder with batch normalization"""
    return with_layer(nn.BatchNorm1d(4))


@program()
def lazy_layers() -> Pair:
    """a layer that learns its input's size at its first run"""
    encoder = nn.LazyLinear(1)
    encoder(X.unsqueeze(-1))
    encoder.weight.data.fill_(0.4)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(encoder(x.unsqueeze(-1)).squeeze(-1), 0.8))

    return Pair(Model(), guide, (X,), exact=LOG_P)
