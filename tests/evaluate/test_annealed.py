"""Annealed importance sampling and bidirectional Monte Carlo, against numbers that are known."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyro_vae.evaluate import AIS, BDMC, BidirectionalBounds, log_marginal
from pyro_vae.evaluate.marginal.annealing import temperatures
from pyro_vae.evaluate.marginal.latent_space import LatentSpace
from pyro_vae.evaluate.marginal.result import LogMarginal
from pyro_vae.oracles import Discrete, LinearGaussian, TopDownChain
from tests.helpers.counts_pair import counts_guide, counts_log_prob, counts_model

CALLS = torch.tensor([0.0, 1.0, 3.0, 10.0], dtype=torch.float64)
EXPOSURE = torch.tensor([1.0, 0.5, 2.0, 1.0], dtype=torch.float64)


def short(kind: type[AIS] = AIS, **options: Any) -> dict[str, Any]:
    """Options of `log_marginal` for a short run."""
    return {"method": kind(**{"num_temperatures": 20, "leapfrog_steps": 3, **options}), "seed": 0}


def z_scores(result: LogMarginal, exact: Tensor) -> Tensor:
    return (result.log_prob.double() - exact.detach()) / result.std_error.double()


@pytest.mark.parametrize("schedule", ["sigmoid", "linear"])
def test_temperatures_rise_from_zero_to_one(schedule: str) -> None:
    betas = temperatures(10, schedule)
    assert (betas[0], betas[-1], len(betas)) == (0.0, 1.0, 11)
    assert betas == sorted(betas)
    assert betas[5] == pytest.approx(0.5)
    assert (betas[1] == pytest.approx(0.1)) == (schedule == "linear")


# The number


@pytest.mark.parametrize("start", ["prior", "guide"])
@pytest.mark.parametrize("num_temperatures", [1, 2, 6])
def test_weights_are_unbiased(start: str, num_temperatures: int) -> None:
    pair = LinearGaussian()
    x = pair.simulate(1).repeat(10_000, 1)  # as many repeats
    options = short(num_chains=1, num_temperatures=num_temperatures, start=start)
    ratio = log_marginal(pair.model, pair.wide_guide, x, **options).log_prob - pair.log_prob(x).detach()
    error = float(ratio.exp().std()) / math.sqrt(len(x))
    assert error < 0.02
    assert float(ratio.exp().mean()) == pytest.approx(1.0, abs=4 * error)


def test_it_is_right_and_more_temperatures_help() -> None:
    pair = LinearGaussian()
    x = pair.simulate(100)
    few, more = (log_marginal(pair.model, None, x, **short(num_temperatures=t)) for t in (5, 40))
    exact = pair.log_prob(x)
    assert float(z_scores(more, exact).square().mean()) == pytest.approx(1.0, abs=0.5)
    assert abs(float((more.log_prob - exact).detach().mean())) < 3 * more.mean_error + 0.01
    assert few.mean_error > 2 * more.mean_error
    assert more.acceptance is not None
    assert float(more.acceptance.mean()) == pytest.approx(0.65, abs=0.05)
    assert float(more.ess.median()) > float(few.ess.median())
    assert (more.method, more.num_samples) == ("ais", 16)
    assert "100 data, 16 chains each" in repr(more)


def test_it_does_not_look_at_the_guide_unless_told_to() -> None:
    pair = LinearGaussian()
    x = pair.simulate(3)
    with_guide, without = (log_marginal(pair.model, g, x, **short()) for g in (pair.guide, None))
    assert torch.equal(with_guide.log_prob, without.log_prob)


def test_the_exact_guide_is_a_start_without_error() -> None:
    pair = LinearGaussian()
    x = pair.simulate(5)
    result = log_marginal(pair.model, pair.exact_guide, x, **short(start="guide"))
    torch.testing.assert_close(result.log_prob, pair.log_prob(x).detach())


def test_a_hierarchy() -> None:
    chain, x = TopDownChain(), torch.randn(30, dtype=torch.float64)
    for start in ("prior", "guide"):
        result = log_marginal(chain.model, chain.guide, x, **short(start=start))
        assert float(z_scores(result, chain.log_prob(x)).abs().max()) < 4.5


@pytest.mark.parametrize("start", ["prior", "guide"])
def test_counts_with_a_positive_latent_and_an_argument(start: str) -> None:
    options = short(num_chains=200, start=start)
    result = log_marginal(counts_model, counts_guide, CALLS, EXPOSURE, **options)
    assert float(result.std_error.max()) < 0.12
    assert float(z_scores(result, counts_log_prob(CALLS, EXPOSURE)).abs().max()) < 4


def test_a_simplex() -> None:
    alpha = torch.tensor([1.5, 2.0, 3.0], dtype=torch.float64)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            p = pyro.sample("p", dist.Dirichlet(alpha))
            pyro.sample("x", dist.Multinomial(total_count=4, probs=p), obs=x)

    x = torch.tensor([[4.0, 0.0, 0.0], [1.0, 1.0, 2.0]], dtype=torch.float64)
    result = log_marginal(model, None, x, **short(num_chains=100))
    exact = dist.DirichletMultinomial(alpha, total_count=4).log_prob(x)
    assert float(z_scores(result, exact).abs().max()) < 4
    assert float(result.std_error.max()) < 0.1


def test_a_plate_inside_and_the_data_at_another_dimension() -> None:
    """Three latents of each datum in a plate to the left of the data, and a support that depends on a latent."""

    def model(x: Tensor) -> None:
        data = pyro.plate("data", len(x), dim=-1)
        with pyro.plate("parts", 3, dim=-2), data:
            low = pyro.sample("low", dist.Uniform(torch.zeros(3, 1, dtype=x.dtype), 1.0))
            pyro.sample("z", dist.Uniform(low, low + 1.0))
        with data:
            pyro.sample("x", dist.Normal(torch.zeros_like(x), 1.0), obs=x)

    x = torch.randn(4, dtype=torch.float64)
    result = log_marginal(model, None, x, **short())  # the latents are irrelevant: every weight is p(x)
    torch.testing.assert_close(result.log_prob, dist.Normal(0.0, 1.0).log_prob(x))


# Pairs unlike ours


class Strict(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        if z.dim() != 2:
            raise ValueError("a matrix, please")
        return z


def test_networks_that_take_no_leading_dimension_and_dropout() -> None:
    pair, net = LinearGaussian(), nn.Sequential(Strict(), nn.Dropout(0.5))

    def model(x: Tensor) -> None:
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            z = net(pyro.sample("z", pair.prior()))
            pyro.sample("x", dist.Normal(z @ pair.weight.T + pair.bias, pair.scale).to_event(1), obs=x)

    x = pair.simulate(6)
    result = log_marginal(model, None, x, **short())
    assert torch.equal(result.log_prob, log_marginal(pair.model, None, x, **short()).log_prob)
    assert net.training
    assert all(p.grad is None for p in pair.parameters())


def test_parameters_of_each_datum_run_chain_by_chain() -> None:
    x = torch.randn(9, dtype=torch.float64)

    def model(x: Tensor) -> None:
        shift = pyro.param("shift", lambda: torch.linspace(-1, 1, 9, dtype=torch.float64))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(shift, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    result = log_marginal(model, None, x, **short(num_chains=8))
    shift = torch.linspace(-1, 1, 9, dtype=torch.float64)
    assert float(z_scores(result, dist.Normal(shift, 2**0.5).log_prob(x)).abs().max()) < 5


@pytest.mark.parametrize("memory", [None, 20_000])
def test_chunks_change_nothing_but_the_noise(memory: int | None) -> None:
    pair = LinearGaussian()
    x = pair.simulate(12)
    result = log_marginal(pair.model, None, x, **short(num_temperatures=10), memory=memory)
    assert float(z_scores(result, pair.log_prob(x)).square().mean()) == pytest.approx(1.0, abs=0.8)


def test_single_precision() -> None:
    pair = LinearGaussian().float()
    x = pair.simulate(20).float()
    result = log_marginal(pair.model, None, x, **short())
    assert result.log_prob.dtype == torch.float32
    assert float(z_scores(result, pair.log_prob(x)).abs().max()) < 4.5


def test_a_recording_gives_what_pyro_gives() -> None:
    pair = LinearGaussian()
    for guide in (None, pair.guide):
        space = LatentSpace(pair.model, guide, ((pair.simulate(5),), {}), 3)
        u = space.draw()
        before = space.point(u)
        space.record()
        assert space._evaluate != space._eager, "no recording was made"
        after = space.point(u)
        for name in ("base", "tilt", "base_grad", "tilt_grad"):
            torch.testing.assert_close(getattr(after, name), getattr(before, name))
        z = u.reshape(15, 2)
        exact = pair.prior().log_prob(z) if guide is None else pair.q(space.data[0][0]).log_prob(z)
        torch.testing.assert_close(after.base, exact.detach())


def test_no_recording_of_what_depends_on_values() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
            scale = 1.0 if float(z.detach().mean()) > 0 else 2.0  # Python looks at a value
            pyro.sample("x", dist.Normal(z, scale), obs=x)

    space = LatentSpace(model, None, ((torch.randn(4),), {}), 2)
    space.record()
    assert space._evaluate == space._eager


# What is refused


def test_discrete_latents() -> None:
    pair, x = Discrete(), torch.tensor([[0.0, 1.0, 1.0]], dtype=torch.float64)
    with pytest.raises(ValueError, match=r"site 'c' is drawn from Categorical.*use method='importance'"):
        log_marginal(pair.model, pair.guide, x, **short())


def test_an_auxiliary_site_of_the_guide() -> None:
    pair = LinearGaussian()

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", pair.q(x), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Delta(u, event_dim=1))

    with pytest.raises(ValueError, match=r"auxiliary site 'u' .* use start='prior'"):
        log_marginal(pair.model, guide, pair.simulate(3), **short(start="guide"))


# Both sides


def test_the_bracket_holds_log_p() -> None:
    pair = LinearGaussian()
    result = log_marginal(pair.model, None, torch.zeros(300, 4).double(), **short(BDMC))
    assert isinstance(result, BidirectionalBounds)
    exact = pair.log_prob(result.args[0]).detach()
    below, above = exact - result.lower, result.upper - exact
    for side in (below, above):  # either bound holds on average over the noise
        assert float(side.mean()) > -3 * float(side.std()) / math.sqrt(300)
        assert abs(float(side.mean())) < 0.1
    assert result.gap == pytest.approx(float(below.mean() + above.mean()))
    assert -3 * result.gap_error < result.gap < 0.2
    tight = log_marginal(pair.model, None, torch.zeros(300, 4).double(), **short(BDMC, num_chains=2))
    assert tight.gap > result.gap  # fewer chains, a wider bracket
    assert "<= log p(x) <=" in repr(result)
    assert result.to_dict()["gap"] == result.gap
    assert {"log_prob", "upper", "upper_error"} <= set(result.to_dicts()[0])


def test_reversed_weights_are_unbiased_for_one_over_p() -> None:
    chain = TopDownChain()
    x = torch.zeros(10_000, dtype=torch.float64)
    options = short(BDMC, num_chains=1, num_temperatures=8)
    result = log_marginal(chain.model, None, x, **options)
    # E[1/w] = 1/p(x) for each x, so E[p(x)/w] = 1
    ratio = (chain.log_prob(result.args[0]) - result.upper).exp().detach()
    assert float(ratio.mean()) == pytest.approx(1.0, abs=4 * float(ratio.std()) / 100)


def test_simulated_counts_keep_their_arguments() -> None:
    n = 40
    result = log_marginal(
        counts_model,
        counts_guide,
        torch.zeros(n).double(),
        exposure=torch.linspace(0.5, 4, n).double(),
        **short(BDMC),
    )
    assert isinstance(result, BidirectionalBounds)
    assert torch.equal(result.kwargs["exposure"], torch.linspace(0.5, 4, n).double())
    exact = counts_log_prob(result.args[0], result.kwargs["exposure"])
    assert float((result.args[0] > 0).double().mean()) > 0.3
    assert float((exact - result.lower).mean()) == pytest.approx(0.0, abs=4 * result.mean_error + 0.02)
    assert float((result.upper - exact).mean()) == pytest.approx(0.0, abs=0.1)


def test_the_simulation_is_that_of_the_model() -> None:
    pair = LinearGaussian()
    result = log_marginal(pair.model, None, torch.zeros(4000, 4).double(), method=BDMC(num_temperatures=1), seed=0)
    x = result.args[0]
    noise = pair.scale**2 * torch.eye(4)
    torch.testing.assert_close(x.mean(0), pair.bias.detach(), atol=0.1, rtol=0)
    torch.testing.assert_close(torch.cov(x.T), (pair.weight @ pair.weight.T + noise).detach(), atol=0.15, rtol=0)


def test_what_cannot_be_simulated() -> None:
    x = torch.rand(3)

    def elsewhere(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=2 * x)

    def factor(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.factor("penalty", -(z**2))

    def autoregressive(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z + x.roll(1), 1.0), obs=x)

    for model, message in (
        (elsewhere, "observed site 'x' is not one of the arguments"),
        (factor, "site 'penalty' is a pyro.factor"),
        (autoregressive, "observed site 'x' depends on the observations themselves"),
    ):
        with pytest.raises(ValueError, match=message):
            log_marginal(model, None, x, **short(BDMC))
