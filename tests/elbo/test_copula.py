"""ARMS against enumeration, quadrature and DisARM."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_vae.elbo import ARMS, VarGrad, WeightedKL
from pyro_vae.elbo.estimators.copula import COUPLED, _Coupled, _over_one_less_correlation
from pyro_vae.oracles import BitsAndClasses, Grid
from pyro_vae.pair.running import traced
from tests.helpers.discrete_draws import check_each_draw
from tests.helpers.estimator_gradients import check, gradients
from tests.helpers.relaxed_draws import X, draws, flat_gradient

GRID_X = torch.tensor([[0.8, 1.0], [-0.5, 1.0]], dtype=torch.float64)


@pytest.mark.parametrize("k", [2, 3, 6])
def test_the_gradient_is_unbiased(k: int) -> None:
    pair = BitsAndClasses(bits=3, classes=0)
    exact = pair.elbo(X).sum()
    check(ARMS(k), pair, X, exact, gradients(exact, pair))


@pytest.mark.parametrize("k", [2, 4])
def test_many_draws_of_the_logits_gradient(k: int) -> None:
    check_each_draw(ARMS(k), BitsAndClasses(bits=3, classes=0), copies=20_000)


def test_the_kl_weight_is_in_the_signal_of_a_grid() -> None:
    pair = Grid()
    exact = pair.elbo(GRID_X, weight=0.3).sum()
    check(WeightedKL(ARMS(3), 0.3), pair, GRID_X, exact, gradients(exact, pair))


def test_a_subsampled_plate() -> None:
    pair = Grid()

    def gradient() -> Tensor:
        torch.manual_seed(1)
        return flat_gradient(ARMS(3).differentiable_loss(pair.model, pair.guide, GRID_X), pair)

    plain = gradient()
    pair.full_size = 20
    torch.testing.assert_close(gradient(), 10 * plain)


@pytest.mark.parametrize("k", [2, 3, 5])
def test_draws_and_their_correlation(k: int) -> None:
    """Frequencies of 200 000 sets of draws: each is from q, and two of them have the correlation that is divided by."""
    probs = torch.tensor([0.03, 0.3, 0.5, 0.8, 0.99], dtype=torch.float64)
    n = 200_000

    def guide() -> None:
        pyro.sample("b", dist.Bernoulli(probs.expand(n, 5)).to_event(2))

    b = traced(_Coupled(k)(guide), (), {}).nodes["b"][COUPLED]  # (K, n, 5)
    spread = probs * (1 - probs)
    z = (b.mean(1) - probs) / (spread / n).sqrt()
    assert float(z.abs().max()) < 4.5
    products = (b[0] - probs) * (b[-1] - probs) / spread
    rho = 1 - 1 / _over_one_less_correlation(probs, k)
    assert float(((products.mean(0) - rho) / (products.std(0) / n**0.5).clamp_min(1e-9)).abs().max()) < 4.5
    assert bool((rho < 0).all())


def test_the_factor_of_two_draws_is_that_of_disarm() -> None:
    logits = torch.tensor([-60.0, -2.0, 0.0, 0.7, 30.0], dtype=torch.float64)
    torch.testing.assert_close(_over_one_less_correlation(logits.sigmoid(), 2), logits.abs().sigmoid())


def encoder_variance(elbo: Any) -> float:
    pair = BitsAndClasses(bits=3, classes=0)
    encoders = [p for n, p in pair.named_parameters() if n.startswith("encoder")]
    torch.manual_seed(0)
    found = [
        torch.cat([g.flatten() for g in torch.autograd.grad(loss, encoders)])
        for loss in (elbo.differentiable_loss(pair.model, pair.guide, X) for _ in range(300))
    ]
    return float(torch.stack(found).var(0).sum())


def test_less_variance_than_independent_draws() -> None:
    assert encoder_variance(ARMS(4)) < encoder_variance(VarGrad(4))


@pytest.mark.parametrize("fn", [dist.Categorical(torch.ones(3) / 3), dist.Poisson(torch.tensor(1.0))])
def test_other_discrete_sites_are_refused(fn: Any) -> None:
    with pytest.raises(ValueError, match=rf"'z' is drawn from {type(fn).__name__}.*'arms'.*'vimco'"):
        ARMS().loss(draws(fn), draws(fn), torch.zeros(2))


def test_one_particle_is_refused() -> None:
    with pytest.raises(ValueError, match="num_particles must be at least 2, got 1"):
        ARMS(1)
