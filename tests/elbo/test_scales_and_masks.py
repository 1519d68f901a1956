"""A site's density, its scale and its mask are three things: programs of their own against enumeration and algebra."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_vae.elbo import WeightedKL, make
from pyro_vae.oracles import Interleaved, Weighting, expected_log_mean
from tests.helpers.estimator_gradients import check, gradients

HALF = torch.tensor(0.5, dtype=torch.float64)


def log_mean(log_w: Tensor) -> Tensor:
    return log_w.logsumexp(0) - math.log(len(log_w))


# A bound of an estimator's own has its gradient in a pair with discrete latents, too


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize(
    "weighting",
    [
        Weighting(),
        Weighting({("model", "z"): HALF, ("guide", "c"): 2.0, ("guide", "b"): HALF}, [("guide", "c"), ("model", "y")]),
    ],
    ids=["plain", "weighted"],
)
@pytest.mark.parametrize("name", ["miwae", "ciwae", "renyi"])
def test_bounds_between_the_elbo_and_the_importance_weighted_one(
    name: str, weighting: Weighting, vectorize: bool
) -> None:
    pair = Interleaved(weighting, seed=2)
    x = torch.tensor([0.8, -0.6], dtype=torch.float64)
    log_w, log_mass = pair.weights(x)
    options: Any
    options, exact = {
        "miwae": ({"groups": 2}, pair.iwae(x, 2)),
        "ciwae": ({"beta": 0.3}, 0.3 * pair.elbo(x) + 0.7 * pair.iwae(x, 4)),
        "renyi": ({"alpha": 0.4}, expected_log_mean(0.6 * log_w, log_mass, 4) / 0.6),
    }[name]
    elbo = make(name, num_particles=4, vectorize_particles=vectorize, **options)
    check(elbo, pair, x, exact.sum(), gradients(exact.sum(), pair))


# A weight on the KL


class Switch(nn.Module):
    """A switch s, then a count of it: p(n|s) is Poisson, and the guide draws n first and s given n.

    The observation reads both. Of n only 0, 1 and 2 have a chance under q.
    """

    def __init__(self, mask: str = "none") -> None:
        super().__init__()

        def parameter(*values: float) -> nn.Parameter:
            return nn.Parameter(torch.tensor(values, dtype=torch.float64))

        self.prior, self.rate, self.shift = parameter(0.3), parameter(0.8, 1.7), parameter(0.5)
        self.q_count, self.q_switch = parameter(0.4, -0.2, 0.1), parameter(0.6, -0.8)
        self.mask = mask

    def masked(self, fn: Any, x: Tensor) -> Any:
        keep: Any = x > 0
        return fn.mask(keep) if self.mask == "distribution" else fn

    def handler(self, x: Tensor) -> Any:
        keep: Any = (x > 0) if self.mask == "handler" else torch.tensor(True)
        return poutine.mask(mask=keep)

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            s = pyro.sample("s", dist.Bernoulli(logits=self.prior.expand(len(x))))
            n = pyro.sample("n", dist.Poisson(self.rate[0] + self.rate[1] * s))
            pyro.sample("x", dist.Normal(self.shift * n - s, 1.0), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            with self.handler(x):
                logits = self.q_count + x.unsqueeze(-1) * torch.tensor([0.0, 0.5, 1.0]).to(x)
                n = pyro.sample("n", self.masked(dist.Categorical(logits=logits), x))
            pyro.sample("s", dist.Bernoulli(logits=self.q_switch[0] + self.q_switch[1] * n))

    def states(self, x: Tensor, weight: float) -> tuple[Tensor, Tensor]:
        """log w with a weight on the KL, and log q, of the six states, `(6, N)`, written out."""
        rows = []
        for n, s in itertools.product(range(3), (0.0, 1.0)):
            logits = self.q_count + x.unsqueeze(-1) * torch.tensor([0.0, 0.5, 1.0]).to(x)
            q_n = logits.log_softmax(-1)[:, n]
            turn = self.q_switch[0] + self.q_switch[1] * n
            q_s = -nn.functional.softplus(-turn if s else turn)
            p_s = -nn.functional.softplus(-self.prior if s else self.prior)
            rate = self.rate[0] + self.rate[1] * s
            p_n = n * rate.log() - rate - math.lgamma(n + 1)
            given = -0.5 * (x - self.shift * n + s).square() - 0.5 * math.log(2 * math.pi)
            seen = (x > 0).to(x) if self.mask != "none" else 1.0
            rows.append((given + weight * (p_s + p_n - seen * q_n - q_s), q_n + q_s))
        log_w, log_q = zip(*rows, strict=True)
        return torch.stack(log_w), torch.stack(log_q)


X = torch.tensor([0.9, -0.7], dtype=torch.float64)
SCORED: list[tuple[str, dict[str, Any], Callable[[Tensor], Tensor]]] = [
    ("trace", {}, lambda log_w: log_w.mean(0)),
    ("reinforce", {}, lambda log_w: log_w.mean(0)),
    ("reinforce", {"every_site": True, "baseline": "leave_one_out"}, lambda log_w: log_w.mean(0)),
    ("iwae", {}, log_mean),
    ("vimco", {}, log_mean),
    ("renyi", {"alpha": 0.5}, lambda log_w: 2 * log_mean(0.5 * log_w)),
]


def over_pairs(pair: Switch, x: Tensor, weight: float, value: Callable[[Tensor], Tensor]) -> Tensor:
    """E[value(log w_1, log w_2)] summed over the data, over all pairs of states."""
    log_w, log_q = pair.states(x, weight)
    first, second = (torch.stack(torch.broadcast_tensors(t[:, None], t[None])) for t in (log_w, log_q))
    return (second.sum(0).exp() * value(first)).sum()


@pytest.mark.parametrize("weight", [0.0, 0.4, 3.0])
@pytest.mark.parametrize(("name", "options", "value"), SCORED, ids=[f"{n}-{o}" for n, o, _ in SCORED])
def test_a_weight_on_the_kl_is_not_on_the_score(
    name: str, options: Any, value: Callable[[Tensor], Tensor], weight: float
) -> None:
    pair = Switch()
    exact = over_pairs(pair, X, weight, value)
    elbo = WeightedKL(make(name, num_particles=2, **options), weight)
    check(elbo, pair, X, exact, gradients(exact, pair))


@pytest.mark.parametrize("mask", ["handler", "distribution"])
@pytest.mark.parametrize(("name", "options", "value"), SCORED, ids=[f"{n}-{o}" for n, o, _ in SCORED])
def test_a_masked_latent_that_the_observation_reads_is_scored(
    name: str, options: Any, value: Callable[[Tensor], Tensor], mask: str
) -> None:
    pair = Switch(mask)
    exact = over_pairs(pair, X, 1.0, value)
    check(make(name, num_particles=2, **options), pair, X, exact, gradients(exact, pair))
