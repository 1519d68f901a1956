"""Discrete latents that are summed out: in the guide, in the model, in both, along a chain."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from tests.programs.entry import SCORE, Pair, program

X = torch.tensor([0.4, -1.2, 2.0, 0.1, -0.5, 1.3])
LOCS, WEIGHTS = torch.tensor([-1.0, 1.5]), torch.tensor([0.4, 0.6])
PARALLEL: Any = {"enumerate": "parallel"}
NO_LATENT = "the model samples no latent site"
DISCRETE = {"fit_local": "is discrete ("}
SUMMED = ("Trace_ELBO", "RenyiELBO", "TraceEnum_ELBO")  # Pyro's others ask for a guide of each latent
ALONE = {
    "latent_report": "the guide samples no latent site",
    "fit_local": "the model has no latent site",
    "posterior_samples": NO_LATENT,
}
MIXTURE = torch.logsumexp(WEIGHTS.log() + dist.Normal(LOCS, 1.0).log_prob(X.unsqueeze(-1)), -1)
WIDE = torch.logsumexp(WEIGHTS.log() + dist.Normal(LOCS, math.sqrt(2)).log_prob(X.unsqueeze(-1)), -1)


def nothing(x: Tensor) -> None:
    """A guide without latents."""


def mixture(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", dist.Categorical(WEIGHTS), infer=PARALLEL)
        pyro.sample("x", dist.Normal(LOCS[c], 1.0), obs=x)


@program(DISCRETE | {"posterior_samples": NO_LATENT}, elbos=SCORE, estimator="enum")
def in_the_guide() -> Pair:
    """a categorical latent, enumerated in the guide"""

    def guide(x: Tensor) -> None:
        slope = pyro.param("slope", torch.tensor(0.8))
        with pyro.plate("data", len(x)):
            logits = torch.stack([-slope * x, slope * x], -1)
            pyro.sample("c", dist.Categorical(logits=logits), infer=PARALLEL)

    return Pair(mixture, guide, (X,), exact=MIXTURE)


@program(ALONE, elbos=SUMMED, estimator="enum")
def in_the_model_alone() -> Pair:
    """a mixture summed out in the model, nothing in the guide"""

    def model(x: Tensor) -> None:
        locs = pyro.param("locs", LOCS.clone())
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(WEIGHTS), infer=PARALLEL)
            pyro.sample("x", dist.Normal(locs[c], 1.0), obs=x)

    def plain(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.factor("x", MIXTURE)

    return Pair(model, nothing, (X,), exact=MIXTURE, plain=Pair(plain, nothing, (X,)))


@program({}, elbos=(*SUMMED, "ReweightedWakeSleep"), estimator="enum")
def in_the_model_beside_a_latent() -> Pair:
    """a mixture summed out in the model, a normal latent in the guide"""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(WEIGHTS), infer=PARALLEL)
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(LOCS[c] + z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        slope = pyro.param("slope", torch.tensor(0.3))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(slope * x, 0.9))

    def plain(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            parts = WEIGHTS.log() + dist.Normal(LOCS + z.unsqueeze(-1), 1.0).log_prob(x.unsqueeze(-1))
            pyro.factor("x", parts.logsumexp(-1))

    return Pair(model, guide, (X,), exact=WIDE, plain=Pair(plain, guide, (X,)))


def hierarchical(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", dist.Categorical(WEIGHTS), infer=PARALLEL)
        z = pyro.sample("z", dist.Normal(LOCS[c], 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


@program(DISCRETE, elbos=SCORE, estimator="enum")
def in_both() -> Pair:
    """a category and a normal latent given it"""

    def guide(x: Tensor) -> None:
        slope = pyro.param("slope", torch.tensor(0.8))
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(logits=torch.stack([-slope * x, slope * x], -1)), infer=PARALLEL)
            pyro.sample("z", dist.Normal((LOCS[c] + x) / 2, 0.7))

    return Pair(hierarchical, guide, (X,), exact=WIDE)


@program(DISCRETE, elbos=SCORE, estimator="enum")
def in_another_order() -> Pair:
    """a category given the normal latent in the guide, a normal latent given the category in the model"""

    def guide(x: Tensor) -> None:
        slope = pyro.param("slope", torch.tensor(0.5))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(slope * x, 0.8))
            logits = torch.stack([-z, z], -1)
            pyro.sample("c", dist.Categorical(logits=logits), infer=PARALLEL)

    return Pair(hierarchical, guide, (X,), exact=WIDE)


@program(
    {
        "compiled": "the loss gives the parameter '__baseline_avg_downstream_cost_c' of Pyro's store another tensor",
        "fit_local": "is discrete (",
        "posterior_samples": "Hamiltonian moves need continuous latents",
    },
    elbos=SCORE,
    estimator="trace_graph",
    warns=("not_reparameterized",),
)
def with_a_baseline() -> Pair:
    """a Bernoulli latent with a decaying average as its baseline"""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Bernoulli(0.6))
            pyro.sample("x", dist.Normal(2.5 * c - 1, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        slope = pyro.param("slope", torch.tensor(0.8))
        baseline: Any = {"baseline": {"use_decaying_avg_baseline": True, "baseline_beta": 0.8}}
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.Bernoulli(logits=slope * x), infer=baseline)

    return Pair(model, guide, (X,), exact=MIXTURE)


@program(ALONE, elbos=SUMMED, estimator="enum")
def hidden_markov() -> Pair:
    """a hidden Markov model, summed out in the model by `pyro.markov`"""
    torch.manual_seed(4)
    x = torch.randn(5, 3)
    switch = torch.tensor([[0.8, 0.2], [0.3, 0.7]])

    def model(x: Tensor) -> None:
        locs = pyro.param("locs", LOCS.clone())
        with pyro.plate("data", len(x)):
            c: Tensor = torch.tensor(0)
            for t in pyro.markov(range(x.shape[1])):
                c = pyro.sample(f"c_{t}", dist.Categorical(switch[c]), infer=PARALLEL)
                pyro.sample(f"x_{t}", dist.Normal(locs[c], 1.0), obs=x[:, t])

    alpha = switch[0].log() + dist.Normal(LOCS, 1.0).log_prob(x[:, :1])
    for t in range(1, 3):
        alpha = torch.logsumexp(alpha.unsqueeze(-1) + switch.log(), -2) + dist.Normal(LOCS, 1.0).log_prob(
            x[:, t : t + 1]
        )
    exact = alpha.logsumexp(-1)

    def plain(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.factor("x", exact)

    return Pair(model, nothing, (x,), exact=exact, plain=Pair(plain, nothing, (x,)))
