"""DisARM against enumeration and quadrature."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyro_vae.elbo import WeightedKL, make
from pyro_vae.elbo.estimators.antithetic import DisARM
from pyro_vae.oracles import BitsAndClasses, Grid
from tests.helpers.discrete_draws import check_each_draw
from tests.helpers.estimator_gradients import check, gradients
from tests.helpers.relaxed_draws import X, draws, flat_gradient


@pytest.mark.parametrize(
    "options", [{}, {"num_particles": 3}, {"num_particles": 2, "vectorize_particles": False}], ids=str
)
def test_the_gradient_is_unbiased(options: Any) -> None:
    pair = BitsAndClasses(bits=3, classes=0)
    exact = pair.elbo(X).sum()
    check(DisARM(**options), pair, X, exact, gradients(exact, pair))


def test_one_bit() -> None:
    pair = BitsAndClasses(bits=1, classes=0, seed=2)
    exact = pair.elbo(X).sum()
    check(DisARM(), pair, X, exact, gradients(exact, pair))


@pytest.mark.parametrize("bits", [1, 3])
def test_many_draws_of_the_logits_gradient(bits: int) -> None:
    check_each_draw(DisARM(), BitsAndClasses(bits=bits, classes=0))


@pytest.mark.parametrize("options", [{}, {"num_particles": 2}], ids=str)
def test_event_dimensions_plates_and_a_gaussian_before(options: Any) -> None:
    pair = Grid()
    x = torch.tensor([[0.8, 1.0], [-0.5, 1.0]], dtype=torch.float64)
    exact = pair.elbo(x).sum()
    check(DisARM(**options), pair, x, exact, gradients(exact, pair))


def test_a_masked_datum() -> None:
    pair = Grid()
    x = torch.tensor([[0.8, 1.0], [-0.5, -1.0]], dtype=torch.float64)
    unseen = dist.Normal(pair.slope * x[1, 0], 0.7), dist.Normal(torch.zeros(1, dtype=torch.float64), 1.0)
    exact = pair.elbo(x[:1]).sum() - torch.distributions.kl_divergence(*unseen).sum()
    check(DisARM(), pair, x, exact, gradients(exact, pair))


def test_a_subsampled_plate_and_another_name() -> None:
    pair = Grid()
    pair.name = "zeta"
    x = torch.tensor([[0.8, 1.0], [-0.5, 1.0]], dtype=torch.float64)
    torch.manual_seed(1)
    plain = DisARM().differentiable_loss(pair.model, pair.guide, x)
    pair.full_size = 20
    torch.manual_seed(1)
    scaled = DisARM().differentiable_loss(pair.model, pair.guide, x)
    torch.testing.assert_close(scaled, 10 * plain)
    torch.testing.assert_close(flat_gradient(scaled, pair), 10 * flat_gradient(plain, pair))


def test_the_kl_weight_is_in_the_signal() -> None:
    pair = Grid()
    x = torch.tensor([[0.8, 1.0], [-0.5, 1.0]], dtype=torch.float64)
    exact = pair.elbo(x, weight=0.3).sum()
    check(WeightedKL(DisARM(), 0.3), pair, x, exact, gradients(exact, pair))


def test_the_signal_is_each_datum_s_own() -> None:
    """A datum's gradient does not change with the data beside it."""
    pair = BitsAndClasses(bits=3, classes=0)
    logits = nn.Parameter(torch.zeros(2, 3, dtype=torch.float64))

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("b", dist.Bernoulli(logits=logits).to_event(1))

    def gradient(x: Tensor) -> Tensor:
        torch.manual_seed(5)
        return torch.autograd.grad(DisARM().differentiable_loss(pair.model, guide, x), logits)[0]

    other = X.clone()
    other[1] = 1 - other[1]
    torch.testing.assert_close(gradient(X)[0], gradient(other)[0])


def test_less_variance_than_the_score_function() -> None:
    pair = BitsAndClasses(bits=3, classes=0)

    def variance(elbo: Any) -> float:
        stack = torch.stack(
            [flat_gradient(elbo.differentiable_loss(pair.model, pair.guide, X), pair)[3:12] for _ in range(300)]
        )
        return float(stack.var(0).sum())  # of the encoder's gradient

    assert variance(DisARM()) < 0.5 * variance(make("reinforce", num_particles=2))


def test_loss_and_grads_agrees_with_loss_under_one_seed() -> None:
    pair = BitsAndClasses(bits=3, classes=0)
    elbo = DisARM(num_particles=2)
    elbo.loss(pair.model, pair.guide, X)  # the first call looks at the pair
    torch.manual_seed(3)
    a = elbo.loss(pair.model, pair.guide, X)
    torch.manual_seed(3)
    torch.testing.assert_close(a, elbo.loss_and_grads(pair.model, pair.guide, X))
    assert pair.encoder_bits.grad is not None


@pytest.mark.parametrize("fn", [dist.Categorical(torch.ones(3) / 3), dist.Poisson(torch.tensor(1.0))])
def test_other_discrete_sites_are_refused(fn: Any) -> None:
    with pytest.raises(ValueError, match=rf"'z' is drawn from {type(fn).__name__}.*'disarm'.*'vimco'"):
        DisARM().loss(draws(fn), draws(fn), torch.zeros(2))


@pytest.mark.parametrize("second", ["bernoulli", "normal"])
def test_a_site_that_depends_on_a_bit_is_refused(second: str) -> None:
    def program(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Bernoulli(logits=x))
            pyro.sample("b", dist.Bernoulli(logits=a) if second == "bernoulli" else dist.Normal(a, 1.0))

    with pytest.raises(ValueError, match="site 'b' in the guide depends on the draw"):
        DisARM().loss(program, program, torch.zeros(3))
