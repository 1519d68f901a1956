"""Likelihoods of counts and of bounded, positive and circular data: against scipy, sums and integrals, and at edges."""

import itertools
import math
from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch import Tensor

from pyro_vae.conditionals import (
    Beta,
    Likelihood,
    LogNormal,
    Multinomial,
    NegativeBinomial,
    StudentT,
    VonMises,
    ZeroInflatedNegativeBinomial,
    ZeroInflatedPoisson,
)
from pyro_vae.conditionals.count_distributions import AnyTotalMultinomial, MeanNegativeBinomial, ZeroInflated
from pyro_vae.conditionals.density_distributions import ExactBeta, ExactStudentT, ExactVonMises
from pyro_vae.conditionals.simplex import InnerDirichlet, LogisticNormal, log_ratio_basis

Number = float | np.ndarray


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.double)


# Sums and integrals


@pytest.mark.parametrize(
    "p",
    [
        NegativeBinomial(1),
        NegativeBinomial(1, dispersion=3.0),
        NegativeBinomial(1, "pixel", by="logits"),
        ZeroInflatedPoisson(1),
        ZeroInflatedNegativeBinomial(1, dispersion=1e-3),
        ZeroInflatedNegativeBinomial(1, "pixel"),
    ],
    ids=repr,
)
def test_masses_sum_to_one(p: Likelihood) -> None:
    """In log space, with the mean and the variance that the distribution claims."""
    assert p.discrete
    torch.manual_seed(0)
    h = 1.5 * torch.randn(20, *p.param_shape, dtype=torch.double)
    x = torch.arange(60_000, dtype=torch.double)
    d: Any = p.double()(h)
    log_mass = d.log_prob(x.reshape(-1, 1, 1))  # (values, 20)
    torch.testing.assert_close(log_mass.logsumexp(0), torch.zeros(20, dtype=torch.double), rtol=0, atol=1e-8)
    mean = (log_mass.exp() * x.unsqueeze(-1)).sum(0)
    torch.testing.assert_close(d.mean.squeeze(-1), mean, rtol=1e-6, atol=1e-8)
    square = (log_mass.exp() * x.square().unsqueeze(-1)).sum(0)
    torch.testing.assert_close(d.variance.squeeze(-1), square - mean.square(), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("total", [0, 1, 5])
def test_multinomial_sums_to_one_for_every_total(total: int) -> None:
    logits = double(0.3, -1.0, 2.0, 0.0)
    counts = [x for x in itertools.product(range(total + 1), repeat=4) if sum(x) == total]
    log_mass = Multinomial(4)(logits).log_prob(torch.tensor(counts, dtype=torch.double))
    expected = stats.multinomial.logpmf(counts, total, logits.softmax(-1).numpy())
    np.testing.assert_allclose(log_mass, expected, rtol=1e-10, atol=1e-12)
    assert log_mass.logsumexp(0).item() == pytest.approx(0, abs=1e-12)


def test_multinomial_over_an_image_is_that_of_its_elements() -> None:
    torch.manual_seed(0)
    h, x = torch.randn(3, 2, 2, 2), torch.randint(0, 9, (3, 2, 2, 2)).float()
    found = Multinomial((2, 2, 2))(h).log_prob(x)
    torch.testing.assert_close(found, Multinomial(8)(h.flatten(1)).log_prob(x.flatten(1)))
    drawn = Multinomial((2, 2, 2), total=30)(h).sample((4,))
    assert (drawn.sum((-1, -2, -3)) == 30).all()


@pytest.mark.parametrize(
    ("p", "h", "low", "high"),
    [
        (StudentT(1), [0.3], -math.inf, math.inf),
        (StudentT(1, "pixel", df=1.5), [0.3, -2.0], -math.inf, math.inf),
        (LogNormal(1, 0.2), [1.0], 0, math.inf),
        (LogNormal(1, "pixel"), [-2.0, 0.7], 0, math.inf),
        (Beta(1), [0.4], 0, 1),
        (Beta(1, "pixel"), [-2.0, 4.0], 0, 1),
        (VonMises(1), [0.3], -math.pi, math.pi),
        (VonMises(1, "pixel"), [40.0, 6.0], -math.pi, math.pi),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Likelihood) else "",
)
def test_densities_integrate_to_one(p: Likelihood, h: list[float], low: float, high: float) -> None:
    assert not p.discrete
    d: Any = p.double()(double(*h))
    # nodes crowd toward the ends: x is a function of u, and dx/du comes from autograd
    u = torch.linspace(-36, 36, 200_001, dtype=torch.double).requires_grad_()
    if math.isinf(low):
        x = d.mean.detach() + torch.sinh(u)
    else:
        x = torch.exp(u) if math.isinf(high) else low + (high - low) * torch.sigmoid(u)
    (slope,) = torch.autograd.grad(x.sum(), u)
    inside = (x > low) & (x < high)
    x, slope = x[inside], slope[inside]
    density = d.log_prob(x.detach().unsqueeze(-1)).exp() * slope
    assert torch.trapezoid(density.detach(), u.detach()[inside]).item() == pytest.approx(1, abs=1e-6)


# Against scipy, in single precision as networks give it


def test_negative_binomial_against_scipy() -> None:
    """From nearly Poisson to very long tails; torch's is off by nats at the first of these."""
    for mean, a in itertools.product([1e-4, 0.7, 30.0, 2e4], [1e-8, 1e-6, 0.05, 1.0, 300.0]):
        r = 1 / np.float64(np.float32(a))
        m = np.float64(np.float32(mean))
        x = np.unique(np.round(np.array([0, 1, 2, 0.5 * mean, mean, 2 * mean, 5e4])))
        found = MeanNegativeBinomial(torch.tensor(mean), torch.tensor(a)).log_prob(torch.tensor(x).float())
        if a > 1e-7:
            np.testing.assert_allclose(found, stats.nbinom.logpmf(x, r, r / (r + m)), rtol=2e-6, atol=1e-5)
        else:  # the Poisson, and the first order of the difference from it
            limit = stats.poisson.logpmf(x, m) + a * ((x - m) ** 2 - x) / 2
            np.testing.assert_allclose(found, limit, rtol=2e-6, atol=1e-5)
    d: Any = dist
    theirs = d.NegativeBinomial(1e6, logits=torch.tensor(30.0 / 1e6).log()).log_prob(torch.tensor(30.0))
    assert abs(theirs.item() - stats.nbinom.logpmf(30, 1e6, 1e6 / (1e6 + 30))) > 0.1  # or this class can go


def test_negative_binomial_by_logits_is_that_of_pyro() -> None:
    p = NegativeBinomial(3, dispersion=0.5, by="logits")
    h, x = double(-1.0, 0.3, 2.0), double(0.0, 3.0, 11.0)
    expected = dist.NegativeBinomial(2.0, logits=h).log_prob(x).sum()
    torch.testing.assert_close(p.double()(h).log_prob(x), expected)
    mean = NegativeBinomial(3, dispersion=0.5).double()(h + 2).mean
    torch.testing.assert_close(mean, torch.nn.functional.softplus(h + 2) + 1e-6)


@pytest.mark.parametrize("gate", [-1e4, -3.0, 0.0, 5.0, 1e4])
def test_zero_inflated_against_a_sum(gate: float) -> None:
    base = dist.Poisson(torch.tensor(2.5))
    x = torch.tensor([0.0, 1.0, 7.0])
    g = 1 / (1 + math.exp(-gate)) if gate > -700 else 0.0
    found = ZeroInflated(base, gate_logits=torch.tensor(gate)).log_prob(x)
    if abs(gate) < 100:
        mass = np.where(x == 0, g, 0) + (1 - g) * stats.poisson.pmf(x, 2.5)
        np.testing.assert_allclose(found, np.log(mass), rtol=1e-5)
    elif gate < 0:
        np.testing.assert_allclose(found, stats.poisson.logpmf(x, 2.5), rtol=1e-5)
    else:
        np.testing.assert_allclose(found, [0.0, *(stats.poisson.logpmf(x[1:], 2.5) - gate)], rtol=1e-5)
    pyros = dist.ZeroInflatedDistribution(base, gate_logits=torch.tensor(gate)).log_prob(x)
    assert gate > -1e3 or (pyros - found).abs().max() > 1e-4  # or this class can go


def test_densities_against_scipy() -> None:
    df, loc, scale = torch.tensor([1.5, 4.0, 1e3, 1e5]), torch.tensor(0.3), torch.tensor(0.02)
    x = torch.tensor([-1e25, -5.0, 0.29, 0.3, 1e4]).unsqueeze(-1)
    exact = [t.double().numpy() for t in (x, df, loc, scale)]
    np.testing.assert_allclose(ExactStudentT(df, loc, scale).log_prob(x), stats.t.logpdf(*exact), rtol=2e-6, atol=1e-6)

    a, b = torch.tensor([9e-4, 0.5, 1.0, 1e3]), torch.tensor([0.5, 2.0, 1.0, 800.0])
    x = torch.tensor([1e-30, 1e-3, 0.5, 0.99]).unsqueeze(-1)
    exact = [t.double().numpy() for t in (x, a, b)]
    np.testing.assert_allclose(ExactBeta(a, b).log_prob(x), stats.beta.logpdf(*exact), rtol=1e-5, atol=1e-5)

    k = torch.tensor([1e-3, 1.0, 30.0, 1e3, 1e5])
    x = torch.tensor([-math.pi, -1.0, 0.31, 0.3, 3.0]).unsqueeze(-1)
    exact = [t.double().numpy() for t in (x, k, loc)]
    np.testing.assert_allclose(ExactVonMises(loc, k).log_prob(x), stats.vonmises.logpdf(*exact), rtol=1e-5, atol=1e-4)
    assert ExactVonMises(torch.tensor(40.0), k[0]).mean.item() == pytest.approx(40 - 12 * math.pi, abs=1e-5)


# Shares that sum to one


def test_shares_integrate_to_one_and_agree_with_a_change_of_variables() -> None:
    line = torch.linspace(0, 1, 1502, dtype=torch.double)[:-1] + 0.5 / 1501
    first, second = torch.meshgrid(line, line, indexing="ij")
    z = torch.stack([first, second, 1 - first - second], -1)[first + second < 1 - 1e-9]
    cell = (line[1] - line[0]).item() ** 2
    alpha = double(2.0, 1.5, 3.0)
    # the grid cuts cells at the diagonal, where densities vanish
    assert (InnerDirichlet(alpha).log_prob(z).exp().sum() * cell).item() == pytest.approx(1, abs=1e-3)
    d = LogisticNormal(double(0.5, -0.3), double(0.7, 0.4))
    assert (d.log_prob(z).exp().sum() * cell).item() == pytest.approx(1, abs=1e-3)
    basis = log_ratio_basis(3)
    torch.testing.assert_close(basis.T @ basis, torch.eye(2, dtype=torch.double))
    torch.testing.assert_close(basis.sum(0), torch.zeros(2, dtype=torch.double))
    e = double(0.9, 0.1)
    jacobian: Any = torch.autograd.functional.jacobian(lambda e: (basis @ e).softmax(-1)[:2], e)
    expected = dist.Normal(d.loc, d.scale).log_prob(e).sum() - jacobian.det().abs().log()
    torch.testing.assert_close(d.log_prob((basis @ e).softmax(-1)), expected)
    torch.testing.assert_close(
        InnerDirichlet(alpha).log_prob(z[:5]), torch.tensor(stats.dirichlet.logpdf(z[:5].T.numpy(), alpha.numpy()))
    )


# Edges: the support's ends, huge and tiny values


@pytest.mark.parametrize(
    ("p", "values"),
    [
        (StudentT(1), [-1e30, 0.0, 1e30]),
        (StudentT(1, df=1.01), [-1e30, 1e30]),
        (LogNormal(1), [1e-37, 1e37]),
        (Beta(1), [0.0, 1.0]),
        (Beta(1, 1e-3), [0.0, 1.0]),
        (VonMises(1), [-math.pi, math.pi]),
        (NegativeBinomial(1), [0.0, 1e7]),
        (NegativeBinomial(1, "pixel", by="logits"), [0.0, 1e7]),
        (ZeroInflatedPoisson(1), [0.0, 1e7]),
        (ZeroInflatedNegativeBinomial(1), [0.0, 1e7]),
        (Multinomial(1), [0.0, 1e7]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Likelihood) else "",
)
def test_values_and_gradients_are_finite_at_the_edges(p: Likelihood, values: list[float]) -> None:
    for sign in itertools.product([-1e4, -5.0, 0.0, 5.0, 1e4], repeat=p.param_shape[0]):
        h = torch.tensor(sign, requires_grad=True)
        log_prob = p(h).log_prob(torch.tensor(values).unsqueeze(-1))
        found = torch.autograd.grad(log_prob.sum(), [h, *p.parameters()])
        assert log_prob.isfinite().all()
        assert all(gradient.isfinite().all() for gradient in found)


def test_shares_are_finite_at_the_edges() -> None:
    z = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.5, 0.5], [1e-40, 0.0, 1.0]])
    alpha = torch.tensor([1e-3, 0.5, 4.0], requires_grad=True)
    loc = torch.zeros(2, requires_grad=True)
    for d, parameter in [(InnerDirichlet(alpha), alpha), (LogisticNormal(loc, torch.tensor([1e-3, 1.0])), loc)]:
        log_prob = d.log_prob(z)
        (gradient,) = torch.autograd.grad(log_prob.sum(), parameter)
        assert log_prob.isfinite().all()
        assert gradient.isfinite().all()
        drawn = d.rsample((1000,))
        assert (drawn > 0).all() or isinstance(d, LogisticNormal)
        assert d.log_prob(drawn).isfinite().all()


# What is refused


def test_values_off_the_support_are_refused() -> None:
    for p, value in [
        (LogNormal(1), 0.0),
        (Beta(1), 1.1),
        (VonMises(1), 3.2),
        (NegativeBinomial(1), 0.5),
        (ZeroInflatedPoisson(1), -1.0),
        (Multinomial(1), 0.5),
    ]:
        made: Any = p
        with pytest.raises(ValueError, match="support"):
            made(torch.zeros(made.param_shape)).log_prob(torch.tensor([value]))
    assert AnyTotalMultinomial(torch.zeros(3), 5).support.check(torch.tensor([1.0, 0.0, 7.0]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NegativeBinomial(3, 0.0), "dispersion must be positive and finite, got 0.0"),
        (lambda: NegativeBinomial(3, "genes"), "dispersion must be"),  # type: ignore[arg-type]
        (lambda: NegativeBinomial(3, by="rate"), "by must be"),  # type: ignore[arg-type]
        (lambda: StudentT(3, df=1.0), "df must be above 1"),
        (lambda: StudentT(3, df="pixel"), "df must be"),  # type: ignore[arg-type]
        (lambda: Beta(3, -1.0), "concentration must be positive and finite"),
        (lambda: VonMises(3, "optimal"), "concentration must be"),  # type: ignore[arg-type]
        (lambda: Multinomial(3, 0), "total must hold positive sizes"),
    ],
)
def test_bad_arguments(make: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        make()
