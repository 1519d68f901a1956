"""The oracles against each other: two routes to one number."""

from __future__ import annotations

import itertools

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import kl_divergence

from tests.oracles import Discrete, LinearGaussian, TopDownChain, ppca_log_prob


def test_elbo_is_log_prob_less_the_distance_to_the_posterior() -> None:
    pair = LinearGaussian()
    x = pair.simulate(6)
    q, p = pair.q(x), pair.posterior(x)
    gap = kl_divergence(dist.MultivariateNormal(q.mean, q.variance.diag_embed()), p)
    torch.testing.assert_close(pair.elbo(x), pair.log_prob(x) - gap)


def test_joint_is_marginal_times_posterior() -> None:
    pair = LinearGaussian()
    x, z = pair.simulate(6), torch.randn(6, 2, dtype=torch.float64)
    joint = pair.prior().log_prob(z) + dist.Normal(z @ pair.weight.T + pair.bias, pair.scale).to_event(1).log_prob(x)
    torch.testing.assert_close(joint, pair.log_prob(x) + pair.posterior(x).log_prob(z))


def test_discrete_probabilities_sum_to_one() -> None:
    every = torch.tensor(list(itertools.product([0.0, 1.0], repeat=3)), dtype=torch.float64)
    assert Discrete().log_prob(every).exp().sum().item() == pytest.approx(1.0)


def test_discrete_elbo_is_log_prob_less_the_distance_to_the_posterior() -> None:
    pair, x = Discrete(), torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]], dtype=torch.float64)
    q = dist.Categorical(logits=x @ pair.encoder.T)
    gap = kl_divergence(q, dist.Categorical(logits=pair.log_joint(x)))
    torch.testing.assert_close(pair.elbo(x), pair.log_prob(x) - gap)


def test_chain_elbo_is_the_mean_over_draws() -> None:
    pair, x = TopDownChain(), torch.tensor([0.4], dtype=torch.float64)
    z1 = dist.Normal(pair.w * x, pair.t1).sample((200_000,))
    z2 = dist.Normal(pair.u * z1, pair.t2).sample()
    log_p = dist.Normal(0.0, 1.0).log_prob(z2) + dist.Normal(pair.a * z2, pair.s).log_prob(z1)
    log_q = dist.Normal(pair.w * x, pair.t1).log_prob(z1) + dist.Normal(pair.u * z1, pair.t2).log_prob(z2)
    draws = log_p + dist.Normal(z1, pair.r).log_prob(x) - log_q
    error = float(draws.std()) / len(draws) ** 0.5
    assert float(draws.mean()) == pytest.approx(float(pair.elbo(x)), abs=4 * error)
    assert float(pair.elbo(x)) < float(pair.log_prob(x))


def test_no_linear_gaussian_model_beats_ppca() -> None:
    x = LinearGaussian().simulate(200)
    best = ppca_log_prob(x, latent_dim=2, scale=0.7)
    assert all(LinearGaussian(seed=seed).log_prob(x).mean().item() < best for seed in range(20))


def test_ppca_is_reached_by_the_eigenvectors() -> None:
    x = LinearGaussian().simulate(200)
    values, vectors = torch.linalg.eigh(torch.cov(x.T, correction=0))
    best = LinearGaussian()
    with torch.no_grad():
        best.weight.copy_(vectors[:, -2:] * (values[-2:] - best.scale**2).sqrt())
        best.bias.copy_(x.mean(0))
    assert best.log_prob(x).mean().item() == pytest.approx(ppca_log_prob(x, 2, best.scale))
