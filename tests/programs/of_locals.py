"""Latents of each datum: one and several, in chains and trees, on every support."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from tests.programs.entry import SCORE, Pair, program

X = torch.tensor([0.4, -1.2, 2.0, 0.1, -0.5, 1.3])
NOT_CONTINUOUS = "Hamiltonian moves need continuous latents"


def param(name: str, value: float, constraint: constraints.Constraint = constraints.real) -> Tensor:
    return pyro.param(name, torch.tensor(value), constraint=constraint)


def normal_guide(x: Tensor) -> None:
    loc, scale = param("loc", 0.4), param("scale", 0.8, constraints.positive)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc * x, scale))


@program()
def one_latent() -> Pair:
    """a normal latent"""

    def model(x: Tensor) -> None:
        shift = param("shift", 0.1)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(shift, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    return Pair(model, normal_guide, (X,), exact=dist.Normal(0.1, math.sqrt(2)).log_prob(X))


@program()
def networks() -> Pair:
    """an encoder and a decoder, a vector of latents"""
    encoder, decoder, x = nn.Linear(4, 4), nn.Linear(2, 4), torch.randn(6, 4)

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 0.7).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            loc, raw = encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(0.3 * loc, (0.2 * raw - 0.1).exp()).to_event(1))

    w = decoder.weight.detach()
    marginal = dist.MultivariateNormal(decoder.bias.detach(), w @ w.T + 0.49 * torch.eye(4))
    return Pair(model, guide, (x,), exact=marginal.log_prob(x))


@program()
def two_latents() -> Pair:
    """two independent latents"""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
            b = pyro.sample("b", dist.Normal(0.5, 0.5))
            pyro.sample("x", dist.Normal(a + b, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        slope = param("slope", 0.3)
        with pyro.plate("data", len(x)):
            pyro.sample("a", dist.Normal(slope * x, 0.8))
            pyro.sample("b", dist.Normal(0.5, 0.5))

    return Pair(model, guide, (X,), exact=dist.Normal(0.5, 1.5).log_prob(X))


def chain_model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.Normal(a, 1.0))
        pyro.sample("x", dist.Normal(b, 1.0), obs=x)


@program()
def chain() -> Pair:
    """a chain of latents, the guide in the model's order"""

    def guide(x: Tensor) -> None:
        slope = param("slope", 0.3)
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(slope * x, 0.8))
            pyro.sample("b", dist.Normal((a + x) / 2, 0.7))

    return Pair(chain_model, guide, (X,), exact=dist.Normal(0.0, math.sqrt(3)).log_prob(X))


@program()
def chain_from_below() -> Pair:
    """a chain of latents, the guide in the reverse order"""

    def guide(x: Tensor) -> None:
        slope = param("slope", 0.6)
        with pyro.plate("data", len(x)):
            b = pyro.sample("b", dist.Normal(slope * x, 0.8))
            pyro.sample("a", dist.Normal(b / 2, 0.7))

    return Pair(chain_model, guide, (X,), exact=dist.Normal(0.0, math.sqrt(3)).log_prob(X))


@program()
def tree() -> Pair:
    """one latent above two observations, with a deterministic site"""
    y = X + 0.3

    def model(x: Tensor, y: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            loc = pyro.deterministic("loc", 1.0 * z)
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)
            pyro.sample("y", dist.Normal(loc, 1.0), obs=y)

    def guide(x: Tensor, y: Tensor) -> None:
        slope = param("slope", 0.3)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(slope * (x + y), 0.6))

    both = dist.MultivariateNormal(torch.zeros(2), torch.tensor([[2.0, 1.0], [1.0, 2.0]]))
    return Pair(model, guide, (X, y), exact=both.log_prob(torch.stack([X, y], -1)))


@program()
def unit_interval() -> Pair:
    """a beta latent and binary data"""
    x = torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0, 1.0])

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            p = pyro.sample("p", dist.Beta(2.0, 3.0))
            pyro.sample("x", dist.Bernoulli(p), obs=x)

    def guide(x: Tensor) -> None:
        a = param("a", 2.0, constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("p", dist.Beta(a + x, torch.tensor(3.5)))

    return Pair(model, guide, (x,), exact=dist.Bernoulli(torch.tensor(0.4)).log_prob(x))


@program()
def counts() -> Pair:
    """a gamma latent and int64 counts under a Poisson"""
    x = torch.tensor([0, 3, 1, 7, 2, 2])

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
            pyro.sample("x", dist.Poisson(rate), obs=x)

    def guide(x: Tensor) -> None:
        a = param("a", 2.5, constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("rate", dist.Gamma(a + x, torch.tensor(2.0)))

    exact = dist.NegativeBinomial(2.0, probs=torch.tensor(0.5)).log_prob(x.float())
    return Pair(model, guide, (x,), exact=exact)


@program()
def simplex() -> Pair:
    """a Dirichlet latent and one-hot data"""
    x = torch.eye(3)[torch.tensor([0, 1, 2, 2, 1, 0])]

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            p = pyro.sample("p", dist.Dirichlet(torch.tensor([1.0, 2.0, 3.0])))
            pyro.sample("x", dist.OneHotCategorical(p), obs=x)

    def guide(x: Tensor) -> None:
        weight = param("weight", 0.8, constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("p", dist.Dirichlet(torch.tensor([1.5, 2.0, 2.5]) + weight * x))

    return Pair(model, guide, (x,), exact=(x @ torch.tensor([1.0, 2.0, 3.0]) / 6).log())


@program(
    {
        "posterior_samples": "onto which no bijection from real values is known",
        "fit_local": "onto which no bijection from real values is known",
    },
)
def circle() -> Pair:
    """a latent on the unit circle"""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.ProjectedNormal(x.new_tensor([1.0, 0.5])))
            pyro.sample("x", dist.Normal(z[..., 0], 1.0), obs=x)

    def guide(x: Tensor) -> None:
        slope = param("slope", 0.3)
        with pyro.plate("data", len(x)):
            loc = torch.stack([1.0 + slope * x, 0.5 + 0 * x], -1)
            pyro.sample("z", dist.ProjectedNormal(loc))

    return Pair(model, guide, (X,))


@program(
    {"posterior_samples": NOT_CONTINUOUS, "fit_local": "is discrete ("}, elbos=SCORE, warns=("not_reparameterized",)
)
def binary() -> Pair:
    """a Bernoulli latent, not enumerated"""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Bernoulli(0.3))
            pyro.sample("x", dist.Normal(2 * c - 1, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        slope = param("slope", 1.0)
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.Bernoulli(logits=slope * x))

    parts = [math.log(w) + dist.Normal(m, 1.0).log_prob(X) for w, m in ((0.7, -1.0), (0.3, 1.0))]
    return Pair(model, guide, (X,), exact=torch.stack(parts).logsumexp(0))
