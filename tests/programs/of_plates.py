"""Plates: nested, subsampled, without a size, sequential, over an axis that is not the first."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

from tests.programs.entry import Pair, program

X = torch.tensor([0.4, -1.2, 2.0, 0.1, -0.5, 1.3])
LOG_P = dist.Normal(0.0, math.sqrt(2)).log_prob(X)


@program()
def nested_observations() -> Pair:
    """a latent of each datum, pixels in an inner plate"""
    torch.manual_seed(2)
    x = torch.randn(5, 3)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.plate("pixels", 3, dim=-1):
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        slope = pyro.param("slope", torch.tensor(0.2))
        with pyro.plate("data", len(x), dim=-2):
            pyro.sample("z", dist.Normal(slope * x.sum(-1, keepdim=True), 0.6))

    exact = dist.MultivariateNormal(torch.zeros(3), torch.ones(3, 3) + torch.eye(3)).log_prob(x)
    return Pair(model, guide, (x,), exact=exact)


@program()
def nested_latents() -> Pair:
    """a latent of each datum, and one of each pixel"""
    torch.manual_seed(2)
    x = torch.randn(5, 3)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.plate("pixels", 3, dim=-1):
                u = pyro.sample("u", dist.Normal(z, 1.0))
                pyro.sample("x", dist.Normal(u, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        slope = pyro.param("slope", torch.tensor(0.2))
        with pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(slope * x.sum(-1, keepdim=True), 0.7))
            with pyro.plate("pixels", 3, dim=-1):
                pyro.sample("u", dist.Normal((z + x) / 2, 0.7))

    exact = dist.MultivariateNormal(torch.zeros(3), torch.ones(3, 3) + 2 * torch.eye(3)).log_prob(x)
    return Pair(model, guide, (x,), exact=exact)


@program()
def minibatch() -> Pair:
    """a batch that stands for 60 data"""

    def model(x: Tensor) -> None:
        with pyro.plate("data", 60, subsample_size=len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        slope = pyro.param("slope", torch.tensor(0.4))
        with pyro.plate("data", 60, subsample_size=len(x)):
            pyro.sample("z", dist.Normal(slope * x, 0.7))

    return Pair(model, guide, (X,), exact=LOG_P)


@program({"posterior_samples": "the model cannot be run on one datum alone"})
def draws_its_minibatch() -> Pair:
    """a plate that draws four of six data by itself"""

    def model(x: Tensor) -> None:
        with pyro.plate("data", 6, subsample_size=4) as index:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[index])

    def guide(x: Tensor) -> None:
        slope = pyro.param("slope", torch.tensor(0.4))
        with pyro.plate("data", 6, subsample_size=4) as index:
            pyro.sample("z", dist.Normal(slope * x[index], 0.7))

    def whole_model(x: Tensor) -> None:
        with pyro.plate("data", 6):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def whole_guide(x: Tensor) -> None:
        slope = pyro.param("slope", torch.tensor(0.4))
        with pyro.plate("data", 6):
            pyro.sample("z", dist.Normal(slope * x, 0.7))

    return Pair(model, guide, (X,), exact=LOG_P, plain=Pair(whole_model, whole_guide, (X,), exact=LOG_P))


@program()
def given_indices() -> Pair:
    """rows of parameters for 20 data, of which a batch is given with its indices"""
    index = torch.tensor([3, 19, 4, 0, 7, 11])

    def plate(x: Tensor, index: Tensor) -> pyro.plate:
        return pyro.plate("data", 20, subsample=index)

    def model(x: Tensor, index: Tensor) -> None:
        with plate(x, index):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    guide = AutoNormal(model, create_plates=plate, init_scale=0.6)
    guide(X, index)
    return Pair(model, guide, (X, index), exact=LOG_P)


@program()
def without_a_size() -> Pair:
    """`pyro.plate("data")`"""

    def model(x: Tensor) -> None:
        with pyro.plate("data"):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        slope = pyro.param("slope", torch.tensor(0.4))
        with pyro.plate("data"):
            pyro.sample("z", dist.Normal(slope * x, 0.7))

    return Pair(model, guide, (X,), exact=LOG_P)


OUTSIDE = "is not inside a plate over the"
ROWS = {"fit_local": OUTSIDE, "posterior_samples": OUTSIDE}


def indices(x: Tensor) -> Iterator[int]:
    for i in pyro.plate("data", len(x)):
        yield int(i)


@program(
    ROWS | {"compiled": "Pyro's __iter__ (pyro/poutine/indep_messenger.py)", "latent_report": OUTSIDE},
    warns=("no_data_plate",),
    per_datum=False,
)
def sequential() -> Pair:
    """a loop over the data: `for i in pyro.plate(...)`"""

    def model(x: Tensor) -> None:
        for i in indices(x):
            z = pyro.sample(f"z_{i}", dist.Normal(0.0, 1.0))
            pyro.sample(f"x_{i}", dist.Normal(z, 1.0), obs=x[i])

    def guide(x: Tensor) -> None:
        slope = pyro.param("slope", torch.tensor(0.4))
        for i in indices(x):
            pyro.sample(f"z_{i}", dist.Normal(slope * x[i], 0.7))

    return Pair(model, guide, (X,), exact=LOG_P.sum().reshape(1))


@program()
def data_along_the_second_axis() -> Pair:
    """data as columns"""
    torch.manual_seed(2)
    x = torch.randn(3, 5)

    def model(x: Tensor) -> None:
        with pyro.plate("data", x.shape[1]):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z.unsqueeze(-1), 1.0).expand([*z.shape, 3]).to_event(1), obs=x.T)

    def guide(x: Tensor) -> None:
        slope = pyro.param("slope", torch.tensor(0.2))
        with pyro.plate("data", x.shape[1]):
            pyro.sample("z", dist.Normal(slope * x.sum(0), 0.6))

    exact = dist.MultivariateNormal(torch.zeros(3), torch.ones(3, 3) + torch.eye(3)).log_prob(x.T)
    return Pair(model, guide, (x,), exact=exact)
