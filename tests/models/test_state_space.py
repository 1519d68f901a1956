"""The deep Markov model, a particle filter and forecasts, against the Kalman filter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pyro import poutine
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

import pyro_vae as pv
from pyro_vae.models import DeepMarkovModel
from pyro_vae.oracles import LinearStateSpace

N, T = 4, 6
ORACLE = LinearStateSpace(length=T)


def series(n: int = N) -> Tensor:
    torch.manual_seed(0)
    return ORACLE.simulate(n)


def as_linear(oracle: LinearStateSpace) -> DeepMarkovModel:
    """The deep Markov model with linear parts and the generative parameters of the oracle; its guide is untrained."""
    torch.manual_seed(0)
    likelihood = pv.conditionals.Normal(3, scale=oracle.scale)
    pair = DeepMarkovModel((T, 3), 2, (), "linear", rnn_dim=8, likelihood=likelihood).double().eval()
    (emission,) = (m for m in pair.emission.modules() if isinstance(m, nn.Linear))
    with torch.no_grad():
        pair.initial.copy_(torch.cat([oracle.initial_loc, oracle.initial_log_scale]))
        values = {"linear.weight": oracle.transition, "linear.bias": oracle.drift, "log_scale": oracle.log_scale}
        for name, value in values.items():
            pair.transition.get_parameter(name).copy_(value)
        emission.weight.copy_(oracle.weight)
        emission.bias.copy_(oracle.bias)
        pair.combiner.final.bias[2:] += 0.7  # wide, which a proposal should be
    return pair


def densities(pair: DeepMarkovModel, *args: Tensor) -> tuple[Tensor, Tensor]:
    """log q and log p at one draw of the states, with the same noise for those that a longer series has first."""
    torch.manual_seed(0)
    guide = poutine.trace(pair.guide).get_trace(*args)
    model = poutine.trace(poutine.replay(pair.model, trace=guide)).get_trace(*args)
    return torch.as_tensor(guide.log_prob_sum()), torch.as_tensor(model.log_prob_sum())


def test_the_kalman_filter_is_the_joint_gaussian() -> None:
    """log p, the last state and what follows, by conditioning the Gaussian of all states and observations."""
    x, steps = series(), 3
    states = ORACLE.states(T + steps)
    loading = torch.block_diag(*[ORACLE.weight] * (T + steps))
    mean = states.mean @ loading.T + ORACLE.bias.repeat(T + steps)
    covariance = loading @ states.covariance_matrix @ loading.T + ORACLE.scale**2 * torch.eye(len(mean)).double()
    past, after = slice(0, 3 * T), slice(3 * T, None)
    joint = MultivariateNormal(mean[past], covariance[past, past])
    torch.testing.assert_close(ORACLE.log_prob(x), joint.log_prob(x.flatten(1)))
    gain = covariance[after, past] @ covariance[past, past].inverse()
    expected = mean[after] + (x.flatten(1) - mean[past]) @ gain.T
    left = (covariance[after, after] - gain @ covariance[past, after]).diagonal()
    found, variance = ORACLE.forecast(x, steps)
    torch.testing.assert_close(found, expected.unflatten(-1, (steps, 3)))
    torch.testing.assert_close(variance, left.unflatten(-1, (steps, 3)))


def test_bounds_and_estimates_of_the_oracle() -> None:
    x = series()
    exact, elbo = ORACLE.log_prob(x), ORACLE.elbo(x)
    assert (elbo < exact).all()
    found = pv.log_marginal(ORACLE.model, ORACLE.guide, x, num_samples=20_000, seed=0)
    assert found.bounds is not None
    torch.testing.assert_close(found.bounds[0], elbo.detach(), atol=0.15, rtol=0)  # the mean of the log-weights
    assert ((found.log_prob - exact).abs() < 4 * found.std_error).all()
    filtered = pv.log_marginal(ORACLE.model, ORACLE.guide, x, method=pv.SMC(num_particles=300), seed=0)
    assert ((filtered.log_prob - exact).abs() < 4 * filtered.std_error).all()
    assert filtered.mean_error < found.mean_error
    assert filtered.method == "smc"


def test_the_kl_of_each_step_in_closed_form_has_the_exact_gradient() -> None:
    found = pv.check_estimator("mean_field", LinearStateSpace(2, 1, 3), repeats=300, seed=0)
    assert found.passed, str(found)


def test_a_particle_filter_of_one_stage_is_importance_sampling_and_of_all_is_unbiased() -> None:
    """The mean of many small filters is p(x), with and without resampling, which their logarithms are not."""
    x = series(2)
    exact = ORACLE.log_prob(x).detach()
    for options in ({"every": T}, {"every": 4, "threshold": 1.0}, {"threshold": 1.0}, {"threshold": 0.0}):
        method = pv.SMC(num_particles=20, num_runs=1500, **options)
        found = pv.log_marginal(ORACLE.model, ORACLE.guide, x, method=method, seed=1)
        assert ((found.log_prob - exact).abs() < 4 * found.std_error).all(), options
        assert float(found.std_error.max()) < 0.2


def test_a_linear_deep_markov_model_is_the_oracle_and_lengths_are_exact() -> None:
    """Also for a guide that knows nothing; padded series have the numbers of unpadded ones, whatever the padding."""
    pair, x = as_linear(ORACLE), series()
    lengths = torch.tensor([6, 3, 1, 4])
    exact = torch.stack([ORACLE.log_prob(x[i : i + 1, :t])[0] for i, t in enumerate(lengths.tolist())])
    padded = torch.where((torch.arange(T) < lengths.unsqueeze(-1)).unsqueeze(-1), x, torch.nan)
    found = pv.log_marginal(pair.model, pair.guide, padded, lengths, method=pv.SMC(num_particles=2000), seed=0)
    assert ((found.log_prob - exact).abs() < 4 * found.std_error).all()
    assert float(found.std_error.max()) < 0.3
    h = pair.read(torch.where(padded.isnan(), 1e3, padded), lengths)
    for i, t in enumerate(lengths.tolist()):
        torch.testing.assert_close(h[i : i + 1, :t], pair.read(x[i : i + 1, :t]))
        with_padding = densities(pair, padded[i : i + 1], lengths[i : i + 1])
        torch.testing.assert_close(with_padding, densities(pair, x[i : i + 1, :t]))


def test_forecasts_are_those_of_the_kalman_filter_and_cover() -> None:
    x, steps = series(200), 3
    mean, variance = ORACLE.forecast(x[:4], steps)
    found = pv.forecast(ORACLE.model, ORACLE.guide, x[:4], steps=steps, num_samples=4000, seed=0)
    error = (variance / 4000).sqrt()
    assert ((found.mean - mean).abs() < 6 * error).all()
    torch.testing.assert_close(found.scale, variance.sqrt().expand(4, -1, -1), rtol=0.06, atol=0.0)
    low, high = found.interval(0.8)
    width = 2 * 1.2815515655 * variance.sqrt()
    torch.testing.assert_close(high - low, width.expand(4, -1, -1), rtol=0.08, atol=0.0)

    past, actual = x[:, :4], x[:, 4:]
    covered = pv.forecast(ORACLE.model, ORACLE.guide, past, steps=2, num_samples=300, seed=0).coverage(actual, 0.8)
    assert covered.shape == (2,)
    assert ((covered - 0.8).abs() < 0.06).all()

    pair = as_linear(ORACLE)  # each series goes on from its own end
    lengths = torch.tensor([6, 2, 2, 5])
    found = pv.forecast(pair.model, pair.guide, x[:4], lengths, steps=1, num_samples=20_000, seed=0)
    for i, t in enumerate(lengths.tolist()):
        mean, variance = ORACLE.forecast(x[i : i + 1, :t], 1)
        assert ((found.mean[i] - mean[0]).abs() < 0.1).all()
        torch.testing.assert_close(found.scale[i], variance.sqrt().detach(), rtol=0.12, atol=0.0)


def test_counts_train_and_the_questions_take_the_pair() -> None:
    torch.manual_seed(0)
    rate = (torch.linspace(0, 6, 8).sin() + 1.2).exp().reshape(1, -1, 1)
    x = torch.poisson(rate.expand(40, -1, 2))
    pair = DeepMarkovModel((8, 2), 3, (8,), transition_dim=8, rnn_dim=8, likelihood="poisson")
    history = pv.fit(
        *(pair.model, pair.guide, x),
        epochs=8,
        batch_size=20,
        lr=0.02,
        kl_weight=pv.elbo.Warmup(4),
        seed=0,
        progress=False,
    )
    assert history[-1].train_elbo > history[0].train_elbo + 5
    report = pv.latent_report(pair.model, pair.guide, x, seed=0)
    assert [site.name for site in report.sites] == [f"z_{t + 1}" for t in range(8)]
    assert pv.reconstruct(pair.model, pair.guide, x).shape == x.shape
    assert pv.sample(pair.model, 3).shape == (3, 8, 2)
    assert pair.sample(3, length=5).shape == (3, 5, 2)
    ahead = pv.forecast(pair.model, pair.guide, x, steps=2, num_samples=10).draws
    assert bool((ahead >= 0).all())
    assert torch.equal(ahead, ahead.round())


def test_bad_arguments() -> None:
    pair = DeepMarkovModel((5, 2), 2, (3,), transition_dim=3, rnn_dim=3)
    x = torch.zeros(3, 5, 2)
    with pytest.raises(ValueError, match="transition"):
        DeepMarkovModel((5, 2), transition="straight")
    for args, message in (
        ((x[..., :1],), r"series of shape \(N, T, 2\), got \(3, 5, 1\)"),
        ((x, torch.ones(3)), "lengths must be integers of shape"),
        ((x, torch.tensor([0, 1, 2])), "lengths must be from 1 to 5, the steps of x, got 0 to 2"),
    ):
        with pytest.raises(ValueError, match=message):
            pair.guide(*args)
    with pytest.raises(ValueError, match="expected numbers of at least 1"):
        pair.sample(2, length=0)
    found = pv.forecast(pair.model, pair.guide, x, num_samples=4)
    with pytest.raises(ValueError, match="level must be between 0 and 1"):
        found.interval(1.0)
    with pytest.raises(ValueError, match="actual must have the shape"):
        found.coverage(x)
    with pytest.raises(ValueError, match="actual has NaN"):
        found.coverage(x[:, :1] * torch.nan)
    oracle = pv.oracles.LinearStateSpace()
    for ask in (oracle.log_prob, oracle.elbo):
        for shape in ((3, 4), (3, 4, 1), (3, 0, 3)):
            with pytest.raises(ValueError, match=r"expected series of shape \(N, T, 3\)"):
                ask(torch.zeros(shape))
    with pytest.raises(ValueError, match="steps must be at least 1"):
        oracle.forecast(torch.zeros(2, 2, 3), 0)
    options: dict[str, Any]
    for options in ({"num_particles": 0}, {"every": 0}, {"threshold": 2.0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            pv.SMC(**options)
    vae = pv.VAE(6, 2, hidden=(3,))
    with pytest.raises(TypeError, match=r"SMC has particles: use method=pv.SMC\(num_particles=...\)"):
        pv.log_marginal(pair.model, pair.guide, x, method="smc", num_samples=5)
    with pytest.raises(ValueError, match="expected data of shape"):
        pv.forecast(vae.model, vae.guide, torch.zeros(3, 6), num_samples=5)
