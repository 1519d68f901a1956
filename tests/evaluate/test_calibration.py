"""Exact posteriors pass, and wrong guides are told for what they are."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.stats import kstest, norm
from torch import Tensor

import pyro_vae as pv
from pyro_vae.evaluate import Calibration
from pyro_vae.oracles import BitsAndClasses, Discrete, LinearGaussian
from pyro_vae.oracles.base import Oracle

REPEATS = int(os.environ.get("PYRO_VAE_REPETITIONS", "8"))  # 200 for the figures in docs/calibration.md
GUIDE: Any = ("ranks", "tarp", "reliability")

WEIGHT = torch.tensor([[1.0, 0.4], [-0.5, 0.9], [0.3, 0.8]])
NOISE = 0.7
PRECISION = torch.eye(2) + WEIGHT.T @ WEIGHT / NOISE**2
COVARIANCE = PRECISION.inverse()
CENTERS, SHARES = torch.tensor([-2.0, 0.0, 2.0]), torch.tensor([0.2, 0.3, 0.5])


def linear(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z @ WEIGHT.T, NOISE).to_event(1), obs=x)


def linear_guide(scale: float = 1.0, shift: float = 0.0) -> Callable[[Tensor], None]:
    def guide(x: Tensor) -> None:
        mean = x @ WEIGHT @ COVARIANCE / NOISE**2 + shift * COVARIANCE.diagonal().sqrt()
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MultivariateNormal(mean, scale**2 * COVARIANCE))

    return guide


def mixture(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", dist.Categorical(SHARES))
        z = pyro.sample("z", dist.Normal(CENTERS[c], 1.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x)


def mixture_guide(x: Tensor, power: float = 1.0) -> None:
    with pyro.plate("data", len(x)):
        logits = power * (SHARES.log() - (x.unsqueeze(-1) - CENTERS).square() / 2.5)
        c = pyro.sample("c", dist.Categorical(logits=logits))
        pyro.sample("z", dist.Normal((CENTERS[c] + 4 * x) / 5, 0.2**0.5))


def beta_binomial(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        p = pyro.sample("p", dist.Beta(2.0, 3.0))
        pyro.sample("x", dist.Binomial(7, p), obs=x)


def beta_binomial_guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("p", dist.Beta(2.0 + x, 10.0 - x))


def gamma_poisson(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        pyro.sample("x", dist.Poisson(rate.unsqueeze(-1).expand(*rate.shape, 2)).to_event(1), obs=x)


def gamma_poisson_guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("rate", dist.Gamma(2.0 + x.sum(-1), 3.0))


EXACT: dict[str, tuple[Any, Any, tuple[int, ...]]] = {
    "linear-Gaussian": (linear, linear_guide(), (20, 3)),
    "mixture": (mixture, mixture_guide, (20,)),
    "beta-binomial": (beta_binomial, beta_binomial_guide, (20,)),
    "gamma-Poisson": (gamma_poisson, gamma_poisson_guide, (20, 2)),
}


@pytest.mark.parametrize("name", EXACT)
def test_p_values_of_exact_posteriors_are_uniform(name: str) -> None:
    model, guide, shape = EXACT[name]
    found: dict[tuple[str, str], list[float]] = {}
    alarms = 0
    for seed in range(REPEATS):
        # seeds of different models are not the same, so that their chances are not either
        options: dict[str, Any] = {"num_simulations": 200, "num_samples": 50, "seed": 1000 * len(name) + seed}
        result = pv.calibration(model, guide, torch.zeros(shape), tests=GUIDE, **options)
        alarms += not result.calibrated
        for row in result.rows:
            found.setdefault((row.quantity, row.test), []).append(row.p_value)
    for key, p_values in found.items():
        p = kstest(p_values, "uniform").pvalue
        print(f"{name}, {key}: Kolmogorov-Smirnov p = {p:.3f}")
        assert p > 1e-4, key
    print(f"{name}: {alarms} false alarms of {REPEATS}")
    assert alarms <= 0.05 * REPEATS + 4 * (0.05 * 0.95 * REPEATS) ** 0.5


def ask(model: Any, guide: Any, x: Tensor, **options: Any) -> Calibration:
    return pv.calibration(model, guide, x, **{"tests": GUIDE, "seed": 0, "num_simulations": 600, **options})


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"scale": 0.7}, "too narrow"),
        ({"scale": 1.4}, "too wide"),
        ({"shift": 0.5}, "biased up"),
        ({"shift": -0.5}, "biased down"),
    ],
)
def test_wrong_widths_and_means(fault: dict[str, float], words: str) -> None:
    result = ask(linear, linear_guide(**fault), torch.zeros(20, 3))
    for name in ("z[0]", "z[1]"):
        row = result[name]
        assert row.verdict == words
        assert row.shift == pytest.approx(fault.get("shift", 0.0), abs=0.15)
        assert row.scale == pytest.approx(fault.get("scale", 1.0), abs=0.15)
        scale, shift = fault.get("scale", 1.0), fault.get("shift", 0.0)
        ends = [scale * norm.ppf(p) + shift for p in (0.05, 0.95)]
        assert row.coverage_90 == pytest.approx(norm.cdf(ends[1]) - norm.cdf(ends[0]), abs=0.06)
    assert not result.calibrated
    assert words in result.verdict


def test_only_joint_tests_see_a_wrong_correlation() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1), 0.5), obs=x)

    covariance = (torch.eye(2) + 4 * torch.ones(2, 2)).inverse()

    def guide(x: Tensor) -> None:
        mean = (covariance @ torch.ones(2) * 4) * x.unsqueeze(-1)
        with pyro.plate("data", len(x)):
            wrong = covariance * torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
            pyro.sample("z", dist.MultivariateNormal(mean, wrong))

    result = ask(model, guide, torch.zeros(20), quantities={"sum": lambda z: z["z"].sum(-1)})
    assert [result[name].verdict for name in ("z[0]", "z[1]")] == ["fine", "fine"]
    assert result["all latents"].verdict == "wrong jointly"
    assert result["log p(x|z)"].verdict != "fine"
    assert result["sum"].verdict == "too wide"


@pytest.mark.parametrize("num_modes", [1, 2])
def test_a_guide_that_misses_a_mode(num_modes: int) -> None:
    modes = dist.Normal(torch.tensor([-4.0, 4.0]), 1.0)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), modes))
            pyro.sample("x", dist.Normal(z.abs(), 0.5), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            share = 0.5 if num_modes == 2 else 1.0
            sign = 2 * pyro.sample("s", dist.Bernoulli(share), infer={"is_auxiliary": True}) - 1
            pyro.sample("z", dist.Normal(sign * (4 + 4 * x) / 5, 0.2**0.5))

    row = ask(model, guide, torch.zeros(20))["z"]
    assert row.verdict == ("misses a mode" if num_modes == 1 else "fine")


def test_the_log_likelihood_sees_a_guide_that_ignores_the_data() -> None:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    result = ask(linear, guide, torch.zeros(20, 3))
    assert [result[f"z[{i}]"].verdict for i in (0, 1)] == ["fine", "fine"]
    assert "biased down" in result["log p(x|z)"].verdict


@pytest.mark.parametrize(("power", "words"), [(1.0, "fine"), (3.0, "too sure"), (0.4, "not sure enough")])
def test_probabilities_of_classes(power: float, words: str) -> None:
    result = ask(mixture, lambda x: mixture_guide(x, power), torch.zeros(20), num_simulations=1000, num_samples=20)
    (site,) = result.reliability
    assert site.site == "c"
    assert site.verdict == words
    assert sum(site.count) == 3000
    if power == 1.0:
        assert abs(site.ece - site.ece_of_right) < 4 * site.ece_error
    else:
        assert site.ece > site.ece_of_right + 3 * site.ece_error


def test_the_calibration_error_is_that_of_all_states() -> None:
    """With two predictions alone the error follows from the shares of their data."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            b = pyro.sample("b", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Bernoulli(0.2 + 0.6 * b), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("b", dist.Bernoulli(0.05 + 0.9 * x))  # p(b = 1|x) is 0.2 or 0.8

    (site,) = ask(model, guide, torch.zeros(20), num_simulations=4000, num_samples=20).reliability
    assert site.predicted == pytest.approx([0.05, 0.95], abs=1e-6)
    assert site.observed == pytest.approx([0.2, 0.8], abs=0.04)
    assert site.ece == pytest.approx(0.15, abs=4 * site.ece_error)
    assert site.verdict == "too sure"


def test_weights_mend_a_guide_that_is_too_wide() -> None:
    x = torch.zeros(20, 3)
    assert ask(linear, linear_guide(1.4), x)["z[0]"].verdict == "too wide"
    mended = ask(linear, linear_guide(1.4), x, reweight=True)
    assert mended.calibrated
    assert 100 < mended.ess <= 1010
    assert "re-weighted" in mended.notes[0]
    assert ask(linear, linear_guide(), x, reweight=True).ess == pytest.approx(1010, rel=1e-3)


def test_a_classifier_tells_a_wrong_guide_from_the_data() -> None:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    options: dict[str, Any] = {"tests": ["classifier"], "num_samples": 5, "num_simulations": 500}
    row = ask(linear, guide, torch.zeros(20, 3), **options).rows[0]
    assert (row.test, row.verdict) == ("classifier", "told apart")
    assert row.statistic > 0.6
    assert ask(linear, linear_guide(), torch.zeros(20, 3), **options).calibrated


def test_predictive_checks_are_of_the_given_data() -> None:
    torch.manual_seed(1)
    right = dist.MultivariateNormal(torch.zeros(3), WEIGHT @ WEIGHT.T + NOISE**2 * torch.eye(3)).sample((300,))
    options: dict[str, Any] = {
        "num_samples": 20,
        "num_simulations": 100,
        "tests": ["predictive"],
        "statistics": {"skew": lambda x: (x**3).mean()},
    }
    result = ask(linear, linear_guide(), right, **options)
    assert not result.misfits
    assert {row.quantity for row in result.rows} >= {"mean", "standard deviation", "skew", "log p(x|z)"}
    assert result.calibrated
    assert "was not tested" in result.verdict
    shifted = ask(linear, linear_guide(), right + torch.tensor([3.0, -2.0, 2.0]), **options)
    assert {row.quantity: row.verdict for row in shifted.misfits}["log p(x|z)"] == "too small"
    assert "not as the pair generates them" in shifted.verdict


@pytest.mark.parametrize("oracle", [LinearGaussian, Discrete, BitsAndClasses])
def test_oracles_are_calibrated_at_their_posterior(oracle: type[Oracle]) -> None:
    pair = oracle()
    x = pair.simulate(30)
    assert not ask(pair.model, pair.guide, x).calibrated
    exact = pair.at_posterior()
    if exact is not None:
        assert ask(exact.model, exact.guide, x, seed=1).calibrated
    mended = ask(pair.model, pair.guide, x, reweight=True)
    if mended.ess > 300:
        assert mended.calibrated


def test_counts_are_ranked_with_ties_at_random() -> None:
    """z ~ Poisson(3) seen through a coin for each count: given x, the rest of z is Poisson(1.5)."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Poisson(3.0))
            pyro.sample("x", dist.Binomial(z, torch.tensor(0.5)), obs=x)

    class Shifted(dist.Poisson):
        def __init__(self, rate: Tensor, shift: Tensor) -> None:
            super().__init__(rate)
            self.shift = shift

        def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
            return Shifted(self.rate.expand(batch_shape), self.shift.expand(batch_shape))

        def sample(self, *shape: Any) -> Tensor:
            return super().sample(*shape) + self.shift

    def guide(x: Tensor, rate: float = 1.5) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", Shifted(torch.full_like(x, rate), x))

    x = torch.ones(20)
    assert ask(model, guide, x)["z"].verdict == "fine"
    assert ask(model, lambda x: guide(x, 2.5), x)["z"].verdict == "too wide, biased up"


def test_a_result_is_asked_by_quantity() -> None:
    result = ask(linear, linear_guide(), torch.zeros(20, 3), num_simulations=30, num_samples=10)
    assert result.ranks["z[1]"].shape == (30,)
    assert int(result.ranks["z[1]"].min()) >= 0
    assert int(result.ranks["z[1]"].max()) <= 10
    nominal, held = result.coverage(0.5)["z[0]"]
    assert nominal == pytest.approx(5 / 11)
    assert held == pytest.approx(((result.ranks["z[0]"] >= 3) & (result.ranks["z[0]"] <= 7)).double().mean())
    assert result.coverage(1.0)["all latents"] == (1.0, 1.0)
    with pytest.raises(ValueError, match="level must be between 0 and 1"):
        result.coverage(2.0)
    with pytest.raises(KeyError, match="no quantity 'w': there are"):
        result["w"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_simulations": 5}, "num_simulations must be at least 20, got 5"),
        ({"num_samples": 1}, "num_samples must be at least 4"),
        ({"tests": "ranks"}, "tests must be a list of some of ranks, .*, got 'ranks'"),
        ({"tests": ["rank"]}, "got 'rank'"),
        ({"alpha": 1.0}, "alpha must be between 0 and 1"),
        ({"memory": 0}, "memory must be a positive number"),
        ({"quantities": {"q": lambda z: z["z"]}}, r"'q' must be .* of shape \(R,\), got \(\d+, 2\)"),
        ({"quantities": {"z[0]": lambda z: z["z"][:, 0]}}, "'z\\[0\\]' has the name"),
        ({"statistics": {"t": lambda x: x}, "tests": ["predictive"]}, r"'t' must return one number .*, got \(20, 3\)"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ask(linear, linear_guide(), torch.zeros(20, 3), **options)
