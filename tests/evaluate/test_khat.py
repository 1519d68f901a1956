"""The Pareto k-hat: on tails whose shape is known, and on proposals known to be good or bad."""

from __future__ import annotations

import math
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_vae.evaluate import log_marginal
from pyro_vae.evaluate.marginal.khat import khat_threshold, pareto_khat, tail_size
from pyro_vae.oracles import Discrete, LinearGaussian


def test_the_size_of_the_tail() -> None:
    assert [tail_size(k) for k in (1, 25, 100, 225, 10_000)] == [1, 5, 20, 45, 300]


def test_the_threshold_rises_with_the_sample() -> None:
    assert khat_threshold(100) == pytest.approx(0.5)
    assert khat_threshold(1000) == pytest.approx(2 / 3)
    assert khat_threshold(5000) == 0.7
    assert khat_threshold(1) == -math.inf


@pytest.mark.parametrize("shape", [0.2, 0.5, 1.0])
def test_the_shape_of_a_pareto_tail_is_found(shape: float) -> None:
    torch.manual_seed(0)
    log_w = -shape * torch.rand(50, 100_000, dtype=torch.float64).log()  # P(w > t) = t^(-1/shape)
    largest = log_w.sort(dim=1, descending=True).values
    found = [pareto_khat(row, 100_000) for row in largest]
    # 949 excesses: the standard error of one fit is about (1 + shape) / sqrt(949)
    assert sum(found) / 50 == pytest.approx(shape, abs=4 * (1 + shape) / math.sqrt(949 * 50) + 0.01)


def test_bounded_weights_have_a_negative_shape() -> None:
    torch.manual_seed(0)
    log_w = torch.rand(10_000, dtype=torch.float64).log()  # uniform weights: the shape is -1
    assert pareto_khat(log_w.sort(descending=True).values, 10_000) == pytest.approx(-1.0, abs=0.3)


def test_tails_without_a_shape() -> None:
    equal = torch.zeros(100)
    assert pareto_khat(equal, 24) != pareto_khat(equal, 24)  # NaN: too few
    assert pareto_khat(equal, 100) == -math.inf
    assert pareto_khat(equal + 1e-5 * torch.linspace(1, 0, 100), 100, rounding=1e-4) == -math.inf
    few = torch.full((100,), -math.inf)
    assert pareto_khat(few, 100) == math.inf
    few[:3] = torch.tensor([2.0, 1.0, 0.0])
    assert pareto_khat(few, 100) == math.inf


def scaled(pair: LinearGaussian, width: float) -> Callable[[Tensor], None]:
    """The posterior's means with so many times its widths."""

    def guide(x: Tensor) -> None:
        p = pair.posterior(x)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(p.mean, width * p.variance.sqrt()).to_event(1))

    return guide


def test_one_number_for_each_datum() -> None:
    pair = LinearGaussian()
    x = pair.simulate(20)
    for guide, low, high in ((scaled(pair, 0.3), 0.7, 5.0), (pair.wide_guide, -5.0, 0.5)):
        result = log_marginal(pair.model, guide, x, num_samples=2000, seed=0)
        assert result.khat is not None
        assert low < float(result.khat.median()) < high
        assert len(result.unreliable) == int((result.khat > khat_threshold(2000)).sum())


def test_one_bad_datum_is_found_among_good_ones() -> None:
    pair = LinearGaussian()
    x = pair.simulate(10)

    def guide(x: Tensor) -> None:
        p = pair.posterior(x)
        width = torch.full((len(x), 1), 1.2, dtype=x.dtype)
        width[(x == bad).all(-1)] = 0.2
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(p.mean, width * p.variance.sqrt()).to_event(1))

    bad = x[6]
    result = log_marginal(pair.model, guide, x, num_samples=1000, seed=0)
    assert result.unreliable.tolist() == [6]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_exact_posterior_has_no_tail(dtype: torch.dtype) -> None:
    pair = LinearGaussian().to(dtype)
    x = pair.simulate(5).to(dtype)

    def guide(x: Tensor) -> None:
        p = LinearGaussian().posterior(x.double())
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MultivariateNormal(p.mean.to(dtype), p.covariance_matrix.to(dtype)))

    result = log_marginal(pair.model, guide, x, num_samples=100)
    assert result.khat is not None
    assert result.khat.tolist() == [-math.inf] * 5
    assert len(result.unreliable) == 0


def test_the_chunks_do_not_matter() -> None:
    pair = LinearGaussian()
    x = pair.simulate(4)
    torch.manual_seed(0)
    narrow = scaled(pair, 0.4)
    found = [
        log_marginal(pair.model, narrow, x, num_samples=3000, memory=memory, seed=0).khat for memory in (None, 100_000)
    ]
    assert found[0] is not None
    assert found[1] is not None
    assert float((found[0] - found[1]).abs().max()) < 0.5
    assert float(found[1].min()) > 0.6


def test_discrete_latents_have_bounded_weights() -> None:
    pair, x = Discrete(), torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]], dtype=torch.float64)
    result = log_marginal(pair.model, pair.guide, x, num_samples=1000, seed=0)
    assert result.khat is not None
    assert float(result.khat.max()) < 0.5


def test_few_samples_tell_no_khat_and_no_verdict() -> None:
    pair = LinearGaussian()
    result = log_marginal(pair.model, pair.guide, pair.simulate(5), num_samples=20)
    assert result.khat is not None
    assert bool(result.khat.isnan().all())
    assert len(result.unreliable) == 0
    assert "k-hat" not in repr(result)


def test_impossible_data_are_unreliable() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
            pyro.factor("x", torch.where(x > 1, -math.inf, 0.0))

    result = log_marginal(model, None, torch.tensor([0.0, 2.0]), method="prior", num_samples=50)
    assert result.unreliable.tolist() == [1]
