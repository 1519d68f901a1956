"""The table of figures of a pair."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.evaluate import Summary, summarize

D = 3


def model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(D, dtype=x.dtype), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def guide(x: Tensor) -> None:
    """The exact posterior: every importance weight is p(x)."""
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2, 0.5**0.5).to_event(1))


X = torch.linspace(-2, 2, 4 * D, dtype=torch.float64).reshape(4, D)


def test_figures_against_the_closed_form() -> None:
    log_p = dist.Normal(0.0, 2**0.5).log_prob(X).sum(-1)
    summary = summarize(model, guide, X, num_samples=7, num_elbo_samples=2_000, seed=0)
    assert summary.log_prob == pytest.approx(float(log_p.mean()), abs=1e-6)
    assert summary.log_prob_error == pytest.approx(0, abs=1e-6)
    assert summary.log_prob_sampling_error == pytest.approx(float(log_p.std() / 2))
    assert summary.bits_per_dim == pytest.approx(float(-log_p.mean() / (D * math.log(2))))
    assert summary.elbo == pytest.approx(summary.log_prob, abs=0.1)  # the bound is tight
    assert summary.elbo == pytest.approx(summary.log_likelihood - summary.kl)
    kl = torch.distributions.kl_divergence(dist.Normal(X / 2, 0.5**0.5), dist.Normal(0.0, 1.0)).sum(-1).mean()
    assert summary.kl == pytest.approx(float(kl), abs=0.1)
    assert (summary.num_dims, summary.num_data, summary.num_samples) == (D, 4, 7)
    assert summary.ess_median == pytest.approx(7)
    assert summary.density


def test_it_prints_itself() -> None:
    summary = summarize(model, guide, X, num_samples=7, data="a [set]", binarize="none", seed=0)
    text = repr(summary)
    for part in (
        "4 data of a [set], binarize=none",
        "KL(q(z|x) || p(z))",
        "E[log p(x|z)]",
        "log p(x), 7 importance samples",
        f"{summary.elbo:.3f}",
        f"{summary.bits_per_dim:.4f}",
        "median 7.0 of 7",
        "log-density",
    ):
        assert part in text
    assert set(summary.to_dict()) > {"elbo", "kl", "log_prob", "bits_per_dim", "data", "binarize"}


def test_a_log_probability_of_zero() -> None:
    summary = Summary(-1.0, -1.0, 0.0, 0.0, 0.0, 0.0, 2, False, 1.0, 1, 1)
    assert summary.bits_per_dim == 0
    assert "0.7213" in repr(summary)  # the ELBO's bits do not depend on log p(x)


def test_nothing_is_left_behind() -> None:
    net = nn.Sequential(nn.Linear(D, D), nn.BatchNorm1d(D), nn.Dropout(0.5)).double()

    def net_model(x: Tensor) -> None:
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(D), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=net(z.reshape(-1, D)).reshape(z.shape)).to_event(1), obs=x)

    x = torch.ones(1, D, dtype=torch.float64)  # batch norm in training mode would refuse a single datum
    state, buffer = torch.get_rng_state(), net[1].get_buffer("running_mean").clone()
    first = summarize(net_model, guide, x, num_samples=3, seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(net[1].get_buffer("running_mean"), buffer)
    assert net.training
    assert not first.density
    assert first == summarize(net_model, guide, x, num_samples=3, seed=0)
    assert first != summarize(net_model, guide, x, num_samples=3, seed=1)


def test_a_pair_that_observes_nothing() -> None:
    def silent(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.new_zeros(D), 1.0).to_event(1))

    with pytest.raises(ValueError, match="observes no site"):
        summarize(silent, guide, X, num_samples=3, seed=0)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="num_samples must be at least 1, got 0"):
        summarize(model, guide, X, num_samples=0, seed=0)


@pytest.mark.parametrize("how", ["poutine.mask", "dist.mask", "of elements"])
def test_bits_are_per_element_that_is_known(how: str) -> None:
    """Ragged data: the rows have 1, 2, 3 and 0 known elements, so 1.5 in the mean; q(z) is the exact posterior."""
    known = torch.arange(D) < torch.tensor([1, 2, 3, 0]).unsqueeze(1)

    def ragged(x: Tensor, known: Any) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(D), 1.0).to_event(1))
            if how == "of elements":
                pyro.sample("x", dist.Normal(z, 1.0).mask(known).to_event(1), obs=x)
                return
            for i in range(D):
                fn, here = dist.Normal(z[..., i], 1.0), known[:, i]
                with pyro.poutine.mask(mask=here if how == "poutine.mask" else True):
                    pyro.sample(f"x{i}", fn if how == "poutine.mask" else fn.mask(here), obs=x[:, i])

    def exact(x: Tensor, known: Tensor) -> None:
        with pyro.plate("data", len(x)):
            scale = torch.where(known, 0.5**0.5, 1.0)
            pyro.sample("z", dist.Normal(torch.where(known, x / 2, 0.0), scale.double()).to_event(1))

    log_p = (dist.Normal(0.0, 2**0.5).log_prob(X) * known).sum(-1).mean()
    summary = summarize(ragged, exact, X, known, num_samples=30, seed=0)
    assert summary.num_dims == 1.5
    assert summary.bits_per_dim == pytest.approx(float(-log_p / (1.5 * math.log(2))), rel=1e-6)


def test_an_estimate_that_is_not_to_be_trusted_is_called_so() -> None:
    """With the exact posterior there is nothing to say; with one four times too narrow log p(x) is far too low."""

    def narrow(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.25 * 0.5**0.5).to_event(1))

    good, bad = (summarize(model, q, X, num_samples=200, seed=0) for q in (guide, narrow))
    assert (good.num_unreliable, "unreliable" in repr(good)) == (0, False)
    assert bad.num_unreliable > 2
    assert f"k-hat calls {bad.num_unreliable} of 4 estimates" in " ".join(repr(bad).split())
    comparison = pv.compare_elbos(model, narrow, X, estimators=["trace"], num_particles=[1], repeats=2, num_samples=200)
    assert "of 4 estimates of log p(x) unreliable" in " ".join(repr(comparison).split())


def narrow(x: Tensor) -> None:
    """A guide that is too narrow: few of its draws have a weight."""
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2 + 2.0, 0.3).to_event(1))


@pytest.mark.parametrize("num_samples", [5, 20, 200])
def test_an_error_from_few_effective_samples_has_a_warning(num_samples: int) -> None:
    """Fewer than 25 samples have no k-hat, but an error is no less of a guess."""
    exact = float(dist.Normal(0.0, 2**0.5).log_prob(X).sum(-1).mean())
    options: dict[str, Any] = {"num_samples": num_samples, "seed": 1}
    marginal = pv.log_marginal(model, narrow, X, **options)
    assert float(marginal.ess.median()) < min(10, num_samples / 2)
    assert marginal.mean < exact - 5 * marginal.mean_error  # so that the warning is needed
    summary = summarize(model, narrow, X, **options)
    compared = pv.compare_elbos(model, narrow, X, estimators=["trace"], num_particles=[1], repeats=2, **options)
    for text in map(repr, (marginal, summary, compared)):
        assert "too few to tell an error" in " ".join(text.split())
    assert "too few to tell an error" in str(marginal.table().caption)
    good = pv.log_marginal(model, guide, X, **options)
    for text in map(repr, (good, summarize(model, guide, X, **options))):
        assert "too few" not in text
