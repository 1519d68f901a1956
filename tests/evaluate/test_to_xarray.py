"""Draws and log-weights as ArviZ has them."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyro_vae as pv
from pyro_vae.evaluate.marginal.khat import pareto_khat
from pyro_vae.oracles import LinearGaussian


@pytest.fixture
def arviz() -> Any:
    pytest.importorskip("xarray")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("arviz")


def test_draws_weights_and_data(arviz: Any) -> None:
    pair = LinearGaussian()
    x = pair.simulate(7)
    found = pv.to_xarray(pair.model, pair.guide, x, num_samples=4000, seed=0)
    z, log_weight = found.posterior["z"], found.sample_stats["log_weight"]
    assert z.dims == ("chain", "draw", "data", "z_dim_0")
    assert z.shape[:3] == log_weight.shape == (1, 4000, 7)
    np.testing.assert_allclose(found.observed_data["x"].values, x.numpy())
    estimate = np.log(np.exp(log_weight.values[0]).mean(0))
    error = np.exp(log_weight.values[0]).std(0) / np.exp(estimate) / 4000**0.5
    assert (np.abs(estimate - pair.log_prob(x).detach().numpy()) < 5 * error).all()
    # log p(x|z) is that of the draws beside it
    trace: Any = pyro.poutine.trace(
        pyro.poutine.condition(pair.model, data={"z": torch.from_numpy(z.values[0, 3])})
    ).get_trace(x)
    np.testing.assert_allclose(
        found.log_likelihood["x"].values[0, 3], trace.nodes["x"]["fn"].log_prob(x).detach().numpy(), rtol=1e-6
    )


def test_the_khat_of_arviz_is_ours(arviz: Any) -> None:
    pair = LinearGaussian()
    found = pv.to_xarray(pair.model, pair.guide, pair.simulate(10), num_samples=1000, seed=0)
    log_weight = found.sample_stats["log_weight"]
    khat = arviz.psislw(log_weight.stack(__sample__=("chain", "draw")))[1]
    ours = [pareto_khat(torch.from_numpy(w).sort(descending=True).values, 1000) for w in log_weight.values[0].T]
    np.testing.assert_allclose(khat.values, ours, atol=1e-6)


def test_plates_name_the_dimensions_and_shared_latents_have_weights_of_the_whole(arviz: Any) -> None:
    def model(x: Tensor) -> None:
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with pyro.plate("people", len(x), dim=-2), pyro.plate("days", 3, dim=-1):
            pyro.sample("x", dist.Normal(m, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("m", dist.Normal(x.sum() / (x.numel() + 1), (x.numel() + 1) ** -0.5))

    x = torch.linspace(-1, 1, 12).reshape(4, 3)
    found = pv.to_xarray(model, guide, x, num_samples=5, seed=0)
    assert found.posterior["m"].dims == ("chain", "draw")
    assert found.observed_data["x"].dims == ("people", "days")
    weights = found.sample_stats["log_weight"]
    assert weights.dims == ("chain", "draw")
    exact = dist.MultivariateNormal(torch.zeros(12), torch.eye(12) + torch.ones(12, 12)).log_prob(x.flatten())
    np.testing.assert_allclose(weights.values, float(exact), rtol=1e-4)  # the guide is exact


def test_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = LinearGaussian()
    x = pair.simulate(3)
    with pytest.raises(ValueError, match="num_samples must be at least 1"):
        pv.to_xarray(pair.model, pair.guide, x, num_samples=0)
    monkeypatch.setitem(sys.modules, "arviz", None)
    with pytest.raises(ImportError, match=r"pip install 'pyro-vae\[arviz\]'"):
        pv.to_xarray(pair.model, pair.guide, x)
