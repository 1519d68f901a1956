"""Terms beside the latents and the observations: factors, auxiliary sites, what a guide observes, scales and masks."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from tests.programs.entry import Pair, program

X = torch.tensor([0.4, -1.2, 2.0, 0.1, -0.5, 1.3])
elements: Any = poutine.mask
LOG_P = dist.Normal(0.0, math.sqrt(2)).log_prob(X)


def model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x: Tensor) -> None:
    slope = pyro.param("slope", torch.tensor(0.4))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(slope * x, 0.8))


@program()
def factor_in_the_model() -> Pair:
    """a `pyro.factor` instead of an observation"""

    def factored(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.factor("x", -0.5 * (x - z) ** 2)

    return Pair(factored, guide, (X,), exact=LOG_P + 0.5 * math.log(2 * math.pi))


@program(warns=("guide_terms",))
def factor_in_the_guide() -> Pair:
    """a `pyro.factor` in the guide, a term of the loss"""

    def factored(x: Tensor) -> None:
        slope = pyro.param("slope", torch.tensor(0.4))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(slope * x, 0.8))
            pyro.factor("term", 0.1 * slope * x, has_rsample=True)

    return Pair(model, factored, (X,), exact=LOG_P)


@program(warns=("guide_terms",))
def guide_observes() -> Pair:
    """a guide that observes a treatment, as in CEVAE"""
    t = torch.tensor([0.0, 1.0, 1.0, 0.0, 0.0, 1.0])

    def treated(x: Tensor, t: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("t", dist.Bernoulli(0.4), obs=t)
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def observing(x: Tensor, t: Tensor) -> None:
        q, slope = pyro.param("q", torch.tensor(0.6)), pyro.param("slope", torch.tensor(0.4))
        with pyro.plate("data", len(x)):
            pyro.sample("t", dist.Bernoulli(q), obs=t, infer={"is_auxiliary": True})
            pyro.sample("z", dist.Normal(slope * x, 0.8))

    return Pair(treated, observing, (X, t), exact=LOG_P + dist.Bernoulli(torch.tensor(0.4)).log_prob(t))


@program(
    dict.fromkeys(
        ["fit", "preflight", "bound", "log_marginal", "compare_elbos", "latent_report", "fit_local"],
        "the guide's auxiliary site 'u' is drawn from Normal, and nothing in the model balances its density",
    )
)
def unbalanced_noise() -> Pair:
    """a guide with noise of its own that nothing balances"""

    def noisy(x: Tensor) -> None:
        slope = pyro.param("slope", torch.tensor(0.4))
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Normal(slope * x + 0.1 * u, 0.8))

    return Pair(model, noisy, (X,), exact=LOG_P)


@program()
def noise_behind_a_point_mass() -> Pair:
    """a guide that maps noise to a positive latent"""
    counts = torch.tensor([0.0, 3.0, 1.0, 7.0, 2.0, 2.0])

    def positive(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
            pyro.sample("x", dist.Poisson(rate), obs=x)

    def mapped(x: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor(0.9))
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", dist.Normal((loc + x / 2).log(), 0.6), infer={"is_auxiliary": True})
            pyro.sample("rate", dist.Delta(u.exp(), log_density=-u))

    exact = dist.NegativeBinomial(2.0, probs=torch.tensor(0.5)).log_prob(counts)
    return Pair(positive, mapped, (counts,), exact=exact)


@program()
def masked_observations() -> Pair:
    """observations that are left out by a mask"""
    keep = torch.tensor([True, False, True, True, False, True])

    def masked(x: Tensor, keep: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0).mask(keep), obs=x)

    return Pair(masked, lambda x, keep: guide(x * keep), (X, keep), exact=LOG_P * keep)


@program(dict.fromkeys(["fit_local", "posterior_samples"], "is masked in the model"))
def observed_in_part() -> Pair:
    """`obs_mask`: the rest of the observations is latent, and the guide draws it"""
    keep = torch.tensor([True, False, True, True, False, True])

    def partly(x: Tensor, keep: Any) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x, obs_mask=keep)

    def filling(x: Tensor, keep: Tensor) -> None:
        slope, fill = pyro.param("slope", torch.tensor(0.4)), pyro.param("fill", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(slope * x * keep, 0.8))
            with elements(mask=~keep):
                pyro.sample("x_unobserved", dist.Normal(fill, 1.4))

    return Pair(partly, filling, (X, keep), exact=LOG_P * keep)


@program()
def masked_all() -> Pair:
    """a term that `poutine.mask(mask=False)` leaves out"""

    def without(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)
            with poutine.mask(mask=False):
                pyro.sample("y", dist.Normal(3.0, 1.0), obs=x)

    return Pair(without, guide, (X,), exact=LOG_P)


@program()
def scaled() -> Pair:
    """`poutine.scale` around both programs"""
    return Pair(poutine.scale(model, 0.25), poutine.scale(guide, 0.25), (X,), exact=LOG_P)


@program()
def annealed() -> Pair:
    """a weight on the KL by `poutine.scale` around the latents"""

    def weighed(x: Tensor, beta: float) -> None:
        with pyro.plate("data", len(x)):
            with poutine.scale(scale=beta):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    return Pair(weighed, lambda x, beta: poutine.scale(guide, beta)(x), (X, 0.3), exact=LOG_P)
