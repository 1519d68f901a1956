"""Relaxed discrete latents against enumeration and quadrature."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_vae.elbo import WeightedKL
from pyro_vae.elbo.estimators.relaxed import Cooling, Relaxed
from pyro_vae.oracles import BitsAndClasses
from tests.helpers.relaxed_draws import X, draws, flat_gradient

SIZES = [(2, 0), (0, 3), (2, 3)]


def without_likelihood(pair: BitsAndClasses) -> Any:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("b", dist.Bernoulli(logits=pair.prior_bits).to_event(1))
            pyro.sample("c", dist.OneHotCategorical(logits=pair.prior_class))

    return model


@pytest.mark.parametrize(("bits", "classes"), SIZES)
def test_the_value_goes_to_the_discrete_elbo(bits: int, classes: int) -> None:
    pair = BitsAndClasses(bits=bits, classes=classes)
    elbo = Relaxed(temperature=0.005, num_particles=2)
    losses = torch.stack([elbo.loss(pair.model, pair.guide, X.repeat(2000, 1)) / 2000 for _ in range(10)])
    error = float(losses.std() / math.sqrt(10))
    assert abs(float(losses.mean() + pair.elbo(X).detach().sum())) < 4.5 * error + 0.02


@pytest.mark.parametrize("temperature", [0.2, 2.0])
@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize("through", [True, "mean"])
def test_the_value_of_straight_through_is_the_discrete_elbo(temperature: float, particles: int, through: Any) -> None:
    pair = BitsAndClasses()
    elbo = Relaxed(temperature=temperature, straight_through=through, num_particles=particles)
    losses = torch.stack([elbo.loss(pair.model, pair.guide, X.repeat(2000, 1)) / 2000 for _ in range(20)])
    error = float(losses.std() / math.sqrt(20))
    assert abs(float(losses.mean() + pair.elbo(X).detach().sum())) < 4.5 * error


@pytest.mark.parametrize(("bits", "classes"), SIZES)
@pytest.mark.parametrize("options", [{}, {"num_particles": 2}, {"num_particles": 2, "vectorize_particles": False}])
def test_the_gradient_goes_to_the_exact_one(bits: int, classes: int, options: Any) -> None:
    pair = BitsAndClasses(bits=bits, classes=classes)
    exact = flat_gradient(-pair.elbo(X).sum(), pair)
    elbo = Relaxed(temperature=0.1, **options)
    found = flat_gradient(elbo.differentiable_loss(pair.model, pair.guide, X.repeat(20_000, 1)) / 20_000, pair)
    assert float(torch.cosine_similarity(exact, found, dim=0)) > 0.98


@pytest.mark.parametrize(("bits", "classes"), SIZES)
@pytest.mark.parametrize("options", [{}, {"num_particles": 2}, {"num_particles": 2, "vectorize_particles": False}])
def test_the_gradient_through_the_mean_is_the_expected_slope(bits: int, classes: int, options: Any) -> None:
    """It is biased, so what it goes to is enumerated: the slope at every state, weighed by q, times the mean's."""
    pair = BitsAndClasses(bits=bits, classes=classes)
    log_q = pair.log_weights(X)[1].detach()
    states = pair.states().expand(len(X), -1, -1).clone().requires_grad_()
    likelihood = (log_q.exp() * pair.likelihood(states).log_prob(X.unsqueeze(1))).sum()
    slopes = torch.autograd.grad(likelihood, states, retain_graph=True)[0].sum(1)  # (N, B + C)
    means = [(X @ pair.encoder_bits.T).sigmoid()] if bits else []
    means += [(X @ pair.encoder_class.T).softmax(-1)] if classes else []
    expected = flat_gradient(pair.kl(X).sum() - likelihood - (slopes * torch.cat(means, -1)).sum(), pair)
    elbo = Relaxed(straight_through="mean", **options)
    draws = torch.stack(
        [
            flat_gradient(elbo.differentiable_loss(pair.model, pair.guide, X.repeat(500, 1)) / 500, pair)
            for _ in range(30)
        ]
    )
    error = draws.std(0) / math.sqrt(30)
    assert ((draws.mean(0) - expected).abs() < 4.5 * error + 1e-9).all()
    exact = flat_gradient(-pair.elbo(X).sum(), pair)
    assert ((exact - expected).abs() > 9 * error + 1e-9).any()  # else nothing was told apart


def test_the_gradient_through_the_mean_is_exact_for_a_linear_likelihood() -> None:
    logits = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    slope = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.OneHotCategorical(logits=torch.zeros_like(slope)))
            pyro.factor("linear", z @ slope)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.OneHotCategorical(logits=logits))

    q = logits.softmax(-1)
    exact = torch.autograd.grad((q * (q.log() + math.log(3)) - q * slope).sum(), logits)[0]
    loss = Relaxed(straight_through="mean").differentiable_loss(model, guide, torch.zeros(4))
    torch.testing.assert_close(torch.autograd.grad(loss, logits)[0], exact)


def test_a_high_temperature_is_biased_and_a_low_one_noisy() -> None:
    pair = BitsAndClasses()
    exact = flat_gradient(-pair.elbo(X).sum(), pair)
    variance, bias = [], []
    for temperature in (3.0, 0.05):
        elbo = Relaxed(temperature=temperature)
        draws = [
            flat_gradient(elbo.differentiable_loss(pair.model, pair.guide, X.repeat(500, 1)), pair) / 500
            for _ in range(20)
        ]
        variance.append(float(torch.stack(draws).var(0).sum()))
        bias.append(float((torch.stack(draws).mean(0) - exact).norm()))
    assert variance[0] < variance[1] / 5
    assert bias[0] > 2 * bias[1]


@pytest.mark.parametrize("options", [{}, {"num_particles": 3}, {"num_particles": 3, "vectorize_particles": False}])
def test_the_kl_term_is_exact(options: Any) -> None:
    pair = BitsAndClasses()
    loss = Relaxed(temperature=0.3, **options).differentiable_loss(without_likelihood(pair), pair.guide, X)
    torch.testing.assert_close(loss, pair.kl(X).sum())


@pytest.mark.parametrize("temperature", [0.05, 2.0])
@pytest.mark.parametrize("prior_temperature", [None, 0.3])
def test_the_relaxed_kl_is_above_the_exact_one(temperature: float, prior_temperature: float | None) -> None:
    pair = BitsAndClasses()
    elbo = Relaxed(temperature=temperature, prior="relaxed", prior_temperature=prior_temperature, num_particles=2)
    kl = float(elbo.loss(without_likelihood(pair), pair.guide, X.repeat(20_000, 1)) / 20_000)
    assert kl > 1.1 * float(pair.kl(X).detach().sum())
    if prior_temperature is None:  # then it does not depend on the temperature
        elbo.temperature = 0.5
        again = float(elbo.loss(without_likelihood(pair), pair.guide, X.repeat(20_000, 1)) / 20_000)
        assert again == pytest.approx(kl, rel=0.03)


@pytest.mark.parametrize("prior_temperature", [None, 0.7])
def test_relaxed_densities_agree_with_quadrature(prior_temperature: float | None) -> None:
    pair = BitsAndClasses(bits=1, classes=0)
    tau = 0.4
    elbo = Relaxed(temperature=tau, prior="relaxed", prior_temperature=prior_temperature)
    losses = torch.stack([elbo.loss(pair.model, pair.guide, X.repeat(4000, 1)) / 4000 for _ in range(20)])
    u = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    y = ((u.logit()[:, None, None] + X @ pair.encoder_bits.T) / tau).sigmoid().clamp(1e-300, 1 - 1e-16)  # (U, N, 1)
    t = torch.tensor
    q = dist.RelaxedBernoulli(t(tau), logits=X @ pair.encoder_bits.T).to_event(1)
    p = dist.RelaxedBernoulli(t(prior_temperature or tau), logits=pair.prior_bits).to_event(1)
    exact = (pair.likelihood(y).log_prob(X) + p.log_prob(y) - q.log_prob(y)).mean(0).sum()
    assert abs(float(losses.mean() + exact.detach())) < 4.5 * float(losses.std()) / math.sqrt(20) + 1e-3


@pytest.mark.parametrize("straight_through", [True, False, "mean"])
def test_what_the_programs_see(straight_through: Any) -> None:
    pair, seen = BitsAndClasses(), {}

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            seen["b"] = pyro.sample("b", dist.Bernoulli(logits=pair.prior_bits).to_event(1))
            seen["c"] = pyro.sample("c", dist.OneHotCategorical(logits=pair.prior_class))

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            seen["qb"] = pyro.sample("b", dist.Bernoulli(logits=x @ pair.encoder_bits.T).to_event(1))
            seen["qc"] = pyro.sample("c", dist.OneHotCategorical(logits=x @ pair.encoder_class.T))

    elbo = Relaxed(temperature=0.7, straight_through=straight_through)
    elbo.differentiable_loss(model, guide, X.repeat(100, 1))
    assert torch.equal(seen["b"], seen["qb"])
    assert torch.equal(seen["c"], seen["qc"])
    assert torch.all((seen["b"] >= 0) & (seen["b"] <= 1))
    torch.testing.assert_close(seen["c"].sum(-1), torch.ones(200, dtype=torch.float64))
    assert bool(((seen["b"] == 0) | (seen["b"] == 1)).all()) == bool(straight_through)
    assert bool(((seen["c"] == 0) | (seen["c"] == 1)).all()) == bool(straight_through)
    assert seen["b"].requires_grad
    assert seen["c"].requires_grad


@pytest.mark.parametrize("through", [True, "mean"])
def test_a_second_layer_conditions_on_the_first(through: Any) -> None:
    """Guide and model draw in one order, so that every KL is known given the layer before."""
    mixing = nn.Parameter(torch.tensor([[0.8, -1.0], [0.3, 1.2]]))

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Bernoulli(logits=torch.tensor([0.3, -0.4])).to_event(1))
            b = pyro.sample("b", dist.Bernoulli(logits=a @ mixing).to_event(1))
            pyro.sample("x", dist.Normal(a.sum(-1) - b[..., 0] * b[..., 1], 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Bernoulli(logits=torch.stack([x, -x], -1)).to_event(1))
            pyro.sample("b", dist.Bernoulli(logits=a * x.unsqueeze(-1)).to_event(1))

    x = torch.tensor([0.7])
    exact = x.new_zeros(())
    states = [torch.tensor(s) for s in itertools.product((0.0, 1.0), repeat=2)]
    for a, b in itertools.product(states, states):
        log_q = dist.Bernoulli(logits=torch.stack([x, -x], -1)).to_event(1).log_prob(a)
        log_q = log_q + dist.Bernoulli(logits=a * x).to_event(1).log_prob(b)
        log_p = dist.Bernoulli(logits=torch.tensor([0.3, -0.4])).to_event(1).log_prob(a)
        log_p = log_p + dist.Bernoulli(logits=a @ mixing).to_event(1).log_prob(b)
        log_p = log_p + dist.Normal(a.sum() - b[0] * b[1], 1.0).log_prob(x)
        exact = exact + (log_q.exp() * (log_p - log_q)).sum()
    elbo = Relaxed(temperature=0.5, straight_through=through, num_particles=4)
    losses = torch.stack([elbo.loss(model, guide, x.repeat(1000)) / 1000 for _ in range(20)])
    assert abs(float(losses.mean() + exact.detach())) < 4.5 * float(losses.std()) / math.sqrt(20)

    def other_way_round(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            b = pyro.sample("b", dist.Bernoulli(logits=torch.stack([x, -x], -1)).to_event(1))
            pyro.sample("a", dist.Bernoulli(logits=b * x.unsqueeze(-1)).to_event(1))

    with pytest.raises(ValueError, match=r"KL of site 'b'.*prior='relaxed'"):
        Relaxed().loss(model, other_way_round, x)
    assert torch.isfinite(Relaxed(prior="relaxed").loss(model, other_way_round, x))


@pytest.mark.parametrize("through", [True, "mean"])
def test_extra_plates_masks_and_a_gaussian_beside(through: Any) -> None:
    x = torch.randn(5, dtype=torch.float64)
    mask: Any = torch.tensor([True, False, True, True, False])
    logits = torch.randn(2, 5, dtype=torch.float64)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            with poutine.mask(mask=mask):
                with pyro.plate("parts", 2, dim=-2):
                    switch = pyro.sample("switch", dist.Bernoulli(logits=x.new_tensor(0.4)))
                pyro.sample("x", dist.Normal(z + switch.sum(-2, keepdim=True), 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(0.5 * x, 0.8))
            with poutine.mask(mask=mask), pyro.plate("parts", 2, dim=-2):
                pyro.sample("switch", dist.Bernoulli(logits=logits))

    q, p = torch.sigmoid(logits), torch.sigmoid(torch.tensor(0.4, dtype=torch.float64))
    kl = (q * (q / p).log() + (1 - q) * ((1 - q) / (1 - p)).log()).sum(0) * mask
    kl = kl + 0.5 * ((0.5 * x).square() + 0.64 - math.log(0.64) - 1)
    square = (0.5 * x + q.sum(0) - x).square() + 0.64 + (q * (1 - q)).sum(0)
    exact = ((-0.5 * math.log(2 * math.pi) - 0.5 * square) * mask - kl).sum()
    elbo = Relaxed(temperature=0.5, straight_through=through, num_particles=500)
    losses = torch.stack([elbo.loss(model, guide, x) for _ in range(20)])
    assert abs(float(losses.mean() + exact)) < 4.5 * float(losses.std()) / math.sqrt(20)


@pytest.mark.parametrize("prior", ["discrete", "relaxed"])
def test_a_subsampled_plate_and_a_kl_weight(prior: Any) -> None:
    pair = BitsAndClasses()

    def scaled(program: Any) -> Any:
        return poutine.scale(program, scale=50.0)

    elbo = Relaxed(prior=prior, num_particles=2)
    torch.manual_seed(1)
    plain = elbo.differentiable_loss(pair.model, pair.guide, X)
    torch.manual_seed(1)
    torch.testing.assert_close(elbo.differentiable_loss(scaled(pair.model), scaled(pair.guide), X), 50 * plain)
    torch.manual_seed(1)
    weighted = WeightedKL(elbo, 0.0)
    likelihood = weighted.differentiable_loss(pair.model, pair.guide, X)
    weighted.weight = 2.0
    torch.manual_seed(1)
    double = weighted.differentiable_loss(pair.model, pair.guide, X)
    torch.testing.assert_close(double, 2 * plain - likelihood)


def test_finite_at_extreme_temperatures_and_logits() -> None:
    pair = BitsAndClasses().float()
    with torch.no_grad():
        pair.encoder_bits.mul_(50)
        pair.encoder_class.mul_(50)
    for tau in (1e-3, 30.0):
        elbo = Relaxed(temperature=tau, prior="relaxed", prior_temperature=0.66)
        grads = flat_gradient(elbo.differentiable_loss(pair.model, pair.guide, X.float().repeat(5000, 1)), pair)
        assert torch.isfinite(grads).all()


def test_loss_and_grads_agrees_with_loss_under_one_seed() -> None:
    pair = BitsAndClasses()
    elbo = Relaxed()
    torch.manual_seed(3)
    a = elbo.loss(pair.model, pair.guide, X)
    torch.manual_seed(3)
    b = elbo.loss_and_grads(pair.model, pair.guide, X)
    assert torch.equal(a, b)
    assert pair.weight.grad is not None


def test_the_temperature_is_annealed_over_gradients() -> None:
    pair = BitsAndClasses()
    elbo = Relaxed(temperature=Cooling(start=1.0, end=0.5, rate=0.3))
    seen = []
    for _ in range(4):
        elbo.loss(pair.model, pair.guide, X)  # takes no step
        elbo.loss_and_grads(pair.model, pair.guide, X)
        seen.append(elbo.temperature)
    assert seen == pytest.approx([1.0, math.exp(-0.3), math.exp(-0.6), 0.5])
    held = elbo._temperature
    elbo.temperature = 0.25
    elbo.loss_and_grads(pair.model, pair.guide, X)
    assert elbo.temperature == 0.25
    assert elbo._temperature is held
    loss = elbo.differentiable_loss(pair.model, pair.guide, X)
    elbo.temperature = 0.3
    loss.backward()


BIT, CLASS = dist.Bernoulli(torch.tensor(0.5)), dist.Categorical(torch.ones(3) / 3)


@pytest.mark.parametrize(
    ("model", "guide", "message"),
    [
        (CLASS, CLASS, "'z' is drawn from Categorical.*OneHotCategorical"),
        (dist.Poisson(1.0), dist.Poisson(torch.tensor(2.0)), "'z' is drawn from Poisson.*'vimco'"),
        (BIT, dist.RelaxedBernoulli(torch.tensor(0.5), torch.tensor(0.5)), "RelaxedBernoulli in the guide"),
        (dist.Beta(1.0, 1.0), BIT, "'z' is Beta in the model and Bernoulli in the guide"),
    ],
)
def test_what_is_refused(model: Any, guide: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Relaxed().loss(draws(model), draws(guide), torch.zeros(2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature must be"),
        ({"temperature": math.inf}, "temperature must be"),
        ({"prior": "other"}, "'discrete' or 'relaxed'"),
        ({"straight_through": "median"}, "False, True or 'mean', got 'median'"),
        ({"straight_through": "mean", "prior": "relaxed"}, "there is no relaxed density"),
        ({"prior_temperature": 0.5}, "pass prior='relaxed'"),
        ({"prior": "relaxed", "prior_temperature": -1.0}, "temperature must be"),
    ],
)
def test_bad_options(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Relaxed(**options)
    with pytest.raises(ValueError, match="cooling needs"):
        Cooling(start=0.1, end=0.5)
