"""Sequences: latents of each step, of unequal lengths, and recurrent networks."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn

from tests.programs.entry import Pair, program

STEPS = 3
masked: Any = poutine.mask


def random_walk(x: Tensor) -> Tensor:
    """log p of steps z_t ~ N(z_{t-1}, 1), x_t ~ N(z_t, 1)."""
    times = torch.arange(1.0, STEPS + 1)
    return dist.MultivariateNormal(
        torch.zeros(STEPS), torch.minimum(times, times.unsqueeze(1)) + torch.eye(STEPS)
    ).log_prob(x)


@program()
def random_walks() -> Pair:
    """a latent of each step, in `pyro.markov`"""
    torch.manual_seed(5)
    x = torch.randn(5, STEPS).cumsum(1)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = x.new_zeros(())
            for t in pyro.markov(range(STEPS)):
                z = pyro.sample(f"z_{t}", dist.Normal(z, 1.0))
                pyro.sample(f"x_{t}", dist.Normal(z, 1.0), obs=x[:, t])

    def guide(x: Tensor) -> None:
        weight = pyro.param("weight", torch.tensor(0.4))
        with pyro.plate("data", len(x)):
            z = x.new_zeros(())
            for t in pyro.markov(range(STEPS)):
                z = pyro.sample(f"z_{t}", dist.Normal(z + weight * (x[:, t] - z), 0.8))

    return Pair(model, guide, (x,), exact=random_walk(x))


MASKED = "is masked in the model"


@program({"fit_local": MASKED, "posterior_samples": MASKED})
def unequal_lengths() -> Pair:
    """sequences of unequal lengths under `poutine.mask`"""
    torch.manual_seed(5)
    x, lengths = torch.randn(5, STEPS), torch.tensor([1, 2, 3, 2, 1])

    def model(x: Tensor, lengths: Tensor) -> None:
        with pyro.plate("data", len(x)):
            for t in range(STEPS):
                with masked(mask=t < lengths):
                    z = pyro.sample(f"z_{t}", dist.Normal(0.0, 1.0))
                    pyro.sample(f"x_{t}", dist.Normal(z, 1.0), obs=x[:, t])

    def guide(x: Tensor, lengths: Tensor) -> None:
        weight = pyro.param("weight", torch.tensor(0.4))
        with pyro.plate("data", len(x)):
            for t in range(STEPS):
                with masked(mask=t < lengths):
                    pyro.sample(f"z_{t}", dist.Normal(weight * x[:, t], 0.8))

    keep = torch.arange(STEPS) < lengths.unsqueeze(1)
    exact = (dist.Normal(0.0, 2**0.5).log_prob(x) * keep).sum(1)
    return Pair(model, guide, (x, lengths), exact=exact)


@program()
def recurrent_encoder() -> Pair:
    """an LSTM that encodes each sequence"""
    torch.manual_seed(5)
    x, lstm, head = torch.randn(5, STEPS), nn.LSTM(1, 4, batch_first=True), nn.Linear(4, 1)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z.unsqueeze(-1), 1.0).expand([*z.shape, STEPS]).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("lstm", lstm)
        pyro.module("head", head)
        with pyro.plate("data", len(x)):
            code = lstm(x.unsqueeze(-1))[0][:, -1]
            pyro.sample("z", dist.Normal(head(code).squeeze(-1), 0.9))

    exact = dist.MultivariateNormal(torch.zeros(STEPS), torch.ones(STEPS, STEPS) + torch.eye(STEPS)).log_prob(x)
    return Pair(model, guide, (x,), exact=exact)
