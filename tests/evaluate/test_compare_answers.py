"""What a comparison of estimators says: whose draw the variance is of, what is recommended, what is compared."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyro_vae as pv
from pyro_vae.evaluate import EstimatorRow
from pyro_vae.evaluate.estimators.recommendation import choose
from pyro_vae.oracles import BitsAndClasses, Discrete, Interleaved, LinearGaussian


def two_sites(slope: float, size: int) -> tuple[Any, Any]:
    """z ~ N(0, 1), u ~ N(0, 1), x ~ N(z + 2 u, 1); q(z) = N(a, 1), q(u|z) = N(b + slope z, 1); `size` times over."""
    zeros, one = torch.zeros(size, dtype=torch.float64), torch.ones((), dtype=torch.float64)

    def normal(loc: Tensor) -> Any:
        return dist.Normal(loc, one).to_event(1)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z, u = pyro.sample("z", normal(zeros)), pyro.sample("u", normal(zeros))
            pyro.sample("x", normal(z + 2 * u), obs=x)

    def guide(x: Tensor) -> None:
        a, b = pyro.param("a", zeros + 0.3), pyro.param("b", zeros - 0.2)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", normal(a))
            pyro.sample("u", normal(b + slope * z))

    return model, guide


@pytest.mark.parametrize("slope", [0.0, 0.5])
def test_the_variance_of_each_sites_draw(slope: float) -> None:
    """Under sticking the landing the gradient is linear in the noise e of z and f of u, so the parts add up.

    d log w / dz = x - 2 z - 2 u + (z - a) + slope (u - b - slope z), d log w / du = 2 (x - z - 2 u) - u + f,
    and the gradients are the first + slope x second for a, minus the score of a's own density, and the second for b.
    """
    pyro.clear_param_store()
    x = torch.full((1, 300), 0.7, dtype=torch.float64)
    model, guide = two_sites(slope, 300)
    result = pv.compare_elbos(
        model, guide, x, estimators=["stl"], num_particles=[1 if slope else 4], repeats=20, num_samples=10, seed=0
    )
    # z = a + e, u = b + slope z + f: d log w / dz and / du as coefficients of (e, f)
    z, u = torch.tensor([1.0, 0.0]), torch.tensor([slope, 1.0])
    in_u = 2 * (-z - 2 * u) - u + torch.tensor([0.0, 1.0])
    in_z = -z + (-z - 2 * u) + torch.tensor([1.0, 0.0]) - slope * torch.tensor([0.0, 1.0])
    parts = (in_z + slope * in_u).square() + in_u.square()
    for row in result.rows:
        exact = (parts / row.num_particles * x.numel()).tolist()
        assert row.guide_variance == pytest.approx(sum(exact), rel=0.08)
        assert row.guide_variance_by_site["z"] == pytest.approx(exact[0], rel=0.1)
        assert row.guide_variance_by_site["u"] == pytest.approx(exact[1], rel=0.1)
        assert row.guide_variance == pytest.approx(sum(exact), abs=4.5 * row.guide_variance_error)


def test_a_site_that_is_summed_over_is_not_to_blame() -> None:
    pair = Interleaved()
    x = pair.simulate(10)
    estimators: dict[str, Any] = {"drawn": "trace", "summed": {"c": "enum", "b": "enum"}}
    result = pv.compare_elbos(
        pair.model, pair.guide, x, estimators=estimators, num_particles=[1], repeats=8, num_samples=50, seed=0
    )
    drawn, summed = result.rows
    assert list(drawn.guide_variance_by_site) == ["z", "c", "y", "b"]
    assert min(drawn.guide_variance_by_site.values()) > 0
    assert summed.guide_variance_by_site["c"] == summed.guide_variance_by_site["b"] == 0
    assert sum(drawn.guide_variance_by_site.values()) > 0.5 * drawn.guide_variance
    assert "guide_variance_of_c" in result.to_dicts()[0]
    assert "redrawn" in repr(result)
    alone = pv.compare_elbos(
        pair.model, pair.guide, x, estimators=["trace"], num_particles=[1], repeats=4, num_samples=50, by_site=False
    )
    assert alone.rows[0].guide_variance_by_site == {}


def test_the_default_set_is_that_of_the_sites() -> None:
    def names(pair: Any) -> list[str]:
        x = pair.simulate(4)
        result = pv.compare_elbos(
            pair.model, pair.guide, x, num_particles=[1, 2], repeats=2, num_samples=20, by_site=False, seed=0
        )
        return list(dict.fromkeys(row.estimator for row in result.rows))

    assert names(LinearGaussian()) == ["trace", "mean_field", "stl", "iwae", "dreg"]
    assert names(Interleaved()) == ["trace", "vargrad", "vimco", "c=enum, b=enum"]
    assert names(BitsAndClasses(bits=2, classes=0)) == ["trace", "vargrad", "vimco", "b=enum", "disarm", "rebar"]
    assert names(BitsAndClasses(bits=8)) == ["trace", "vargrad", "vimco", "c=enum", "rebar"]


def row(estimator: str, k: int, variance: float, seconds: float, **others: Any) -> EstimatorRow:
    base = EstimatorRow(estimator, k, -1.0, 0.1, 0.5, 0.0, 0.0, 1.0, variance, 1.0, 1.0, seconds, 1)
    errors = {"guide_variance_error": 0.05 * variance, "seconds_error": 0.01 * seconds}
    return replace(base, **{**errors, **others})


def test_a_recommendation_is_by_bound_and_says_what_is_open() -> None:
    rows = [
        row("trace", 1, 100.0, 1.0),
        row("stl", 1, 30.0, 1.0),
        row("stl", 10, 3.0, 4.0),
        row("mean_field", 10, 3.1, 4.0),
        row("gumbel", 1, 1e-3, 1.0, guide_bias=0.4, guide_bias_error=0.1),
        row("miwae", 10, 1e-3, 1.0, bound="own"),
        row("iwae", 1, 100.0, 1.0, bound="iwae"),
        row("iwae", 10, 20.0, 4.0, bound="iwae"),
        row("dreg", 10, 2.0, 4.0, bound="iwae"),
    ]
    advice = choose(rows)
    assert [choice.bound for choice in advice.choices] == ["ELBO", "L_10"]
    elbo, tight = advice.choices
    assert (elbo.best.estimator, elbo.best.num_particles) == ("stl", 10)
    assert elbo.best.value == pytest.approx(12.0)
    assert elbo.best.low == pytest.approx(12.0 / elbo.best.high * 12.0)
    assert [str(cost) for cost in elbo.undecided] == ["mean_field with K = 10"]
    assert [cost.estimator for cost in elbo.others] == ["stl", "trace", "iwae"]
    assert elbo.particles is not None
    assert elbo.particles[:3] == (1, 10, pytest.approx(0.4))
    assert (tight.best.estimator, tight.particles) == ("dreg", None)
    text = "\n".join(advice.lines())
    assert "they pay" in text
    assert "Not decided against mean_field with K = 10" in text
    assert "gumbel with K = 1 (guide 0.4 ± 0.1 of the gradient's norm)" in text
    assert "of its own, which nothing here shares: miwae with K = 10" in text
    assert advice["L_10"] is tight
    with pytest.raises(KeyError, match="no bound 'L_5'"):
        advice["L_5"]


def test_an_estimator_without_noise_is_the_best() -> None:
    advice = choose([row("trace", 1, 1.0, 1.0), row("y=enum", 1, 0.0, 9.0)])
    assert advice["ELBO"].best.estimator == "y=enum"
    assert advice["ELBO"].others[0].ratio == float("inf")


def test_the_answer_is_right_where_it_is_known() -> None:
    """At the posterior STL has no noise, and its cost is the least whatever the time."""
    posterior: Any = LinearGaussian(seed=3).at_posterior()
    x = posterior.simulate(8)

    def model(x: torch.Tensor) -> None:  # without parameters, of which the gradient has noise
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", posterior.prior())
            pyro.sample("x", posterior.likelihood(z), obs=x)

    def guide(x: torch.Tensor) -> None:
        for name in posterior.guide_parameters:
            pyro.param(name, getattr(posterior, name))
        with pyro.plate("data", len(x)):
            pyro.sample("z", posterior.q(x))

    result = pv.compare_elbos(model, guide, x, estimators=["trace", "stl"], num_particles=[1], repeats=10, seed=0)
    assert result.recommend()["ELBO"].best.estimator == "stl"
    assert "For the ELBO: stl with K = 1" in repr(result)
    assert result.recommend().to_dicts()[0]["estimator"] == "stl"


def test_two_models_on_the_same_data() -> None:
    first, second = Discrete(data_dim=4, seed=3), Discrete(data_dim=4, seed=4)
    x = first.simulate(300)
    exact = (second.log_prob(x) - first.log_prob(x)).detach()
    found = pv.compare_models(first, (second.model, second.guide), x, names=("a", "b"), num_samples=300, seed=0)
    assert ((found.difference - exact).abs() < 6 * found.error + 0.01).all()
    assert found.mean == pytest.approx(float(exact.mean()), abs=5 * found.mean_error + 0.01)
    low, high = found.interval
    assert low < float(exact.mean()) < high < 0
    assert found.better == "a"
    assert found.sampling_error == pytest.approx(float(exact.std()) / 300**0.5, rel=0.1)
    elbo = (second.elbo(x) - first.elbo(x)).mean().detach()
    assert found.elbo_difference is not None
    assert float(found.elbo_difference.mean()) == pytest.approx(float(elbo), abs=0.5)
    assert "a has the higher log p(x)" in repr(found)


def test_a_model_against_itself_is_not_decided() -> None:
    pair = LinearGaussian(seed=3)
    found = pv.compare_models(pair, pair, pair.simulate(30), num_samples=100, seed=1)
    assert found.better is None
    assert found.difference.abs().max() > 0  # noise of their own
    assert "do not decide" in repr(found)
    assert "Monte Carlo noise: more samples" in repr(found)


def test_what_cannot_be_compared_is_refused() -> None:
    gaussian, bits = LinearGaussian(data_dim=3), BitsAndClasses()
    x = bits.simulate(5)
    with pytest.raises(ValueError, match="observes continuous values and the second discrete"):
        pv.compare_models(gaussian, bits, x, num_samples=5)
    with pytest.raises(TypeError, match=r"the second pair must be \(model, guide\)"):
        pv.compare_models(gaussian, gaussian.model, x)
    with pytest.raises(ValueError, match="none in common"):
        pv.compare_models(gaussian, gaussian, x, method="bdmc", num_samples=None)
