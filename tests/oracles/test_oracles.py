"""The oracles against each other: two routes to one number."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_vae.oracles import (
    BitsAndClasses,
    Discrete,
    Grid,
    Interleaved,
    LinearGaussian,
    Oracle,
    TopDownChain,
    expected_log_mean,
    ppca_log_prob,
)

EVERY: dict[str, Oracle] = {
    "linear": LinearGaussian(seed=3),
    "linear, one latent": LinearGaussian(2, 1),
    "chain": TopDownChain(),
    "discrete": Discrete(),
    "bits": BitsAndClasses(bits=3, classes=0),
    "classes": BitsAndClasses(bits=0, classes=4),
    "bits and classes": BitsAndClasses(),
    "grid": Grid(),
    "interleaved": Interleaved(),
    "interleaved, two parts": Interleaved(parts=2, seed=1),
}
every = pytest.mark.parametrize("pair", EVERY.values(), ids=EVERY)


def gradient(value: Tensor, pair: Oracle) -> list[Tensor]:
    return list(torch.autograd.grad(value, list(pair.parameters()), allow_unused=True, materialize_grads=True))


def log_w(pair: Oracle, x: Tensor) -> Tensor:
    """One draw of log p(x, z) - log q(z|x), from the programs themselves, by their traces; `(N,)`."""
    with torch.no_grad():
        guide = poutine.trace(pair.guide).get_trace(x)
        model = poutine.trace(poutine.replay(pair.model, trace=guide)).get_trace(x)
        parts = [(t.nodes.values(), sign) for t, sign in ((model, 1), (guide, -1))]
        result = torch.zeros(len(x), dtype=x.dtype)
        for sites, sign in parts:
            for site in sites:
                if site["type"] == "sample" and not isinstance(site["fn"], _Subsample):
                    fn: Any = site["fn"]
                    result = result + sign * fn.log_prob(site["value"]).reshape(-1, len(x)).sum(0)
    return result


@every
def test_the_programs_are_what_the_closed_forms_are_of(pair: Oracle) -> None:
    """Mean log-weight: the ELBO. Mean weight: p(x). Of importance samples, so within standard errors."""
    x = pair.simulate(2)
    copies = x.repeat_interleave(20_000, 0)
    w = log_w(pair, copies).reshape(2, -1)
    error = w.std(1) / w.shape[1] ** 0.5
    torch.testing.assert_close((w.mean(1) - pair.elbo(x).detach()) / error, torch.zeros(2).double(), rtol=0, atol=4)
    ratio = (w - pair.log_prob(x).detach().unsqueeze(1)).exp()
    error = ratio.std(1) / w.shape[1] ** 0.5
    torch.testing.assert_close((ratio.mean(1) - 1) / error, torch.zeros(2).double(), rtol=0, atol=4)


@every
def test_the_points_stand_for_all_of_q(pair: Oracle) -> None:
    """Sums over them give log p(x) and the ELBO, with gradients, though these come from other formulas."""
    x = pair.simulate(3)
    w, mass = pair.weights(x)
    torch.testing.assert_close(mass.logsumexp(0), torch.zeros_like(mass[0]))
    by_points, exact = (w + mass).logsumexp(0), pair.log_prob(x)
    torch.testing.assert_close(by_points, exact, rtol=0, atol=1e-5)
    for of in ((by_points, exact), (pair.iwae(x, 1), pair.elbo(x))):
        for found, expected in zip(*(gradient(v.sum(), pair) for v in of), strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@every
@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_a_weight_is_on_the_kl_alone(pair: Oracle, weight: float) -> None:
    x = pair.simulate(3)
    given = pair.elbo(x, 0.0)
    torch.testing.assert_close(pair.elbo(x, weight), given + weight * (pair.elbo(x) - given))
    assert bool((given >= pair.elbo(x)).all())


@every
def test_elbo_and_bounds_rise_to_log_prob(pair: Oracle) -> None:
    x = pair.simulate(2)
    with torch.no_grad():
        bounds = torch.stack([pair.elbo(x), *(pair.iwae(x, k) for k in (2, 5, 50)), pair.log_prob(x)])
    assert bool((bounds.diff(dim=0) > 0).all())


def test_the_integral_agrees_with_the_sum_over_all_pairs() -> None:
    generator = torch.Generator().manual_seed(0)
    w = 3 * torch.randn(6, 2, generator=generator, dtype=torch.float64)
    mass = torch.randn(6, 2, generator=generator, dtype=torch.float64).log_softmax(0)
    w.requires_grad_()
    mass.requires_grad_()
    for k in (1, 2, 3):
        exact = torch.zeros(2, dtype=torch.float64)
        for picked in itertools.product(range(6), repeat=k):
            chance = mass[list(picked)].sum(0).exp()
            exact = exact + chance * (w[list(picked)].logsumexp(0) - math.log(k))
        found = expected_log_mean(w, mass, k)
        torch.testing.assert_close(found, exact, rtol=0, atol=1e-8)
        # the mass is a probability, so only what leaves its sum at one is compared
        a, b = (torch.autograd.grad(v.sum(), (w, mass), retain_graph=True) for v in (found, exact))
        torch.testing.assert_close(a[0], b[0], rtol=0, atol=1e-8)
        p = mass.exp().detach()
        project = [g - p * g.sum(0) for g in (a[1], b[1])]
        torch.testing.assert_close(project[0], project[1], rtol=0, atol=1e-7)


@pytest.mark.parametrize("pair", [LinearGaussian(), LinearGaussian(3, 2, seed=5), Discrete(), Discrete(4, 5, seed=2)])
def test_at_the_posterior_every_bound_is_log_prob(pair: Oracle) -> None:
    found = pair.at_posterior()
    assert found is not None
    x = pair.simulate(4)
    with torch.no_grad():
        torch.testing.assert_close(found.elbo(x), found.log_prob(x))
        torch.testing.assert_close(found.iwae(x, 3), found.log_prob(x))
    slopes = dict(zip(dict(found.named_parameters()), gradient(found.elbo(x).sum(), found), strict=True))
    assert all(float(slopes[name].abs().max()) < 1e-10 for name in found.guide_parameters)
    assert all(p is not q for p, q in zip(pair.parameters(), found.parameters(), strict=True))
    torch.testing.assert_close(log_w(found, x), found.log_prob(x).detach())


def test_the_data_are_the_models() -> None:
    """Mean and variance of many simulated data against the exact ones."""
    pair = LinearGaussian()
    x, n = pair.simulate(20_000), 20_000**0.5
    covariance = (pair.weight @ pair.weight.T).detach() + pair.scale**2 * torch.eye(4)
    torch.testing.assert_close(x.mean(0), pair.bias.detach(), rtol=0, atol=4 * float(covariance.max()) ** 0.5 / n)
    torch.testing.assert_close(torch.cov(x.T), covariance, rtol=0, atol=8 * float(covariance.max()) / n)
    for discrete in (Discrete(), BitsAndClasses(), BitsAndClasses(classes=0)):
        x = discrete.simulate(20_000)
        states = torch.tensor(list(itertools.product([0.0, 1.0], repeat=3)), dtype=torch.float64)
        share = (x.unsqueeze(0) == states.unsqueeze(1)).all(-1).double().mean(1)
        chance = discrete.log_prob(states).exp().detach()
        assert chance.sum().item() == pytest.approx(1.0)
        torch.testing.assert_close(share, chance, rtol=0, atol=4 * 0.5 / n)
    x = Grid().simulate(20_000)
    points = torch.linspace(-12.0, 12.0, 400, dtype=torch.float64)
    density = Grid().log_prob(torch.stack([points, torch.ones_like(points)], -1)).exp().detach()
    mean = torch.trapezoid(density * points, points)
    assert torch.trapezoid(density, points).item() == pytest.approx(1.0, abs=1e-6)
    assert float(x[:, 0].mean()) == pytest.approx(float(mean), abs=4 * float(x[:, 0].std()) / n)


def test_what_an_oracle_cannot_say() -> None:
    with pytest.raises(ValueError, match="latent_dim must be at most 2, got 3"):
        LinearGaussian(5, 3).iwae(torch.zeros(1, 5).double(), 2)
    with pytest.raises(ValueError, match="num_particles must be at least 1, got 0"):
        Discrete().iwae(torch.zeros(1, 3).double(), 0)
    assert TopDownChain().at_posterior() is None
    with pytest.raises(NotImplementedError, match="Oracle must define weights"):
        Oracle().iwae(torch.zeros(1), 2)


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
    pair, x = TopDownChain().requires_grad_(False), torch.tensor([0.4], dtype=torch.float64)
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


@pytest.mark.parametrize("spread", [1.0, 100.0, 800.0])
def test_expected_log_means_of_weights_far_apart(spread: float) -> None:
    """Two particles, over all pairs: weights under large scales differ by hundreds of nats."""
    torch.manual_seed(0)
    log_w = (spread * torch.randn(40, 2, dtype=torch.float64)).requires_grad_()
    mass = torch.randn(40, 2, dtype=torch.float64).log_softmax(0)
    pairs = torch.logaddexp(log_w[:, None], log_w[None]) - math.log(2)
    exact = ((mass[:, None] + mass[None]).exp() * pairs).sum((0, 1))
    found = expected_log_mean(log_w, mass, 2)
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-7)
    slopes = [torch.autograd.grad(value.sum(), log_w)[0] for value in (found, exact)]
    torch.testing.assert_close(slopes[0], slopes[1], rtol=0, atol=1e-7)
