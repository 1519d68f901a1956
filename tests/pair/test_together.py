"""Pairs without a row for each datum in a first argument."""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDelta
from torch import Tensor

import pyro_vae as pv

X = torch.tensor([0.4, -1.2, 2.0, 0.1, -0.5, 1.3])
N = len(X)
JOINT = dist.MultivariateNormal(torch.zeros(N), 4 * torch.ones(N, N) + torch.eye(N)).log_prob(X)


def model(x: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x)


def posterior(x: Tensor) -> None:
    precision = len(x) + 0.25
    pyro.sample("mu", dist.Normal(x.sum() / precision, precision**-0.5))


def test_the_exact_posterior_of_a_shared_latent_gives_the_exact_joint() -> None:
    result = pv.log_marginal(model, posterior, X, num_samples=5)
    assert result.is_joint
    assert torch.allclose(result.log_prob, JOINT.reshape(1), atol=1e-4)
    assert "for all data together" in repr(result)
    bound = pv.bound(model, posterior, X, num_samples=400, seed=0)
    assert bound.is_joint
    assert abs(bound.mean - float(JOINT)) < 0.1
    assert "for all data together" in repr(bound)


@pytest.mark.parametrize("method", ["prior", pv.AIS(num_temperatures=30, num_chains=20)])
def test_other_methods_give_the_joint_too(method: Any) -> None:
    result = pv.log_marginal(model, None, X, method=method, seed=0)
    assert result.log_prob.shape == (1,)
    assert abs(float(result.log_prob) - float(JOINT)) < 5 * float(result.std_error)


def test_gradients_of_a_shared_latent() -> None:
    def guide(x: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor(0.1))
        pyro.sample("mu", dist.Normal(loc, 0.5))

    table = pv.compare_elbos(model, guide, X, estimators=["trace", "mean_field"], num_particles=[1], repeats=20, seed=0)
    assert abs(table.reference.mean - float(JOINT)) < 5 * table.reference.mean_error
    assert all(row.guide_variance > 0 and row.value < float(JOINT) + 3 * row.value_error for row in table.rows)


def test_data_in_a_closure_and_along_another_axis() -> None:
    log_p = dist.Normal(0.0, math.sqrt(2)).log_prob(X)

    def program(observes: bool) -> None:
        with pyro.plate("data", N):
            z = pyro.sample("z", dist.Normal(0.0, 1.0) if observes else dist.Normal(X / 2, 0.5**0.5))
            if observes:
                pyro.sample("x", dist.Normal(z, 1.0), obs=X)

    closed = pv.log_marginal(lambda: program(True), lambda: program(False), num_samples=3)
    assert torch.allclose(closed.log_prob, log_p, atol=1e-5)
    assert not closed.is_joint
    assert torch.isfinite(torch.as_tensor(float(pv.SVI(lambda: program(True), lambda: trained()).step())))
    columns = torch.stack([X, X + 1])

    def over_columns(x: Tensor) -> None:
        with pyro.plate("data", x.shape[1]):
            pyro.sample("x", dist.Normal(0.0, 1.0).expand([x.shape[1], 2]).to_event(1), obs=x.T)

    exact = dist.Normal(0.0, 1.0).log_prob(columns).sum(0)
    assert torch.allclose(pv.bound(over_columns, lambda x: None, columns).elbo, exact, atol=1e-5)


def trained() -> None:
    loc = pyro.param("loc", torch.tensor(0.0))
    with pyro.plate("data", N):
        pyro.sample("z", dist.Normal(loc, 1.0))


def test_point_masses_are_told_apart() -> None:
    guide = AutoDelta(model)
    guide(X)
    bound = pv.bound(model, guide, X)
    assert bound.point_masses == ("mu",)
    assert "no bound on log p(x): point masses at mu" in repr(bound)
    with pytest.raises(ValueError, match="point mass at the continuous site 'mu'"):
        pv.log_marginal(model, guide, X)


@pytest.mark.parametrize("question", ["latent_report", "fit_local"])
def test_what_needs_one_number_per_datum_says_so(question: str) -> None:
    with pytest.raises(ValueError, match=r"'mu'.*no number per datum.*log_marginal and compare_elbos give these"):
        getattr(pv, question)(model, posterior, X)


def test_bidirectional_bounds_need_rows() -> None:
    with pytest.raises(ValueError, match="one row per datum"):
        pv.log_marginal(model, None, X, method="bdmc")
