"""Guides that Pyro makes from a model."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.contrib.easyguide import easy_guide
from pyro.infer import autoguide as auto
from torch import Tensor

from tests.programs.entry import SCORE, Pair, program
from tests.programs.of_enumeration import DISCRETE, LOCS, MIXTURE, NO_LATENT, PARALLEL, WEIGHTS, mixture

X = torch.tensor([0.4, -1.2, 2.0, 0.1, -0.5, 1.3])
N = len(X)


def local(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


LOG_P = dist.Normal(0.0, math.sqrt(2)).log_prob(X)
PACKED: dict[str, str] = {"latent_report": "is not inside a plate over the"}


def guided(kind: Callable[..., Any], joint: bool = True, **options: Any) -> Pair:
    guide = kind(local, **options)
    torch.manual_seed(0)
    guide(X)
    return Pair(local, guide, (X,), exact=LOG_P.sum().reshape(1) if joint else LOG_P)


@program()
def auto_normal() -> Pair:
    """AutoNormal"""
    return guided(auto.AutoNormal, joint=False, init_scale=0.7)


@program(PACKED, per_datum=False)
def auto_diagonal_normal() -> Pair:
    """AutoDiagonalNormal, which packs all latents into one vector"""
    return guided(auto.AutoDiagonalNormal, init_scale=0.7)


@program(PACKED, per_datum=False)
def auto_multivariate_normal() -> Pair:
    """AutoMultivariateNormal"""
    return guided(auto.AutoMultivariateNormal, init_scale=0.7)


@program(PACKED, per_datum=False)
def auto_low_rank() -> Pair:
    """AutoLowRankMultivariateNormal"""
    return guided(auto.AutoLowRankMultivariateNormal, init_scale=0.7, rank=1)


@program(PACKED, per_datum=False)
def auto_flow() -> Pair:
    """AutoIAFNormal, an inverse autoregressive flow"""
    return guided(auto.AutoIAFNormal, hidden_dim=[8], num_transforms=1)


@program(PACKED, per_datum=False)
def auto_structured() -> Pair:
    """AutoStructured"""
    return guided(auto.AutoStructured, conditionals="normal", init_scale=0.7)


@program(
    {
        "log_marginal": "the guide has a point mass at the continuous site",
        "compare_elbos": "the guide has a point mass at the continuous site",
    },
    without=("ReweightedWakeSleep",),
)
def auto_delta_of_each_datum() -> Pair:
    """AutoDelta: a point mass for each datum"""
    pair = guided(auto.AutoDelta, joint=False)
    pair.exact = None
    return pair


@program(without=("TraceEnum_ELBO", "ReweightedWakeSleep"))
def auto_messenger() -> Pair:
    """AutoNormalMessenger"""
    guide = auto.AutoNormalMessenger(local, init_scale=0.7)
    torch.manual_seed(0)
    guide(X)
    return Pair(local, guide, (X,), exact=LOG_P)


@program(DISCRETE | {"posterior_samples": NO_LATENT}, elbos=SCORE, estimator="enum")
def auto_discrete() -> Pair:
    """AutoDiscreteParallel"""
    guide = auto.AutoDiscreteParallel(mixture)
    guide(X)
    return Pair(mixture, guide, (X,), exact=MIXTURE)


@program({"fit_local": DISCRETE["fit_local"]}, elbos=SCORE, warns=("not_reparameterized",))
def auto_list() -> Pair:
    """AutoGuideList of a continuous and a discrete guide"""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(WEIGHTS), infer=PARALLEL)
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(LOCS[c] + z, 1.0), obs=x)

    guide: Any = auto.AutoGuideList(model)
    guide.append(auto.AutoNormal(poutine.block(model, hide=["c"]), init_scale=0.9))
    guide.append(auto.AutoDiscreteParallel(poutine.block(model, expose=["c"])))
    torch.manual_seed(0)
    guide(X)
    wide = torch.logsumexp(WEIGHTS.log() + dist.Normal(LOCS, math.sqrt(2)).log_prob(X.unsqueeze(-1)), -1)
    return Pair(model, guide, (X,), exact=wide)


@program(
    dict.fromkeys(["latent_report", "fit_local", "posterior_samples"], "is not inside a plate over the"),
    per_datum=False,
)
def easy() -> Pair:
    """an EasyGuide that draws a group of latents at once"""

    def model(x: Tensor) -> None:
        with pyro.plate("w_plate", 2):
            w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("v_plate", 3):
            v = pyro.sample("v", dist.Normal(0.0, 1.0))
        loc = w.sum(-1, keepdim=True) + v.sum(-1, keepdim=True)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    @easy_guide(model)
    def guide(self: Any, x: Tensor) -> None:
        group = self.group(match="[vw]")
        loc = pyro.param("loc", lambda: torch.zeros(group.event_shape))
        group.sample("both", dist.Normal(loc, 0.7).to_event(1))

    torch.manual_seed(0)
    guide(X)
    exact = dist.MultivariateNormal(torch.zeros(N), 5 * torch.ones(N, N) + torch.eye(N)).log_prob(X).reshape(1)
    return Pair(model, guide, (X,), exact=exact)
