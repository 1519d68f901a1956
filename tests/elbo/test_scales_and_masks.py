"""A site's density, its scale and its mask are three things: programs of their own against enumeration and algebra."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
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


WEIGHTING = Weighting(
    {("model", "z"): HALF, ("guide", "c"): 2.0, ("guide", "b"): HALF}, [("guide", "c"), ("model", "y")]
)

# A bound of an estimator's own has its gradient in a pair with discrete latents, too


@pytest.mark.parametrize(("weighting", "vectorize"), [(WEIGHTING, True), (WEIGHTING, False), (Weighting(), True)])
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


# The KL in closed form: a log q - b log p


Side = tuple[Any, int]  # the scale of a latent, and the sign of the data for which it counts; 0 for all


def seen(sign: int, x: Tensor) -> Any:
    mask: Any = sign * x > 0
    return poutine.mask(mask=mask) if sign else nullcontext()


def under(sign: int, x: Tensor, value: Tensor) -> Tensor:
    return torch.where(sign * x > 0, value, 0.0) if sign else value


class Pull(nn.Module):
    """z ~ N(0, 1), x ~ N(z, 1), q(z|x) = N(m x, e^2t); z is scaled and masked on each side."""

    def __init__(self, of_model: Side = (1.0, 0), of_guide: Side = (1.0, 0)) -> None:
        super().__init__()
        self.m = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))
        self.t = nn.Parameter(torch.tensor(-0.4, dtype=torch.float64))
        self.of_model, self.of_guide = of_model, of_guide
        self.of_distribution = False

    def latent(self, fn: Any, scale: Any, sign: int, x: Tensor) -> Tensor:
        if sign and self.of_distribution:
            fn = fn.mask(sign * x > 0)
        with poutine.scale(scale=scale), nullcontext() if self.of_distribution else seen(sign, x):
            return pyro.sample("z", fn)

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = self.latent(dist.Normal(x.new_zeros(()), 1.0).expand([len(x)]), *self.of_model, x)
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            self.latent(dist.Normal(self.m * x, self.t.exp()), *self.of_guide, x)

    def exact(self, x: Tensor) -> Tensor:
        """E_q[log p(x|z) + b log p(z) - a log q(z|x)], summed."""
        (b, sign_p), (a, sign_q) = self.of_model, self.of_guide
        square, variance = (self.m * x).square(), (2 * self.t).exp()
        constant = 0.5 * math.log(2 * math.pi)
        given = -constant - 0.5 * ((x - self.m * x).square() + variance)
        log_p, log_q = -constant - 0.5 * (square + variance), -constant - self.t - 0.5
        log_p, log_q = under(sign_p, x, log_p), under(sign_q, x, log_q)
        return (given + b * log_p - a * log_q).sum()


SIDES: dict[str, tuple[Side, Side]] = {
    "a tensor scale in the guide": ((1.0, 0), (HALF, 0)),
    "a tensor scale in the model": ((HALF, 0), (1.0, 0)),
    "one tensor on both sides": ((HALF, 0), (HALF, 0)),
    "two tensors": ((HALF, 0), (2 * HALF, 0)),
    "a tensor and a number": ((HALF, 0), (2.0, 0)),
    "a mask in the guide": ((1.0, 0), (1.0, 1)),
    "a mask in the model and scales": ((HALF, 1), (3.0, 0)),
    "equal masks": ((1.0, 1), (1.0, 1)),
    "opposite masks": ((1.0, 1), (HALF, -1)),
}


@pytest.mark.parametrize("of_distribution", [False, True])
@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize("name", ["mean_field", "trace", "stl", "gumbel"])
def test_scales_and_masks_on_one_side(name: str, sides: str, of_distribution: bool) -> None:
    pair = Pull(*SIDES[sides])
    pair.of_distribution = of_distribution
    exact = pair.exact(X)
    check(make(name), pair, X, exact, gradients(exact, pair))


@pytest.mark.parametrize("name", ["iwae", "dreg"])
@pytest.mark.parametrize("sides", SIDES)
def test_dreg_has_the_gradient_of_the_bound_that_iwae_has(name: str, sides: str) -> None:
    """The bound of two particles, by quadrature."""
    pair = Pull(*SIDES[sides])
    (b, sign_p), (a, sign_q) = SIDES[sides]
    e, mass = (torch.as_tensor(t) for t in np.polynomial.hermite_e.hermegauss(60))
    z = pair.m * X + pair.t.exp() * e.unsqueeze(-1)
    q = dist.Normal(pair.m * X, pair.t.exp()).log_prob(z)
    p = dist.Normal(torch.zeros_like(z), 1.0).log_prob(z)
    log_w = dist.Normal(z, 1.0).log_prob(X) + b * under(sign_p, X, p) - a * under(sign_q, X, q)
    value = torch.logaddexp(log_w[:, None], log_w[None]) - math.log(2)
    exact = torch.einsum("i,j,ijn->", mass / mass.sum(), mass / mass.sum(), value)
    check(make(name, num_particles=2), pair, X, exact, gradients(exact, pair))


def test_a_weight_on_the_kl_leaves_it_in_closed_form() -> None:
    """So that with no observation the value does not vary; nor with a weight on a weight."""
    pair = Pull()
    model = poutine.block(pair.model, hide=["x"])
    kl = dist.Normal(pair.m * X, pair.t.exp())
    exact = torch.distributions.kl_divergence(kl, dist.Normal(torch.zeros_like(X), 1.0)).sum()
    weighted = WeightedKL(WeightedKL(make("mean_field"), 0.5), 3.0)
    for _ in range(3):
        torch.testing.assert_close(weighted.differentiable_loss(model, pair.guide, X), 1.5 * exact)


class Coin(nn.Module):
    """One Bernoulli latent: b ~ Bernoulli(0.3), x ~ N(b, 1), q(b|x) with logits l; scaled and masked on each side."""

    def __init__(self, of_model: Side, of_guide: Side) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([0.4, -0.9], dtype=torch.float64))
        self.of_model, self.of_guide = of_model, of_guide

    def coin(self, fn: Any, scale: Any, sign: int, x: Tensor) -> Tensor:
        with poutine.scale(scale=scale), seen(sign, x):
            return pyro.sample("b", fn)

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            b = self.coin(dist.Bernoulli(x.new_tensor(0.3).expand(len(x))), *self.of_model, x)
            pyro.sample("x", dist.Normal(b, 1.0), obs=x)

    def guide(self, x: Tensor) -> None:
        logits = self.logits.repeat(len(x) // 2)
        with pyro.plate("data", len(x)):
            self.coin(dist.Bernoulli(logits=logits), *self.of_guide, x)


@pytest.mark.parametrize("sides", SIDES)
def test_the_discrete_kl_of_a_relaxed_pair(sides: str) -> None:
    """The value of "gumbel" with discrete draws, whose KL term is exact; its gradient is biased on purpose."""
    pair = Coin(*SIDES[sides])
    (b, sign_p), (a, sign_q) = SIDES[sides]
    exact = torch.zeros(2, dtype=torch.float64)
    for coin in (0.0, 1.0):
        q = pair.logits.detach().sigmoid() if coin else (-pair.logits.detach()).sigmoid()
        log_p = torch.full_like(q, math.log(0.3 if coin else 0.7))
        given = -0.5 * (X - coin).square() - 0.5 * math.log(2 * math.pi)
        exact += q * (given + b * under(sign_p, X, log_p) - a * under(sign_q, X, q.log()))
    losses = torch.stack(
        [make("gumbel", straight_through=True, num_particles=400).loss(pair.model, pair.guide, X) for _ in range(20)]
    )
    assert abs(float(losses.mean() + exact.sum())) < 4.5 * float(losses.std()) / math.sqrt(20)


@pytest.mark.parametrize("name", ["disarm", "rebar"])
def test_a_masked_site_that_depends_on_a_discrete_draw_is_seen(name: str) -> None:
    def program(x: Tensor) -> None:
        hidden: Any = torch.tensor(False)
        with pyro.plate("data", len(x)):
            b = pyro.sample("b", dist.Bernoulli(0.5 * torch.ones_like(x)))
            with poutine.mask(mask=hidden):
                pyro.sample("z", dist.Normal(b, 1.0))

    with pytest.raises(ValueError, match="distribution of site 'z' in the guide depends on the draw of another"):
        make(name).loss(program, program, X)
