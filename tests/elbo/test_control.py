"""REBAR against enumeration and quadrature."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyro_vae.elbo import WeightedKL, make
from pyro_vae.elbo.estimators.control import REBAR
from pyro_vae.oracles import BitsAndClasses, Grid
from tests.helpers.discrete_draws import check_each_draw
from tests.helpers.estimator_gradients import check, gradients
from tests.helpers.relaxed_draws import X, draws, flat_gradient


@pytest.mark.parametrize(("bits", "classes"), [(3, 0), (0, 4), (2, 3)])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"eta": 0.0},
        {"eta": -0.7, "temperature": 0.1, "num_particles": 2, "vectorize_particles": False},
        {"eta": 1.3, "temperature": 2.0, "num_particles": 2},
        {"learn": True},
    ],
    ids=str,
)
def test_unbiased_for_any_eta_and_temperature(bits: int, classes: int, options: Any) -> None:
    pair = BitsAndClasses(bits=bits, classes=classes)
    exact = pair.elbo(X).sum()
    check(REBAR(**options), pair, X, exact, gradients(exact, pair))


@pytest.mark.parametrize(("bits", "classes"), [(1, 0), (3, 0), (0, 4), (2, 3)])
@pytest.mark.parametrize("options", [{}, {"eta": 1.5, "temperature": 0.15}, {"temperature": 3.0}], ids=str)
def test_many_draws_of_the_logits_gradient(bits: int, classes: int, options: Any) -> None:
    check_each_draw(REBAR(**options), BitsAndClasses(bits=bits, classes=classes))


@pytest.mark.parametrize("options", [{}, {"num_particles": 2, "learn": True}], ids=str)
def test_event_dimensions_plates_and_a_gaussian_before(options: Any) -> None:
    pair = Grid()
    x = torch.tensor([[0.8, 1.0], [-0.5, 1.0]], dtype=torch.float64)
    exact = pair.elbo(x).sum()
    check(REBAR(**options), pair, x, exact, gradients(exact, pair))


def test_a_masked_datum() -> None:
    pair = Grid()
    x = torch.tensor([[0.8, 1.0], [-0.5, -1.0]], dtype=torch.float64)
    unseen = dist.Normal(pair.slope * x[1, 0], 0.7), dist.Normal(torch.zeros(1, dtype=torch.float64), 1.0)
    exact = pair.elbo(x[:1]).sum() - torch.distributions.kl_divergence(*unseen).sum()
    check(REBAR(), pair, x, exact, gradients(exact, pair))


def test_the_kl_weight_is_in_the_signal() -> None:
    pair = Grid()
    x = torch.tensor([[0.8, 1.0], [-0.5, 1.0]], dtype=torch.float64)
    exact = pair.elbo(x, weight=0.3).sum()
    check(WeightedKL(REBAR(), 0.3), pair, x, exact, gradients(exact, pair))


def test_a_subsampled_plate_and_another_name() -> None:
    pair = Grid()
    pair.name = "zeta"
    x = torch.tensor([[0.8, 1.0], [-0.5, 1.0]], dtype=torch.float64)
    torch.manual_seed(1)
    plain = REBAR().differentiable_loss(pair.model, pair.guide, x)
    pair.full_size = 20
    torch.manual_seed(1)
    scaled = REBAR().differentiable_loss(pair.model, pair.guide, x)
    torch.testing.assert_close(scaled, 10 * plain)
    torch.testing.assert_close(flat_gradient(scaled, pair), 10 * flat_gradient(plain, pair))


def encoder_variance(elbo: Any, pair: BitsAndClasses, repeats: int = 300) -> float:
    encoders = [p for n, p in pair.named_parameters() if n.startswith("encoder")]
    stack = [
        torch.cat([g.flatten() for g in torch.autograd.grad(loss, encoders)])
        for loss in (elbo.differentiable_loss(pair.model, pair.guide, X) for _ in range(repeats))
    ]
    return float(torch.stack(stack).var(0).sum())


@pytest.mark.parametrize(("bits", "classes"), [(3, 0), (0, 4)])
def test_less_variance_than_the_score_function(bits: int, classes: int) -> None:
    pair = BitsAndClasses(bits=bits, classes=classes)
    assert encoder_variance(REBAR(), pair) < 0.5 * encoder_variance(make("reinforce"), pair)


def test_learning_lowers_the_variance() -> None:
    pair = BitsAndClasses(bits=3, classes=0)
    elbo = REBAR(eta=-0.5, temperature=3.0, learn=True)
    before = encoder_variance(elbo, pair)
    optimizer = torch.optim.Adam(elbo.control.parameters(), lr=0.05)
    x = X.repeat(20, 1)
    for _ in range(150):
        optimizer.zero_grad()
        elbo.differentiable_loss(pair.model, pair.guide, x).backward()
        optimizer.step()
    assert elbo.eta > 0.2
    assert encoder_variance(elbo, pair) < 0.5 * before
    assert any(".control" in name for name in pyro.get_param_store())


@pytest.mark.parametrize(("bits", "classes"), [(3, 0), (0, 4)])
def test_what_is_learned_follows_the_variance(bits: int, classes: int) -> None:
    """Its gradient is that of the squared gradient of free logits, by finite differences."""
    pair = BitsAndClasses(bits=bits, classes=classes)
    logits = nn.Parameter(torch.zeros(2, bits + classes, dtype=torch.float64))

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            if bits:
                pyro.sample("b", dist.Bernoulli(logits=logits).to_event(1))
            else:
                pyro.sample("c", dist.OneHotCategorical(logits=logits))

    def square(eta: float, log_temperature: float) -> float:
        elbo = REBAR(eta=eta, temperature=math.exp(log_temperature))
        torch.manual_seed(4)
        loss = elbo.differentiable_loss(pair.model, guide, X)
        return float(torch.autograd.grad(loss, logits)[0].square().sum())

    elbo = REBAR(eta=0.6, temperature=math.exp(-0.3), learn=True)
    torch.manual_seed(4)
    elbo.differentiable_loss(pair.model, guide, X).backward()
    h = 1e-3
    by_eta = (square(0.6 + h, -0.3) - square(0.6 - h, -0.3)) / (2 * h)
    by_temperature = (square(0.6, -0.3 + h) - square(0.6, -0.3 - h)) / (2 * h)
    assert float(elbo.control["eta"].grad) == pytest.approx(by_eta, rel=1e-2)
    assert float(elbo.control["log_temperature"].grad) == pytest.approx(by_temperature, rel=1e-2)


def test_fixed_parameters_are_not_registered() -> None:
    pair = BitsAndClasses()
    REBAR().loss_and_grads(pair.model, pair.guide, X)
    assert not any(".control" in name for name in pyro.get_param_store())


def test_finite_in_single_precision_at_extreme_logits() -> None:
    pair = BitsAndClasses().float()
    with torch.no_grad():
        pair.encoder_bits.mul_(50)
        pair.encoder_class.mul_(50)
    loss = REBAR(temperature=0.05).differentiable_loss(pair.model, pair.guide, X.float().repeat(5000, 1))
    assert torch.isfinite(flat_gradient(loss, pair)).all()


@pytest.mark.parametrize("learn", [True, False])
def test_loss_and_grads_agrees_with_loss_under_one_seed(learn: bool) -> None:
    pair = BitsAndClasses()
    elbo = REBAR(num_particles=2, learn=learn)
    elbo.loss(pair.model, pair.guide, X)  # the first call looks at the pair
    torch.manual_seed(3)
    a = elbo.loss(pair.model, pair.guide, X)
    torch.manual_seed(3)
    torch.testing.assert_close(a, elbo.loss_and_grads(pair.model, pair.guide, X))


@pytest.mark.parametrize("fn", [dist.Categorical(torch.ones(3) / 3), dist.Poisson(torch.tensor(1.0))])
def test_other_discrete_sites_are_refused(fn: Any) -> None:
    with pytest.raises(ValueError, match=rf"'z' is drawn from {type(fn).__name__}.*'rebar'.*'vimco'"):
        REBAR().loss(draws(fn), draws(fn), torch.zeros(2))


def test_a_site_that_depends_on_a_class_is_refused() -> None:
    def program(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.OneHotCategorical(logits=torch.zeros(len(x), 3)))
            pyro.sample("b", dist.Bernoulli(logits=a[..., 0]))

    with pytest.raises(ValueError, match="site 'b' in the guide depends on the draw"):
        REBAR().loss(program, program, torch.zeros(3))


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"temperature": math.nan}, {"eta": math.inf}])
def test_bad_options(options: Any) -> None:
    with pytest.raises(ValueError, match="finite number"):
        REBAR(**options)
