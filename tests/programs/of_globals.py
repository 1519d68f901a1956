"""Latents that all data share, with and without latents of each datum."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoDelta, AutoNormal
from torch import Tensor
from torch.distributions import constraints

from tests.programs.entry import Pair, program

X = torch.tensor([0.4, -1.2, 2.0, 0.1, -0.5, 1.3])
POINT = dict.fromkeys(["log_marginal", "compare_elbos"], "the guide has a point mass at the continuous site")
SHARED = {
    "latent_report": "is not inside a plate over the",
    "fit_local": "is not inside a plate over the",
    "posterior_samples": "is not inside a plate over the",
}


def joint(prior: float, noise: float, x: Tensor) -> Tensor:
    """log p(D) of a mean with a normal prior, and normal data around it."""
    n = len(x)
    cov = prior**2 * torch.ones(n, n) + noise**2 * torch.eye(n)
    return dist.MultivariateNormal(torch.zeros(n), cov).log_prob(x).reshape(1)


def mean_model(x: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x)


def mean_guide(x: Tensor) -> None:
    loc = pyro.param("loc", torch.tensor(0.3))
    scale = pyro.param("scale", torch.tensor(0.5), constraint=constraints.positive)
    pyro.sample("mu", dist.Normal(loc, scale))


@program(SHARED, per_datum=False)
def shared_mean() -> Pair:
    """a latent that all data share"""
    return Pair(mean_model, mean_guide, (X,), exact=joint(2.0, 1.0, X))


@program(SHARED, per_datum=False)
def shared_and_local() -> Pair:
    """a latent that all data share, and one of each datum"""

    def model(x: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(mu, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor(0.3))
        mu = pyro.sample("mu", dist.Normal(loc, 0.6))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((mu + x) / 2, 0.7))

    return Pair(model, guide, (X,), exact=joint(1.0, math.sqrt(2), X))


@program(SHARED, per_datum=False)
def regression() -> Pair:
    """Bayesian linear regression: inputs and outputs as two arguments"""
    torch.manual_seed(3)
    inputs = torch.randn(6, 2)

    def model(inputs: Tensor, x: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal((inputs * w).sum(-1), 1.0), obs=x)

    def guide(inputs: Tensor, x: Tensor) -> None:
        loc = pyro.param("loc", torch.zeros(2))
        pyro.sample("w", dist.Normal(loc, 0.5).to_event(1))

    exact = dist.MultivariateNormal(torch.zeros(6), inputs @ inputs.T + torch.eye(6)).log_prob(X).reshape(1)
    return Pair(model, guide, (inputs, X), exact=exact)


@program(SHARED, per_datum=False)
def weighed_minibatch() -> Pair:
    """a shared latent and a minibatch that stands for 60 data"""

    def model(x: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
        with pyro.plate("data", 60, subsample_size=len(x)):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    return Pair(model, mean_guide, (X,), exact=joint(2.0, 1.0, X))


@program(
    SHARED
    | {
        "log_marginal": "the guide has a point mass at the continuous site",
        "compare_elbos": "the guide has a point mass at the continuous site",
    },
    per_datum=False,
    without=("ReweightedWakeSleep",),
)
def maximum_a_posteriori() -> Pair:
    """AutoDelta: point masses for the parameters of the data"""
    guide = AutoDelta(mean_model)
    guide(X)
    return Pair(mean_model, guide, (X,))


@program(SHARED, per_datum=False)
def auto_normal_shared() -> Pair:
    """AutoNormal on a latent that all data share"""
    guide = AutoNormal(mean_model, init_scale=0.5)
    guide(X)
    return Pair(mean_model, guide, (X,), exact=joint(2.0, 1.0, X))


@program(
    {
        "fit": "the data hold none: a pair that has its data itself is trained by pv.SVI(model, guide).step()",
        "latent_report": "no plate holds all sites of the pair",
        "fit_local": "the first argument after the pair must be the tensor of data, (N, ...)",
        "posterior_samples": "the first argument after the pair must be the tensor of data, (N, ...)",
    },
    per_datum=False,
)
def without_arguments() -> Pair:
    """the data in a closure: `svi.step()`"""
    return Pair(lambda: mean_model(X), lambda: mean_guide(X), (), exact=joint(2.0, 1.0, X))
