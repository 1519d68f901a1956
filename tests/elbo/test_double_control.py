"""The double control variate against enumeration, VarGrad and its formula written out."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyro_vae.elbo import DoubleCV, VarGrad, WeightedKL
from pyro_vae.oracles import BitsAndClasses, Grid, Interleaved, Oracle, Weighting
from tests.helpers.discrete_draws import check_each_draw
from tests.helpers.estimator_gradients import check, gradients
from tests.helpers.relaxed_draws import X, flat_gradient

GRID_X = torch.tensor([[0.8, 1.0], [-0.5, 1.0]], dtype=torch.float64)
MASKED = Weighting({("model", "c"): 2.0}, [("guide", "b"), ("model", "y"), ("guide", "c")])


@pytest.mark.parametrize("pair", [BitsAndClasses(bits=3, classes=0), BitsAndClasses()], ids=["bits", "both"])
@pytest.mark.parametrize("options", [{"alpha": -0.7}, {"num_particles": 3, "vectorize_particles": False}], ids=str)
def test_unbiased_for_any_alpha(pair: BitsAndClasses, options: Any) -> None:
    exact = pair.elbo(X).sum()
    check(DoubleCV(**options), pair, X, exact, gradients(exact, pair))


@pytest.mark.parametrize(("bits", "classes"), [(1, 0), (0, 4), (2, 3)])
def test_many_draws_of_the_logits_gradient(bits: int, classes: int) -> None:
    check_each_draw(DoubleCV(), BitsAndClasses(bits=bits, classes=classes), copies=20_000)


@pytest.mark.parametrize("pair", [Interleaved(MASKED), Interleaved(parts=2, all_parts=4)], ids=["masked", "subsampled"])
def test_sites_that_depend_on_each_other_one_particle_at_a_time(pair: Interleaved) -> None:
    x = pair.simulate(2)
    exact = pair.elbo(x).sum()
    check(DoubleCV(vectorize_particles=False), pair, x, exact, gradients(exact, pair))


def test_the_kl_weight_is_in_the_signal() -> None:
    pair = Grid()
    exact = pair.elbo(GRID_X, weight=0.3).sum()
    check(WeightedKL(DoubleCV(), 0.3), pair, GRID_X, exact, gradients(exact, pair))


@pytest.mark.parametrize("layout", [True, False])
def test_without_the_second_control_variate_it_is_vargrad(layout: bool) -> None:
    pair = BitsAndClasses()

    def gradient(elbo: Any) -> Tensor:
        elbo.loss(pair.model, pair.guide, X)  # the first call looks at the pair
        torch.manual_seed(1)
        return flat_gradient(elbo.differentiable_loss(pair.model, pair.guide, X), pair)

    torch.testing.assert_close(gradient(DoubleCV(3, 0.0, vectorize_particles=layout)), gradient(VarGrad(3, layout)))


class Tilted(nn.Module):
    """Independent bits, or a one-hot class, under `f`: a function of the draw per datum, in the model's place."""

    def __init__(self, f: Any, one_hot: bool = False) -> None:
        super().__init__()
        self.f = f
        self.logits = nn.Parameter(torch.tensor([0.3, -1.0, 0.7], dtype=torch.float64))
        self.of = dist.OneHotCategorical if one_hot else lambda logits: dist.Bernoulli(logits=logits).to_event(1)

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            b = pyro.sample("b", self.of(logits=torch.zeros(len(x), 3, dtype=x.dtype)))
            pyro.factor("f", self.f(b, x))

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("b", self.of(logits=self.logits.expand(len(x), 3)))


@pytest.mark.parametrize("one_hot", [False, True])
def test_a_linear_function_leaves_no_variance(one_hot: bool) -> None:
    pair = Tilted(lambda b, x: (x * b).sum(-1), one_hot)
    x = torch.tensor([[0.5, 2.0, -1.0], [1.0, 0.0, 3.0]], dtype=torch.float64)
    p = pair.logits.softmax(-1) if one_hot else pair.logits.sigmoid()
    prior = -math.log(3) if one_hot else -3 * math.log(2)
    entropy = -(p * p.log()).sum() - (0.0 if one_hot else ((1 - p) * (1 - p).log()).sum())
    exact = torch.autograd.grad(2 * (prior + entropy) + (x * p).sum(), pair.logits)[0]
    for seed in range(3):
        torch.manual_seed(seed)
        loss = DoubleCV(2, 1.0).differentiable_loss(pair.model, pair.guide, x)
        torch.testing.assert_close(-torch.autograd.grad(loss, pair.logits)[0], exact)
    torch.manual_seed(0)
    loss = VarGrad(2).differentiable_loss(pair.model, pair.guide, x)
    assert not torch.allclose(-torch.autograd.grad(loss, pair.logits)[0], exact, atol=1e-3)


def test_the_formula_written_out() -> None:
    """Three draws of three bits under a cubic function, datum by datum and particle by particle."""
    alpha, k = 0.6, 3
    pair = Tilted(lambda b, x: (x * b).sum(-1).pow(3) + b.prod(-1))
    x = torch.tensor([[0.5, 2.0, -1.0], [1.0, 0.0, 0.7]], dtype=torch.float64)
    elbo = DoubleCV(k, alpha, vectorize_particles=False)
    torch.manual_seed(4)
    loss = elbo.differentiable_loss(pair.model, pair.guide, x)
    found = -torch.autograd.grad(loss, pair.logits)[0]
    torch.manual_seed(4)
    mu = pair.logits.detach().sigmoid()
    draws = torch.stack([torch.bernoulli(mu.expand(2, 3)) for _ in range(k)])

    def f(b: Tensor, row: Tensor) -> Tensor:
        log_q = b @ mu.logit() - torch.nn.functional.softplus(mu.logit()).sum()
        return (row * b).sum().pow(3) + b.prod() - 3 * math.log(2) - log_q

    expected = torch.zeros(3, dtype=torch.float64)
    for n, row in enumerate(x):
        values = [f(draws[i, n], row) for i in range(k)]
        slopes = [torch.func.grad(f)(draws[i, n], row) for i in range(k)]
        means = [sum(slopes[j] for j in range(k) if j != i) / (k - 1) for i in range(k)]
        h = [values[i] - alpha * means[i] @ (draws[i, n] - mu) for i in range(k)]
        for i in range(k):
            others = sum(h[j] for j in range(k) if j != i) / (k - 1)
            expected += ((h[i] - others) * (draws[i, n] - mu) + alpha * means[i] * mu * (1 - mu)) / k
    torch.testing.assert_close(found, expected)


def encoder_variance(elbo: Any, pair: Oracle) -> float:
    encoders = [p for n, p in pair.named_parameters() if n.startswith("encoder")]
    torch.manual_seed(0)
    draws = [
        torch.cat([g.flatten() for g in torch.autograd.grad(loss, encoders)])
        for loss in (elbo.differentiable_loss(pair.model, pair.guide, X) for _ in range(300))
    ]
    return float(torch.stack(draws).var(0).sum())


@pytest.mark.parametrize("k", [2, 4])
def test_less_variance_than_leave_one_out(k: int) -> None:
    pair = BitsAndClasses(bits=3, classes=0)
    assert encoder_variance(DoubleCV(k), pair) < 0.5 * encoder_variance(VarGrad(k), pair)


@pytest.mark.parametrize("layout", [True, False])
@pytest.mark.parametrize("one_hot", [False, True])
def test_what_is_learned_follows_the_variance(one_hot: bool, layout: bool) -> None:
    """Its gradient is that of the squared gradient of each datum's free logits, by finite differences."""
    pair = Tilted(lambda b, x: (x * b).sum(-1).pow(3) + b.prod(-1), one_hot)
    x = torch.tensor([[0.5, 2.0, -1.0], [1.0, 0.0, 0.7]], dtype=torch.float64)
    pair.logits = nn.Parameter(torch.tensor([[0.3, -1.0, 0.7], [-0.2, 0.4, 0.1]], dtype=torch.float64))

    def gradient(alpha: float) -> Tensor:
        elbo = DoubleCV(3, alpha, learn=False, vectorize_particles=layout)
        elbo.loss(pair.model, pair.guide, x)  # the first call looks at the pair
        torch.manual_seed(4)
        return torch.autograd.grad(elbo.differentiable_loss(pair.model, pair.guide, x), pair.logits)[0]

    elbo = DoubleCV(3, 0.6, vectorize_particles=layout)
    elbo.loss(pair.model, pair.guide, x)
    torch.manual_seed(4)
    elbo.differentiable_loss(pair.model, pair.guide, x).backward()
    h = 1e-3
    expected = 3 * (gradient(0.6 + h).square().sum() - gradient(0.6 - h).square().sum()) / (2 * h)  # of a sum over K
    assert float(elbo.control["alpha"].grad) == pytest.approx(float(expected), rel=1e-3)


def test_learning_lowers_the_variance() -> None:
    pair = BitsAndClasses(bits=3, classes=0)
    torch.manual_seed(0)
    elbo = DoubleCV(2, alpha=-1.0)
    x, optimizer = X.repeat(50, 1), torch.optim.Adam(elbo.control.parameters(), lr=0.1)
    for _ in range(40):
        optimizer.zero_grad()
        elbo.differentiable_loss(pair.model, pair.guide, x).backward()
        optimizer.step()
    assert encoder_variance(elbo, pair) < 0.5 * encoder_variance(VarGrad(2), pair)
    assert 0.4 < elbo.alpha < 0.9
    assert any(".control" in name for name in pyro.get_param_store())


@pytest.mark.parametrize(
    ("options", "message"), [((1,), "at least 2, got 1"), ((2, math.inf), "alpha must be a finite")]
)
def test_bad_options(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DoubleCV(*options)
