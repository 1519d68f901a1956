"""The true posterior of single data, against posteriors that are known."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

from pyro_vae.evaluate import posterior_samples
from pyro_vae.oracles import Discrete, LinearGaussian
from tests.helpers.counts_pair import counts_model, counts_posterior_mean


@pytest.mark.parametrize("kernel", ["nuts", "hmc"])
def test_moments_of_a_gaussian_posterior(kernel: str) -> None:
    pair = LinearGaussian()
    x = pair.simulate(2)
    z = posterior_samples(pair.model, x, num_samples=200, warmup_steps=40, kernel=kernel, seed=0)["z"]
    assert z.shape == (200, 2, 2)
    p = pair.posterior(x)
    torch.testing.assert_close(z.mean(0), p.mean.detach(), atol=0.2, rtol=0)
    torch.testing.assert_close(z.std(0), p.variance.sqrt().detach(), atol=0.15, rtol=0)


def test_counts_with_two_latents_and_an_argument() -> None:
    x, exposure = torch.tensor([1.0, 12.0]).double(), torch.tensor([1.0, 2.0]).double()
    found = posterior_samples(counts_model, x, exposure, num_samples=150, warmup_steps=60, seed=0)
    mood, log_rate = counts_posterior_mean(x, exposure)
    torch.testing.assert_close(found["mood"].mean(0), mood, atol=0.3, rtol=0)
    torch.testing.assert_close(found["rate"].log().mean(0), log_rate, atol=0.3, rtol=0)
    assert bool((found["rate"] > 0).all())


def test_a_scale_does_not_enter() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", 60_000, subsample=x):
            with poutine.scale(scale=5.0):
                z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    state = torch.get_rng_state()
    z = posterior_samples(model, torch.tensor([2.0]).double(), num_samples=300, warmup_steps=40, seed=0)["z"]
    assert float(z.mean()) == pytest.approx(1.0, abs=0.2)
    assert float(z.std()) == pytest.approx(0.5**0.5, abs=0.15)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_data_at_another_dimension() -> None:
    def model(x: Tensor) -> None:
        data = pyro.plate("data", len(x), dim=-1)
        with pyro.plate("parts", 3, dim=-2), data:
            pyro.sample("z", dist.Normal(x, 0.1))
        with data:
            pyro.sample("x", dist.Normal(x, 1.0), obs=x)

    x = torch.tensor([-3.0, 3.0]).double()
    z = posterior_samples(model, x, num_samples=50, warmup_steps=50, seed=0)["z"]
    assert z.shape == (50, 3, 2)
    torch.testing.assert_close(z.mean((0, 1)), x, atol=0.2, rtol=0)


def test_what_is_refused() -> None:
    pair = Discrete()
    with pytest.raises(ValueError, match="site 'c' is drawn from Categorical, a discrete distribution"):
        posterior_samples(pair.model, torch.zeros(1, 3).double())
    with pytest.raises(ValueError, match="kernel must be 'nuts' or 'hmc', got 'gibbs'"):
        posterior_samples(pair.model, torch.zeros(1, 3).double(), kernel="gibbs")
    with pytest.raises(ValueError, match="num_samples must be at least 1, got 0"):
        posterior_samples(pair.model, torch.zeros(1, 3).double(), num_samples=0)
