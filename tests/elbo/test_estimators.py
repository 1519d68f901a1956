"""The many-sample and score-function estimators against quadrature and enumeration."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyro_vae.elbo import SurrogateELBO, WeightedKL, make
from pyro_vae.oracles import Discrete, LinearGaussian
from tests.helpers.estimator_gradients import check, gradients

GUIDE = ("encoder", "offset", "log_scale")


def log_mean(log_w: Tensor) -> Tensor:
    return log_w.logsumexp(0) - math.log(len(log_w))


def renyi(alpha: float) -> Callable[[Tensor], Tensor]:
    return lambda log_w: log_mean((1 - alpha) * log_w) / (1 - alpha)


def combined(beta: float) -> Callable[[Tensor], Tensor]:
    return lambda log_w: beta * log_w.mean(0) + (1 - beta) * log_mean(log_w)


def two_samples(pair: LinearGaussian, x: Tensor, value: Callable[[Tensor], Tensor]) -> Tensor:
    """E[value(log w_1, log w_2)] summed over the data, by Gauss-Hermite quadrature; the latent has one dimension."""
    points, masses = (torch.tensor(a) for a in np.polynomial.hermite_e.hermegauss(80))
    masses = masses / masses.sum()
    q = pair.q(x)
    z = q.mean + points[:, None, None] * q.stddev  # (M, N, 1)
    log_w = log_densities(pair, x, z)[0] - log_densities(pair, x, z)[1]
    grid = torch.stack(torch.broadcast_tensors(log_w[:, None], log_w[None, :]))  # (2, M, M, N)
    return torch.einsum("i,j,ijn->", masses, masses, value(grid))


def log_densities(pair: LinearGaussian, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    given = dist.Normal(z @ pair.weight.T + pair.bias, pair.scale).to_event(1).log_prob(x)
    return pair.prior().log_prob(z) + given, pair.q(x).log_prob(z)


def wake(pair: LinearGaussian, x: Tensor) -> Tensor:
    """A function whose gradient is reweighted wake-sleep's expected one for two samples."""
    points, masses = (torch.tensor(a) for a in np.polynomial.hermite_e.hermegauss(80))
    masses = masses / masses.sum()
    q = pair.q(x)
    z = (q.mean + points[:, None, None] * q.stddev).detach()
    log_p, log_q = log_densities(pair, x, z)
    pairs = [torch.stack(torch.broadcast_tensors(a[:, None], a[None, :])) for a in (log_p - log_q, log_p + log_q)]
    return torch.einsum("i,j,ijn->", masses, masses, (pairs[0].softmax(0).detach() * pairs[1]).sum(0))


def ranked(pair: LinearGaussian, x: Tensor) -> Tensor:
    """A function with the tail-adaptive gradient for two samples: the larger weight counts 2/3, the other 1/3."""
    points, masses = (torch.tensor(a) for a in np.polynomial.hermite_e.hermegauss(80))
    masses = masses / masses.sum()
    q = pair.q(x)
    z = q.mean + points[:, None, None] * q.stddev
    cut = dist.Normal(q.mean.detach(), q.stddev.detach()).to_event(1)
    grid = torch.stack(
        torch.broadcast_tensors(*((a := log_densities(pair, x, z)[0] - cut.log_prob(z))[:, None], a[None]))
    )
    counts = torch.where(grid >= grid.flip(0), 2 / 3, 1 / 3).detach()
    counts = torch.where(grid == grid.flip(0), torch.tensor(0.5, dtype=grid.dtype), counts)
    return torch.einsum("i,j,ijn->", masses, masses, (counts * grid).sum(0))


@pytest.fixture
def gaussian() -> tuple[LinearGaussian, Tensor]:
    pair = LinearGaussian(data_dim=2, latent_dim=1)
    return pair, pair.simulate(2)


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize(
    ("name", "options", "value"),
    [
        ("iwae", {}, log_mean),
        ("dreg", {}, log_mean),
        ("miwae", {"groups": 1}, log_mean),
        ("miwae", {"groups": 2}, lambda log_w: log_w.mean(0)),
        ("ciwae", {"beta": 0.3}, combined(0.3)),
        ("renyi", {"alpha": 0.5}, renyi(0.5)),
        ("renyi", {"alpha": -1.0}, renyi(-1.0)),
        ("vimco", {}, log_mean),
        ("stl", {}, lambda log_w: log_w.mean(0)),
        ("reinforce", {}, lambda log_w: log_w.mean(0)),
        ("reinforce", {"every_site": True, "baseline": "running"}, lambda log_w: log_w.mean(0)),
        ("reinforce", {"every_site": True, "baseline": "leave_one_out"}, lambda log_w: log_w.mean(0)),
    ],
)
def test_two_samples_of_a_gaussian(
    gaussian: tuple[LinearGaussian, Tensor], name: str, options: Any, value: Callable[[Tensor], Tensor], vectorize: bool
) -> None:
    pair, x = gaussian
    exact = two_samples(pair, x, value)
    check(make(name, num_particles=2, vectorize_particles=vectorize, **options), pair, x, exact, gradients(exact, pair))


def test_quadrature_agrees_with_the_closed_form(gaussian: tuple[LinearGaussian, Tensor]) -> None:
    pair, x = gaussian
    torch.testing.assert_close(two_samples(pair, x, lambda log_w: log_w.mean(0)), pair.elbo(x).sum())


def test_piwae_takes_each_side_from_its_own_bound(gaussian: tuple[LinearGaussian, Tensor]) -> None:
    pair, x = gaussian
    bound = two_samples(pair, x, log_mean)
    of_model, of_guide = gradients(bound, pair), gradients(pair.elbo(x).sum(), pair)
    exact = {n: (of_guide if n in GUIDE else of_model)[n] for n in of_model}
    check(make("piwae", num_particles=2, groups=2), pair, x, bound, exact)


def test_wake_sleep_follows_the_weighted_posterior(gaussian: tuple[LinearGaussian, Tensor]) -> None:
    pair, x = gaussian
    exact = gradients(wake(pair, x), pair)
    check(make("rws", num_particles=2), pair, x, two_samples(pair, x, log_mean), exact)


def test_tail_adaptive_counts_by_rank(gaussian: tuple[LinearGaussian, Tensor]) -> None:
    pair, x = gaussian
    exact = gradients(ranked(pair, x), pair)
    check(make("tail_adaptive", num_particles=2), pair, x, pair.elbo(x).sum(), exact)


def test_bounds_are_ordered(gaussian: tuple[LinearGaussian, Tensor]) -> None:
    pair, x = gaussian
    copies = x.repeat(20_000, 1)
    values = [
        -float(make("iwae", num_particles=k).loss(pair.model, pair.guide, copies)) / 40_000 for k in (1, 2, 8, 64)
    ]
    assert float(pair.elbo(x).detach().mean()) < values[1]
    assert values == sorted(values)
    assert values[-1] < float(pair.log_prob(x).detach().mean())


@pytest.mark.parametrize("name", ["stl", "dreg"])
@pytest.mark.parametrize("particles", [1, 5])
def test_no_variance_at_the_posterior(name: str, particles: int) -> None:
    pair = LinearGaussian(data_dim=3, latent_dim=1)
    x = pair.simulate(4)
    posterior = pair.posterior(x)
    loc = nn.Parameter(posterior.mean.detach())
    log_scale = nn.Parameter(posterior.variance.detach().sqrt().log())

    def guide(x: Tensor) -> None:
        m, s = pyro.param("loc", loc), pyro.param("log_scale", log_scale)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(m, s.exp()).to_event(1))

    loss = make(name, num_particles=particles).differentiable_loss(pair.model, guide, x)
    grads = torch.autograd.grad(loss, [pyro.param("loc"), pyro.param("log_scale")])
    assert max(float(g.abs().max()) for g in grads) < 1e-10
    plain = make("trace", num_particles=particles).differentiable_loss(pair.model, guide, x)
    noisy = torch.autograd.grad(plain, [pyro.param("loc"), pyro.param("log_scale")])
    assert float(noisy[1].abs().max()) > 1e-2  # what sticking the landing takes away


def enumerated(pair: Discrete, x: Tensor, value: Callable[[Tensor], Tensor], particles: int) -> Tensor:
    """E[value(log w)] summed over the data, over all tuples of latents."""
    log_q = (x @ pair.encoder.T).log_softmax(-1)  # (N, C)
    log_w = pair.log_joint(x) - log_q
    total = x.new_zeros(())
    for classes in itertools.product(range(log_q.shape[1]), repeat=particles):
        picked = torch.stack([log_w[:, c] for c in classes])
        chance = torch.stack([log_q[:, c] for c in classes]).sum(0).exp()
        total = total + (chance * value(picked)).sum()
    return total


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize(
    ("name", "options", "value"),
    [
        ("vimco", {}, log_mean),
        ("iwae", {}, log_mean),
        ("renyi", {"alpha": 0.5}, renyi(0.5)),
        ("ciwae", {"beta": 0.3}, combined(0.3)),
        ("reinforce", {}, lambda log_w: log_w.mean(0)),
        ("reinforce", {"baseline": "running"}, lambda log_w: log_w.mean(0)),
        ("reinforce", {"baseline": "leave_one_out"}, lambda log_w: log_w.mean(0)),
    ],
)
def test_two_samples_of_a_discrete_latent(
    name: str, options: Any, value: Callable[[Tensor], Tensor], vectorize: bool
) -> None:
    pair = Discrete()
    x = torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]], dtype=torch.float64)
    exact = enumerated(pair, x, value, 2)
    check(make(name, num_particles=2, vectorize_particles=vectorize, **options), pair, x, exact, gradients(exact, pair))


def test_a_learned_baseline_is_trained_and_leaves_the_gradient_unbiased() -> None:
    pair = Discrete()
    x = torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]], dtype=torch.float64)
    baseline = nn.Linear(3, 1).double()
    elbo = make("reinforce", num_particles=1, baseline=baseline)
    exact = pair.elbo(x).sum()
    check(elbo, pair, x, exact, gradients(exact, pair))
    loss = elbo.differentiable_loss(pair.model, pair.guide, x)
    assert torch.autograd.grad(loss, baseline.weight)[0].abs().max() > 0
    assert any(".baseline" in name for name in pyro.get_param_store())


def test_a_subsampled_plate_scales_the_bound_and_not_the_weights(gaussian: tuple[LinearGaussian, Tensor]) -> None:
    pair, x = gaussian

    def model(x: Tensor) -> None:
        with pyro.plate("data", 100, subsample=torch.arange(len(x))):
            z = pyro.sample("z", pair.prior())
            pyro.sample("x", dist.Normal(z @ pair.weight.T + pair.bias, pair.scale).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", 100, subsample=torch.arange(len(x))):
            pyro.sample("z", pair.q(x))

    elbo = make("iwae", num_particles=50)
    torch.manual_seed(1)
    plain = elbo.differentiable_loss(pair.model, pair.guide, x)
    torch.manual_seed(1)
    scaled = elbo.differentiable_loss(model, guide, x)
    torch.testing.assert_close(scaled, 50 * plain)
    assert -float(scaled.detach()) / 100 < float(pair.log_prob(x).detach().mean()) + 0.2


def test_the_kl_weight_stays_inside_each_weight(gaussian: tuple[LinearGaussian, Tensor]) -> None:
    pair, x = gaussian
    weighted = WeightedKL(make("iwae", num_particles=1), 0.25)
    losses = torch.stack([weighted.loss(pair.model, pair.guide, x.repeat(4000, 1)) / 4000 for _ in range(20)])
    exact = -pair.elbo(x, weight=0.25).detach().sum()
    assert abs(float(losses.mean() - exact)) < 4.5 * float(losses.std() / math.sqrt(20))


def two_latents(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        a = pyro.sample("a", dist.Normal(x.new_zeros(()), 1.0))
        b = pyro.sample("b", dist.Normal(0.5 * a, 1.0))
        pyro.sample("x", dist.Normal(a + b, 1.0), obs=x)


def chained_guide(x: Tensor) -> None:
    slope = pyro.param("slope", torch.tensor(0.4, dtype=torch.float64))
    with pyro.plate("data", len(x)):
        a = pyro.sample("a", dist.Normal(slope * x, 0.7))
        pyro.sample("b", dist.Normal(0.3 * x - slope * a, 0.8))


@pytest.mark.parametrize("name", ["stl", "dreg", "iwae", "vimco"])
def test_a_guide_with_dependent_latents(name: str) -> None:
    x = torch.tensor([0.8], dtype=torch.float64)
    two_latents(x)
    chained_guide(x)
    slope = pyro.get_param_store()._params["slope"]
    particles = 1 if name == "stl" else 3

    def mean_gradient(elbo: Any) -> tuple[float, float]:
        draws = torch.stack(
            [
                torch.autograd.grad(elbo.differentiable_loss(two_latents, chained_guide, x.repeat(400)), slope)[0] / 400
                for _ in range(50)
            ]
        )
        return float(draws.mean()), float(draws.std() / math.sqrt(50))

    # autograd through the plain bound, whose gradient is exact in expectation
    (plain, error), (ours, our_error) = (
        mean_gradient(make("trace" if name == "stl" else "iwae", num_particles=particles)),
        mean_gradient(make(name, num_particles=particles)),
    )
    assert abs(plain - ours) < 4.5 * math.hypot(error, our_error)


@pytest.mark.parametrize("name", ["stl", "dreg"])
def test_a_discrete_latent_is_refused_by_name(name: str) -> None:
    pair = Discrete()
    with pytest.raises(ValueError, match=r"'c' is drawn from Categorical.*vimco"):
        make(name, num_particles=2).differentiable_loss(pair.model, pair.guide, torch.zeros(1, 3, dtype=torch.float64))


@pytest.mark.parametrize("name", ["vimco", "rws", "tail_adaptive"])
def test_one_particle_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="at least 2, got 1"):
        make(name, num_particles=1)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("miwae", {"num_particles": 5, "groups": 2}, "groups must divide num_particles=5"),
        ("ciwae", {"num_particles": 2, "beta": 1.5}, r"beta must be in \[0, 1\]"),
        ("renyi", {"num_particles": 2, "alpha": 1.0}, "is the ELBO"),
        ("reinforce", {"num_particles": 1, "baseline": "leave_one_out"}, "num_particles must be >= 2"),
        ("reinforce", {"num_particles": 1, "baseline": "moving"}, "'none', 'running'"),
        ("reinforce", {"num_particles": 1, "decay": 1.0}, "decay must be"),
    ],
)
def test_bad_options(name: str, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(name, **options)


def test_an_estimator_of_your_own_is_its_coefficients(gaussian: tuple[LinearGaussian, Tensor]) -> None:
    from pyro_vae.elbo import Coefficients

    class Mean(SurrogateELBO):
        def coefficients(self, log_w: Tensor, *args: Any) -> Coefficients:
            even = torch.full_like(log_w, 1 / len(log_w))
            return Coefficients(log_w.mean(0), model=even, path=even, guide=-even)

    pair, x = gaussian
    exact = pair.elbo(x).sum()
    check(Mean(num_particles=2), pair, x, exact, gradients(exact, pair))
