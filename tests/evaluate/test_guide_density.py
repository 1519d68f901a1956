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
            with pytest.raises(ValueError, match=r"auxiliary site 'a' is drawn from .*sample 'a' in the model"):
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
    assert pv.bound(both, joint, X).is_joint  # one site for all data, not noise without balance


def test_noise_of_more_elements_than_the_point_masses_is_refused() -> None:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", dist.Normal(ZERO, 1.0).expand([2]).to_event(1), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Delta(u.sum(-1)))

    with pytest.raises(ValueError, match="auxiliary site 'u' is drawn from"):
        pv.log_marginal(model, guide, X)


LENGTHS = torch.tensor([2, 1, 2, 1, 1, 0])
PAIRS = torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
RAGGED = (dist.Normal(ZERO, 2**0.5).log_prob(PAIRS) * (torch.arange(2) < LENGTHS.unsqueeze(1))).sum(1)


def ragged(way: str, program: str) -> Any:
    """Sequences of two steps, a latent each, of which some data lack the last: three ways to mask it."""

    def run(x: Tensor, lengths: Tensor) -> None:
        known: Any = torch.arange(2) < lengths.unsqueeze(1)
        with pyro.plate("data", len(x)):
            if way == "elements":
                if program == "guide":
                    pyro.sample("z", dist.Normal(0.4 * x, 0.8).to_event(1))
                    return
                z = pyro.sample("z", dist.Normal(ZERO, 1.0).expand(x.shape).mask(known).to_event(1))
                pyro.sample("x", dist.Normal(z, 1.0).mask(known).to_event(1), obs=x)
                return
            for t in range(2):
                here = known[:, t]
                if program == "guide":
                    with pyro.poutine.mask(mask=here if way == "both" else True):
                        pyro.sample(f"z{t}", dist.Normal(0.4 * x[:, t], 0.8))
                elif way == "dist.mask":
                    z = pyro.sample(f"z{t}", dist.Normal(ZERO, 1.0).expand([len(x)]).mask(here))
                    pyro.sample(f"x{t}", dist.Normal(z, 1.0).mask(here), obs=x[:, t])
                else:
                    with pyro.poutine.mask(mask=here):
                        z = pyro.sample(f"z{t}", dist.Normal(ZERO, 1.0))
                        pyro.sample(f"x{t}", dist.Normal(z, 1.0), obs=x[:, t])

    return run


def elbo_of(loc: Tensor, scale: float, x: Tensor) -> Tensor:
    """Of z ~ N(0, 1), x ~ N(z, 1) under q = N(loc, scale^2)."""
    likelihood = dist.Normal(loc, 1.0).log_prob(x) - scale**2 / 2
    return likelihood - torch.distributions.kl_divergence(dist.Normal(loc, scale), dist.Normal(ZERO, 1.0))


@pytest.mark.parametrize("way", ["both", "poutine.mask", "dist.mask", "elements"])
def test_the_mask_of_the_model_rules_on_both_sides(way: str) -> None:
    """A guide that samples all of them plainly gives the numbers of one with the mask, and these are exact."""
    pair = ragged(way, "model"), ragged(way, "guide")
    result = pv.log_marginal(*pair, PAIRS, LENGTHS, num_samples=5000, seed=0)
    assert bool(((result.log_prob - RAGGED).abs() < 4.5 * result.std_error + 1e-9).all())
    mixed = pv.log_marginal(*pair, PAIRS, LENGTHS, method=pv.Importance(defensive=0.2), num_samples=5000, seed=0)
    assert bool(((mixed.log_prob - RAGGED).abs() < 4.5 * mixed.std_error + 1e-9).all())
    exact = (elbo_of(0.4 * PAIRS, 0.8, PAIRS) * (torch.arange(2) < LENGTHS.unsqueeze(1))).sum(1)
    draws = torch.stack([pv.bound(*pair, PAIRS, LENGTHS, num_samples=50, seed=s).elbo for s in range(20)])
    error = draws.std(0) / 20**0.5
    assert bool(((draws.mean(0) - exact).abs() < 4.5 * error + 1e-9).all())
    kl = torch.distributions.kl_divergence(dist.Normal(0.4 * PAIRS, 0.8), dist.Normal(ZERO, 1.0))
    kl = (kl * (torch.arange(2) < LENGTHS.unsqueeze(1))).sum(1).mean()
    report = pv.latent_report(*pair, PAIRS, LENGTHS, num_samples=400, seed=0)
    assert abs(report.kl - float(kl)) < 5 * report.kl_error + 1e-6


def test_a_guide_that_masks_what_the_model_does_not() -> None:
    def guide(x: Tensor) -> None:
        first: Any = torch.arange(len(x)) < 3
        with pyro.plate("data", len(x)), pyro.poutine.mask(mask=first):
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))

    torch.testing.assert_close(pv.log_marginal(model, guide, X, num_samples=30, seed=0).log_prob, EXACT)


def test_obs_mask_with_a_guide_that_samples_the_unobserved_plainly() -> None:
    seen = torch.arange(8) % 3 > 0

    def partly(x: Tensor, seen: Any) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(ZERO, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x, obs_mask=seen)

    def guide(x: Tensor, seen: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.where(seen, x / 2, 0.0), torch.where(seen, 0.5**0.5, 1.0)))
            pyro.sample("x_unobserved", dist.Normal(z, 1.0))

    exact = torch.where(seen, EXACT, 0.0)
    result = pv.log_marginal(partly, guide, X, seen, num_samples=30, seed=0)
    torch.testing.assert_close(result.log_prob, exact, rtol=1e-6, atol=1e-6)
    bound = pv.bound(partly, guide, X, seen, num_samples=4000, seed=0)
    assert bound.mean == pytest.approx(float(exact.mean()), abs=0.05)
    summary = pv.summarize(partly, guide, X, seen, num_samples=30, seed=0)
    assert summary.num_dims == float(seen.double().mean())


@pytest.mark.parametrize("way", ["poutine.mask", "dist.mask", "elements"])
def test_a_masked_latent_is_refused_where_its_density_is_needed(way: str) -> None:
    pair = ragged(way, "model"), ragged(way, "guide")
    name = "'z'" if way == "elements" else "'z[01]'"
    message = f"latent site {name} is masked in the model.*log_marginal"
    with pytest.raises(ValueError, match=message):
        pv.fit_local(pair[0], None, PAIRS, LENGTHS)
    with pytest.raises(ValueError, match=message):
        pv.inference_gaps(*pair, PAIRS, LENGTHS, num_samples=5)
    with pytest.raises(ValueError, match=message):
        pv.posterior_samples(pair[0], PAIRS, LENGTHS, num_samples=2)
    full = torch.full_like(LENGTHS, 2)  # a mask that leaves nothing out is none
    samples = pv.posterior_samples(pair[0], PAIRS[:1], full[:1], num_samples=3, warmup_steps=3, seed=0)
    assert samples
    local = pv.fit_local(pair[0], None, PAIRS, full, max_steps=300, seed=0)
    log_p = dist.Normal(ZERO, 2**0.5).log_prob(PAIRS).sum(1)
    assert bool(((local.elbo - log_p).abs() < 4.5 * local.elbo_error + 0.02).all())


def test_imputation_weighs_by_the_density_alone() -> None:
    """x_2 given x_1 under x_d = z + noise: the mean is x_1 / 2, whatever loss the guide adds."""
    x = torch.tensor([[1.0, float("nan")], [-2.0, float("nan")]], dtype=torch.float64)

    def two(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(ZERO, 1.0))
            pyro.sample("x", dist.Normal(z.unsqueeze(-1).expand(*z.shape, 2), 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x[:, 0] / 2, 0.5**0.5))
            pyro.factor("other_loss", 3.0 * z, has_rsample=True)

    with pytest.warns(UserWarning, match="other_loss"):
        found = pv.impute(two, guide, x, num_samples=20_000, seed=0)
    assert found.mean is not None
    torch.testing.assert_close(found.mean[:, 1], x[:, 0] / 2, rtol=0, atol=0.03)


def test_fit_refuses_noise_before_the_first_step() -> None:
    """Without preflight, too: the ELBO after an epoch would be refused."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        scale = pyro.param("scale", torch.tensor(0.5))
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(0.0, scale), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Normal(x / 2 + a, 0.8))

    x = torch.linspace(-1, 1, 12)
    for preflight in (True, False):
        with pytest.raises(ValueError, match="auxiliary site 'a' is drawn from"):
            pv.fit(model, guide, x, epochs=2, batch_size=4, progress=False, preflight=preflight)
        assert pyro.param("scale", torch.tensor(0.5)).item() == 0.5
        pyro.clear_param_store()
