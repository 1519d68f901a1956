"""What a guide may add to log q(z|x), and what the questions make of it: exact values, or a true refusal."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from torch import Tensor

import pyro_vae as pv

X = torch.linspace(-2, 2, 8, dtype=torch.float64)
EXACT = dist.Normal(0.0, 2**0.5).log_prob(X)
ZERO = X.new_zeros(())


def model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(ZERO, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def factored(x: Tensor) -> None:
    """The exact posterior, with a loss of another task."""
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
        pyro.factor("other_loss", -10.0 * x.square(), has_rsample=False)


def observing(x: Tensor) -> None:
    """The exact posterior, with a regression that is trained alongside."""
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
        pyro.sample("label", dist.Normal(x, 1.0), obs=x.square(), infer={"is_auxiliary": True})


@pytest.mark.parametrize(("guide", "name"), [(factored, "other_loss"), (observing, "label")])
def test_terms_of_a_loss_are_left_out_with_a_word(guide: Any, name: str) -> None:
    """Under the exact posterior every number is log p(x) itself."""
    kl = torch.distributions.kl_divergence(dist.Normal(X / 2, 0.5**0.5), dist.Normal(ZERO, 1.0)).mean()
    with pytest.warns(UserWarning, match=f"adds '{name}' to its log-density"):
        result = pv.log_marginal(model, guide, X, num_samples=30, seed=0)
    torch.testing.assert_close(result.log_prob, EXACT)
    with pytest.warns(UserWarning, match=name):
        bound = pv.bound(model, guide, X, num_samples=4000, seed=0)
    assert bound.mean == pytest.approx(float(EXACT.mean()), abs=0.05)
    assert float(bound.kl.mean()) == pytest.approx(float(kl), abs=1e-6)
    with pytest.warns(UserWarning, match=name) as said:
        summary = pv.summarize(model, guide, X, num_samples=30, seed=0)
    assert len(said) == 1
    assert summary.log_prob == pytest.approx(float(EXACT.mean()))
    with pytest.warns(UserWarning, match=name):
        report = pv.latent_report(model, guide, X, num_samples=2000, seed=0)
    assert report.kl == pytest.approx(float(kl), abs=1e-6)
    with pytest.warns(UserWarning, match=name):
        row = pv.compare_elbos(model, guide, X, estimators=["stl"], num_particles=[1], repeats=2, num_samples=5).rows[0]
    assert row.gap == pytest.approx(0, abs=1e-6)


def test_noise_that_nothing_balances_is_refused_everywhere() -> None:
    """A mixture over a, continuous or discrete: with log q(a) alone the mean weight is a volume times p(x)."""

    def mixture(a: Any) -> Any:
        def guide(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                shift = pyro.sample("a", a, infer={"is_auxiliary": True})
                pyro.sample("z", dist.Normal(x / 2 + 0.1 * shift, 0.8))

        return guide

    for noise in (dist.Normal(ZERO, 10.0), dist.Categorical(torch.ones(5, dtype=torch.float64))):
        guide = mixture(noise)
        for question in (pv.bound, pv.log_marginal, pv.summarize, pv.latent_report, pv.compare_elbos):
            with pytest.raises(ValueError, match="auxiliary site 'a' is drawn from .*sample 'a' in the model"):
                question(model, guide, X)


def test_the_remedy_that_the_refusal_names() -> None:
    """With a site of the model's own, of any density, the mean weight is p(x)."""

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(ZERO, 1.0))
            pyro.sample("z", dist.Normal(x / 2 + 0.4 * a, 0.7))

    def balanced(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(ZERO, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)
            pyro.sample("a", dist.Normal(0.3 * z, 0.9))

    result = pv.log_marginal(balanced, guide, X, num_samples=20_000, seed=0)
    assert bool(((result.log_prob - EXACT).abs() < 4.5 * result.std_error).all())


def test_noise_behind_point_masses_is_a_density() -> None:
    """Autoguides, on a positive latent too, and a change of variables by hand whose Jacobian is a factor."""

    def positive(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            r = pyro.sample("r", dist.Gamma(ZERO + 2.0, 1.0))
            pyro.sample("x", dist.Poisson(r), obs=x)

    counts = torch.tensor([0.0, 2.0, 5.0], dtype=torch.float64)
    # a Gamma prior of a Poisson's rate makes a negative binomial
    exact = dist.NegativeBinomial(2.0, probs=torch.tensor(0.5, dtype=torch.float64)).log_prob(counts)

    def by_hand(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", dist.Normal((x + 1.0).log(), 0.7), infer={"is_auxiliary": True})
            pyro.sample("r", dist.Delta(u.exp()))
            pyro.factor("jacobian", -u, has_rsample=True)

    auto = AutoNormal(positive, init_scale=0.8)
    auto(counts)
    for guide in (by_hand, auto):
        result = pv.log_marginal(positive, guide, counts, num_samples=20_000, seed=0)
        assert bool(((result.log_prob - exact).abs() < 4.5 * result.std_error).all())
        assert pv.bound(positive, guide, counts, num_samples=500, seed=0).mean < float(exact.mean())

    def both(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(ZERO, 1.0).expand([2]).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)

    joint = AutoMultivariateNormal(both)
    with pytest.raises(ValueError, match="no number per datum"):  # one site for all data, not noise without balance
        pv.bound(both, joint, X)


def test_noise_of_more_elements_than_the_point_masses_is_refused() -> None:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", dist.Normal(ZERO, 1.0).expand([2]).to_event(1), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Delta(u.sum(-1)))

    with pytest.raises(ValueError, match="auxiliary site 'u' is drawn from"):
        pv.log_marginal(model, guide, X)
