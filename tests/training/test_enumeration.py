"""Latents that the model has alone, since TraceEnum_ELBO sums them out."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceEnum_ELBO, config_enumerate
from torch import Tensor
from torch.distributions import constraints

import pyro_vae as pv

X = torch.tensor([0.0, 1.0, 10.0, 11.0, 12.0])
SD = 1.5


def exact(locs: Tensor, weights: Tensor, x: Tensor) -> Tensor:
    """log p(x) of a mixture, by hand."""
    density = -((x.unsqueeze(-1) - locs) ** 2) / (2 * SD**2) - math.log(SD * math.sqrt(2 * math.pi))
    return (density + weights.log()).logsumexp(-1)


@config_enumerate
def mixture(x: Tensor) -> None:
    locs = pyro.param("locs", torch.tensor([1.0, 9.0]))
    weights = pyro.param("weights", torch.tensor([0.5, 0.5]), constraint=constraints.simplex)
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(locs[k], SD), obs=x)


def nothing(x: Tensor) -> None:
    pass


@pytest.mark.parametrize("elbo", ["enum", TraceEnum_ELBO(max_plate_nesting=1)])
@pytest.mark.parametrize("batch_size", [5, 2])
def test_a_mixture_is_trained_and_measured(elbo: Any, batch_size: int) -> None:
    history = pv.fit(
        mixture, nothing, X, valid=X[:2], elbo=elbo, epochs=60, batch_size=batch_size, lr=0.05, progress=False, seed=0
    )
    with torch.no_grad():
        locs, weights = pyro.param("locs"), pyro.param("weights")
        expected = [float(exact(locs, weights, x).mean()) for x in (X, X[:2])]
        start = float(exact(torch.tensor([1.0, 9.0]), torch.tensor([0.5, 0.5]), X).mean())
    last = history[history.best - 1 if history.best else -1]
    assert [last.train_elbo, last.valid_elbo] == pytest.approx(expected, abs=1e-5)
    assert last.log_likelihood == pytest.approx(expected[1], abs=1e-5)
    assert last.kl == 0.0
    assert last.train_elbo > start


def test_other_latents_of_the_guide_leave_the_kl_open() -> None:
    @config_enumerate
    def model(x: Tensor) -> None:
        locs = pyro.param("locs", torch.tensor([1.0, 9.0]))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            k = pyro.sample("k", dist.Categorical(torch.tensor([0.5, 0.5])))
            pyro.sample("x", dist.Normal(locs[k] + z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.1 * x, pyro.param("scale", torch.tensor(0.8))))

    history = pv.fit(model, guide, X, elbo="enum", epochs=2, progress=False, seed=0)
    assert all(math.isfinite(value) for value in history.train_elbo)
    assert math.isnan(history[-1].kl)


def test_questions_sum_out_what_the_model_has_alone() -> None:
    pyro.clear_param_store()
    log_p = exact(torch.tensor([1.0, 9.0]), torch.tensor([0.5, 0.5]), X)
    torch.testing.assert_close(pv.bound(mixture, nothing, X).elbo, log_p)
    torch.testing.assert_close(pv.log_marginal(mixture, nothing, X, num_samples=3).log_prob, log_p)
