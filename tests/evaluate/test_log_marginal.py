"""The marginal likelihood: right, and right for pairs unlike ours."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn

from pyro_vae.evaluate.marginal.likelihood import LogMarginal, log_marginal
from pyro_vae.oracles import Discrete, LinearGaussian, TopDownChain

Program = Callable[..., Any]


def z_scores(result: LogMarginal, exact: Tensor) -> Tensor:
    return (result.log_prob.double() - exact.detach()) / result.std_error.double()


# The number


def test_it_is_right_within_its_error() -> None:
    pair = LinearGaussian()
    x = pair.simulate(300)
    result = log_marginal(pair.model, pair.wide_guide, x, num_samples=2000)
    assert float((z_scores(result, pair.log_prob(x)).abs() < 3).double().mean()) >= 0.99


def test_its_error_is_calibrated() -> None:
    pair = LinearGaussian()
    x = pair.simulate(1).expand(400, 4)
    scores = z_scores(log_marginal(pair.model, pair.wide_guide, x, num_samples=500), pair.log_prob(x))
    assert float(scores.std()) == pytest.approx(1.0, abs=0.15)
    assert abs(float(scores.mean())) < 0.2


@pytest.mark.parametrize("num_samples", [1, 2, 5])
def test_p_is_unbiased_for_few_samples(num_samples: int) -> None:
    pair = LinearGaussian()
    x = pair.simulate(1).expand(20_000, 4)  # as many repeats
    ratio = (log_marginal(pair.model, pair.wide_guide, x, num_samples=num_samples).log_prob - pair.log_prob(x)).exp()
    error = float(ratio.detach().std()) / math.sqrt(len(x))
    assert float(ratio.detach().mean()) == pytest.approx(1.0, abs=4 * error)


def test_bounds_rise_to_it() -> None:
    pair = LinearGaussian()
    x = pair.simulate(200)
    means = [log_marginal(pair.model, pair.guide, x, num_samples=k, seed=0).mean for k in (1, 10, 100, 1000)]
    assert means == sorted(means)
    assert means[-1] < pair.log_prob(x).mean().item()


@pytest.mark.parametrize("memory", [None, 1, 5000, 60_000])
def test_the_exact_posterior_gives_the_exact_number_in_any_chunks(memory: int | None) -> None:
    pair = LinearGaussian()
    x = pair.simulate(7)
    result = log_marginal(pair.model, pair.exact_guide, x, num_samples=11, memory=memory)
    torch.testing.assert_close(result.log_prob, pair.log_prob(x).detach())
    torch.testing.assert_close(result.ess, torch.full((7,), 11.0).double())
    assert float(result.std_error.max()) < 1e-6


@pytest.mark.parametrize("memory", [1500, 20_000, 10**9])
def test_chunks_change_nothing_but_the_noise(memory: int) -> None:
    pair = LinearGaussian()
    x = pair.simulate(37)
    result = log_marginal(pair.model, pair.wide_guide, x, num_samples=101, memory=memory)
    scores = z_scores(result, pair.log_prob(x))
    assert result.num_samples == 101
    assert float(scores.square().mean()) == pytest.approx(1.0, abs=0.7)


def test_effective_sample_size_lies_between_one_and_all() -> None:
    pair = LinearGaussian()
    ess = log_marginal(pair.model, pair.guide, pair.simulate(50), num_samples=20).ess
    assert 1.0 <= float(ess.min()) <= float(ess.max()) <= 20.0


def test_one_sample_knows_no_error() -> None:
    pair = LinearGaussian()
    result = log_marginal(pair.model, pair.guide, pair.simulate(3), num_samples=1)
    assert result.std_error.isinf().all()
    assert result.ess.tolist() == [1.0] * 3


def test_one_datum() -> None:
    pair = LinearGaussian()
    x = pair.simulate(1)
    result = log_marginal(pair.model, pair.exact_guide, x, num_samples=3)
    torch.testing.assert_close(result.log_prob, pair.log_prob(x).detach())
    assert result.sampling_error == math.inf


def test_errors_of_the_mean() -> None:
    result = LogMarginal(torch.tensor([1.0, 3.0]), torch.tensor([0.3, 0.4]), torch.tensor([2.0, 4.0]), 5)
    assert result.mean == 2.0
    assert result.mean_error == pytest.approx(0.25)
    assert result.sampling_error == pytest.approx(1.0)
    assert result.to_dict()["ess_min"] == 2.0
    assert "log p(x) = 2.000 ± 0.250 nats per datum (2 data, 5 samples each" in repr(result)


def test_a_seed_repeats_the_noise_and_leaves_the_generator() -> None:
    pair = LinearGaussian()
    x = pair.simulate(5)
    state = torch.get_rng_state()
    first, second = (log_marginal(pair.model, pair.guide, x, num_samples=9, seed=3) for _ in range(2))
    assert torch.equal(first.log_prob, second.log_prob)
    assert torch.equal(torch.get_rng_state(), state)


def test_single_precision_data_give_single_precision_numbers() -> None:
    pair = LinearGaussian().float()
    x = pair.simulate(20).float()
    result = log_marginal(pair.model, pair.wide_guide, x, num_samples=500)
    assert result.log_prob.dtype == torch.float32
    assert float(z_scores(result, pair.log_prob(x)).abs().max()) < 4


def test_images_of_bytes_do_not_round_the_result() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x.float())

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.float() / 2, 0.5**0.5))

    x = torch.tensor([0, 1, 2], dtype=torch.uint8)
    result = log_marginal(model, guide, x, num_samples=2)
    torch.testing.assert_close(result.log_prob, dist.Normal(0.0, 2**0.5).log_prob(x.float()))


# Pairs unlike ours


def normal_pair(x: Tensor, observe: bool) -> None:
    """Two observed coordinates of one latent under other names, the data plate outside a plate of coordinates."""
    with pyro.plate("people", x.shape[0], dim=-2):
        mood = pyro.sample("mood", dist.Normal(torch.zeros(1, dtype=x.dtype), 1.0))
        if observe:
            with pyro.plate("answers", x.shape[1], dim=-1):
                pyro.sample("answer", dist.Normal(mood, 1.0), obs=x)


def test_data_at_another_dimension_with_a_plate_inside() -> None:
    x = torch.randn(30, 2, dtype=torch.float64)

    def guide(x: Tensor) -> None:
        with pyro.plate("people", x.shape[0], dim=-2):
            pyro.sample("mood", dist.Normal(x.sum(1, keepdim=True) / 3, 1.2 * 3**-0.5))

    result = log_marginal(lambda x: normal_pair(x, True), guide, x, num_samples=1000)
    covariance = torch.ones(2, 2).double() + torch.eye(2)
    exact = dist.MultivariateNormal(torch.zeros(2).double(), covariance).log_prob(x)
    assert float(z_scores(result, exact).abs().max()) < 4


def test_several_latent_sites() -> None:
    chain, x = TopDownChain(), torch.randn(30, dtype=torch.float64)
    result = log_marginal(chain.model, chain.guide, x, num_samples=5000)
    assert float(z_scores(result, chain.log_prob(x).detach()).abs().max()) < 4


def test_counts() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            rate = pyro.sample("rate", dist.Gamma(torch.full_like(x, 2.0), 0.5))
            pyro.sample("x", dist.Poisson(rate), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("rate", dist.Gamma(x + 1.8, 1.4))  # the posterior is Gamma(x + 2, 1.5)

    x = torch.arange(12, dtype=torch.float64)
    result = log_marginal(model, guide, x, num_samples=3000)
    exact = dist.NegativeBinomial(torch.tensor(2.0).double(), probs=torch.tensor(1 / 1.5).double()).log_prob(x)
    assert float(z_scores(result, exact).abs().max()) < 4


def test_a_discrete_latent() -> None:
    pair, x = Discrete(), torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]], dtype=torch.float64)
    result = log_marginal(pair.model, pair.guide, x, num_samples=3000)
    assert float(z_scores(result, pair.log_prob(x)).abs().max()) < 4


def conditional(x: Tensor, shift: Tensor, *, scale: Tensor, observe: bool = True) -> None:
    with pyro.plate("data", len(x)):
        if observe:
            z = pyro.sample("z", dist.Normal(shift, 1.0))
            pyro.sample("x", dist.Normal(z, scale), obs=x)
        else:
            precision = 1 + scale**-2
            pyro.sample("z", dist.Normal((shift + x / scale**2) / precision, precision**-0.5))


@pytest.mark.parametrize("memory", [None, 1])
def test_rows_of_other_arguments_go_with_their_data(memory: int | None) -> None:
    x, shift = torch.randn(9, dtype=torch.float64), torch.randn(9, dtype=torch.float64)
    scale = torch.rand(9, dtype=torch.float64) + 0.5

    def guide(x: Tensor, shift: Tensor, *, scale: Tensor) -> None:
        conditional(x, shift, scale=scale, observe=False)

    result = log_marginal(conditional, guide, x, shift, scale=scale, num_samples=3, memory=memory)
    torch.testing.assert_close(result.log_prob, dist.Normal(shift, (1 + scale**2).sqrt()).log_prob(x))


def test_masked_values_are_left_out() -> None:
    pair = LinearGaussian()
    x = pair.simulate(20)
    seen = torch.rand(20, 4) < 0.6

    def model(x: Tensor, seen: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", pair.prior())
            p = dist.Normal(z @ pair.weight.T + pair.bias, pair.scale).mask(seen).to_event(1)
            pyro.sample("x", p, obs=x)

    def guide(x: Tensor, seen: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", pair.prior())

    result = log_marginal(model, guide, x, seen, num_samples=5000)
    covariance = pair.weight @ pair.weight.T + pair.scale**2 * torch.eye(4)
    exact = torch.stack(
        [
            dist.MultivariateNormal(pair.bias[s], covariance[s][:, s]).log_prob(row[s]) if s.any() else torch.zeros(())
            for row, s in zip(x, seen, strict=True)
        ]
    )
    scores = z_scores(result, exact).nan_to_num(0.0)  # a datum without any value has no error
    assert float(scores.abs().max()) < 4


def test_masked_data_are_worth_nothing() -> None:
    pair = LinearGaussian()
    x, keep = pair.simulate(3), torch.tensor([True, False, True])

    def masked(program: Program) -> Program:
        def run(x: Tensor, keep: Any) -> None:
            with poutine.mask(mask=keep):
                program(x)

        return run

    result = log_marginal(masked(pair.model), masked(pair.exact_guide), x, keep, num_samples=3)
    torch.testing.assert_close(result.log_prob, pair.log_prob(x).detach() * keep)


def test_a_subsampled_plate_is_not_scaled_up() -> None:
    def subsampled(x: Tensor, observe: bool) -> None:
        with pyro.plate("data", 60_000, subsample=x):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0) if observe else dist.Normal(x / 2, 0.5**0.5))
            if observe:
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    x = torch.randn(5, dtype=torch.float64)
    result = log_marginal(lambda x: subsampled(x, True), lambda x: subsampled(x, False), x, num_samples=2)
    torch.testing.assert_close(result.log_prob, dist.Normal(torch.zeros(5).double(), 2**0.5).log_prob(x))


def test_parameters_of_each_datum_need_no_chunks() -> None:
    x = torch.randn(9, dtype=torch.float64)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        loc = pyro.param("loc", lambda: x / 2)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 0.5**0.5))

    guide(x)
    result = log_marginal(model, guide, x, num_samples=5, memory=1)
    torch.testing.assert_close(result.log_prob, dist.Normal(torch.zeros(9).double(), 2**0.5).log_prob(x))


def test_an_autoguide_of_each_datum() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            rate = pyro.sample("rate", dist.Gamma(torch.full_like(x, 2.0), 0.5))
            pyro.sample("x", dist.Poisson(rate), obs=x)

    x = torch.arange(9, dtype=torch.float64)
    guide = AutoNormal(model, init_scale=0.5)
    guide(x)
    with torch.no_grad():
        guide.locs.rate.copy_(((x + 2) / 1.5).log())
    result = log_marginal(model, guide, x, num_samples=1000)
    exact = dist.NegativeBinomial(torch.tensor(2.0).double(), probs=torch.tensor(1 / 1.5).double()).log_prob(x)
    assert float(z_scores(result, exact).abs().max()) < 4


# Networks


def net_pair(pair: LinearGaussian, net: Program) -> Program:
    """The oracle's model with the mean passed through `net`, an identity on matrices."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", pair.prior())
            pyro.sample("x", dist.Normal(net(z @ pair.weight.T + pair.bias), pair.scale).to_event(1), obs=x)

    return model


class Strict(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        if z.dim() != 2:
            raise ValueError("a matrix, please")
        return z


class Convolution(nn.Module):
    """A convolution of kernel size one, the identity, that takes `(N, 4)` only."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 1, bias=False, dtype=torch.float64)
        nn.init.ones_(self.conv.weight)

    def forward(self, z: Tensor) -> Tensor:
        return self.conv(z.reshape(len(z), 1, -1)).reshape(len(z), -1)


class Mixing(nn.Module):
    """Averages over leading dimensions, without a complaint."""

    def forward(self, z: Tensor) -> Tensor:
        return z.reshape(-1, *z.shape[-2:]).mean(0)


@pytest.mark.parametrize("net", [Strict(), Convolution(), Mixing()])
@pytest.mark.parametrize("memory", [None, 1])
def test_networks_without_leading_dimensions_give_the_same_number(net: nn.Module, memory: int | None) -> None:
    pair = LinearGaussian()
    x = pair.simulate(5)
    with pytest.warns(UserWarning, match=r"particles run one at a time.*let networks map"):
        result = log_marginal(net_pair(pair, net), pair.exact_guide, x, num_samples=4, memory=memory)
    torch.testing.assert_close(result.log_prob, pair.log_prob(x).detach())


def test_a_reshape_by_the_number_of_data_is_noticed() -> None:
    pair = LinearGaussian()
    x = pair.simulate(5)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", pair.prior())
            loc = z.reshape(len(x), -1)[:, :2] @ pair.weight.T + pair.bias
            pyro.sample("x", dist.Normal(loc, pair.scale).to_event(1), obs=x)

    with pytest.warns(UserWarning, match="one at a time"):
        result = log_marginal(model, pair.exact_guide, x, num_samples=4)
    torch.testing.assert_close(result.log_prob, pair.log_prob(x).detach())


def test_networks_that_take_leading_dimensions_do_not_warn() -> None:
    pair = LinearGaussian()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        log_marginal(net_pair(pair, nn.Identity()), pair.exact_guide, pair.simulate(5), num_samples=4)


def test_networks_are_evaluated_in_evaluation_mode() -> None:
    pair = LinearGaussian()
    net = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(4, eps=0, affine=False, dtype=torch.float64))
    net.train()
    frozen = nn.Identity().eval()
    x = pair.simulate(5)
    with pytest.warns(UserWarning, match="one at a time"):  # batch normalization takes (K, N, D) for (N, C, L)
        result = log_marginal(net_pair(pair, lambda z: frozen(net(z))), pair.exact_guide, x, num_samples=4)
    torch.testing.assert_close(result.log_prob, pair.log_prob(x).detach())
    assert all(m.training for m in net.modules())
    assert not frozen.training
    assert torch.equal(net[1].running_mean, torch.zeros(4).double())  # type: ignore[arg-type]


# What is refused


def test_global_latents() -> None:
    def model(x: Tensor, observe: bool = True) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        if observe:
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    result = log_marginal(model, lambda x: model(x, observe=False), torch.zeros(3), seed=0)
    exact = dist.MultivariateNormal(torch.zeros(3), torch.ones(3, 3) + torch.eye(3)).log_prob(torch.zeros(3))
    assert result.is_joint
    assert abs(float(result.log_prob - exact)) < 5 * float(result.std_error)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_no_numbers(value: float) -> None:
    pair = LinearGaussian()

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", pair.prior())
            pyro.sample("x", dist.Normal(z @ pair.weight.T, 1.0).to_event(1), obs=x)
            pyro.factor("penalty", torch.where(x[:, 0] > 50, value, 0.0))

    x = pair.simulate(6)
    x[4, 0] = 99.0
    expected = pytest.raises(ValueError, match=r"NaN or infinite importance weight, first datum 4: .*x\[4:5\]")
    with pyro.validation_enabled(False), expected:
        log_marginal(model, pair.guide, x, num_samples=3)


def test_impossible_data_have_probability_zero() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(torch.full_like(x, 0.5)))
            pyro.factor("x", torch.where((x > 1) & (z >= 0), -math.inf, 0.0))

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(torch.full_like(x, 0.5)))

    result = log_marginal(model, guide, torch.tensor([0.0, 2.0]), num_samples=4)
    assert result.log_prob.tolist() == [0.0, -math.inf]
    assert result.std_error.tolist() == [0.0, math.inf]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_samples": 0}, "num_samples must be at least 1, got 0"),
        ({"memory": 0}, "memory must be a positive number"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    pair = LinearGaussian()
    with pytest.raises(ValueError, match=message):
        log_marginal(pair.model, pair.guide, torch.zeros(3, 4), **options)
