"""DisARM against enumeration and quadrature."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_vae.elbo import WeightedKL, make
from pyro_vae.elbo.antithetic import DisARM
from tests.test_estimators import check, gradients
from tests.test_relaxed import BitsAndClasses, X, draws, flat_gradient


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


def check_each_draw(elbo: Any, pair: BitsAndClasses, copies: int = 60_000) -> None:
    """The mean of many draws of the gradient with respect to the logits themselves, each read off alone."""
    x = X[:1]
    size = pair.bits + pair.classes
    start = torch.linspace(-1.0, 1.5, size, dtype=torch.float64)
    logits = nn.Parameter(start.repeat(copies, 1))

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            if pair.bits:
                pyro.sample("b", dist.Bernoulli(logits=logits[:, : pair.bits]).to_event(1))
            if pair.classes:
                pyro.sample("c", dist.OneHotCategorical(logits=logits[:, pair.bits :]))

    loss = elbo.differentiable_loss(pair.model, guide, x.repeat(copies, 1))
    found = -torch.autograd.grad(loss, logits)[0]  # (copies, size)
    alpha = start.clone().requires_grad_()
    bits, classes = alpha.split([pair.bits, pair.classes])
    b, c = pair.states().split([pair.bits, pair.classes], -1)
    log_q = (b * bits).sum(-1) - torch.nn.functional.softplus(bits).sum()
    log_q = log_q + (c * classes.log_softmax(-1)).sum(-1) if pair.classes else log_q
    log_p = pair.log_weights(x)[0].detach()[0]
    exact = torch.autograd.grad((log_q.exp() * (log_p - log_q)).sum(), alpha)[0]
    z_scores = (found.mean(0) - exact) / (found.std(0) / copies**0.5)
    assert float(z_scores.abs().max()) < 4.5, z_scores


@pytest.mark.parametrize("bits", [1, 3])
def test_many_draws_of_the_logits_gradient(bits: int) -> None:
    check_each_draw(DisARM(), BitsAndClasses(bits=bits, classes=0))


class Grid(nn.Module):
    """Bits of event shape (1, 2), two of them in another plate, under a mask, after a Gaussian on which they depend."""

    def __init__(self) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(1)
        self.slope, self.shift, self.prior, self.weight = (
            nn.Parameter(torch.randn(n, generator=g, dtype=torch.float64)) for n in (1, 2, 2, 2)
        )
        self.full_size: int | None = None
        self.name = "bits"

    def plate(self, x: Tensor) -> Any:
        if self.full_size is None:
            return pyro.plate("data", len(x), dim=-1)
        return pyro.plate("data", self.full_size, subsample=torch.arange(len(x)), dim=-1)

    def model(self, x: Tensor) -> None:
        keep: Any = x[..., 1] > 0
        with self.plate(x):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            with poutine.mask(mask=keep), pyro.plate("parts", 2, dim=-2):
                b = pyro.sample(self.name, dist.Bernoulli(logits=self.prior).expand([1, 2]).to_event(2))
            mean = z + (b.sum(-2) @ self.weight).prod(-2, keepdim=True)
            with poutine.mask(mask=keep):
                pyro.sample("x", dist.Normal(mean, 1.0), obs=x[..., 0])

    def guide(self, x: Tensor) -> None:
        keep: Any = x[..., 1] > 0
        with self.plate(x):
            z = pyro.sample("z", dist.Normal(self.slope * x[..., 0], 0.7))
            with poutine.mask(mask=keep), pyro.plate("parts", 2, dim=-2):
                logits = self.logits(z, torch.arange(2.0).reshape(2, 1))
                pyro.sample(self.name, dist.Bernoulli(logits=logits.unsqueeze(-2)).to_event(2))

    def logits(self, z: Tensor, part: Tensor) -> Tensor:
        return (z + 0.5 * part).unsqueeze(-1) * self.shift

    def elbo(self, x: Tensor, weight: float = 1.0) -> Tensor:
        """By quadrature over z and enumeration of the four bits; with the mask off."""
        points, masses = (torch.tensor(a) for a in np.polynomial.hermite_e.hermegauss(40))
        q_z = dist.Normal(self.slope * x[..., 0], 0.7)
        z = q_z.mean + 0.7 * points.unsqueeze(-1)  # (M, N)
        logits = self.logits(z.unsqueeze(1), torch.arange(2.0).reshape(2, 1))  # (M, 2, N, 2)
        kl_z = q_z.log_prob(z) - dist.Normal(0.0, 1.0).log_prob(z)
        total = torch.zeros_like(z)
        for bits in itertools.product((0.0, 1.0), repeat=4):
            b = torch.tensor(bits, dtype=x.dtype).reshape(2, 1, 2)
            log_q = dist.Bernoulli(logits=logits).to_event(1).log_prob(b.expand_as(logits)).sum(1)
            log_p = dist.Bernoulli(logits=self.prior).to_event(1).log_prob(b).sum()
            given = dist.Normal(z + (b @ self.weight).prod(), 1.0).log_prob(x[..., 0])
            total = total + log_q.exp() * (given + weight * (log_p - log_q - kl_z))
        return ((masses / masses.sum()).unsqueeze(-1) * total).sum(0)


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
