"""Likelihoods and posteriors: one contract over all, one value by hand for each, and what is particular to some."""

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor, nn
from torch.distributions import kl_divergence

from pyro_vae.conditionals import (
    LIKELIHOODS,
    POSTERIORS,
    Bernoulli,
    Beta,
    Categorical,
    Conditional,
    ContinuousBernoulli,
    DiagonalNormal,
    DirichletPosterior,
    DiscretizedLogistic,
    FullNormal,
    Laplace,
    Likelihood,
    LogisticNormalPosterior,
    LogNormal,
    Multinomial,
    NegativeBinomial,
    Normal,
    Poisson,
    StudentT,
    VonMises,
    ZeroInflatedNegativeBinomial,
    ZeroInflatedPoisson,
    bounded_exp,
    likelihood,
    posterior,
    soft_bound,
)
from pyro_vae.conditionals.distributions import ExactContinuousBernoulli

SHAPE = (2, 3, 2)
LIKELIHOOD_CASES: dict[str, Callable[..., Likelihood]] = {
    "bernoulli": Bernoulli,
    "continuous_bernoulli": ContinuousBernoulli,
    "normal_shared": Normal,
    "normal_fixed": lambda shape: Normal(shape, 0.5),
    "normal_pixel": lambda shape: Normal(shape, "pixel"),
    "normal_optimal": lambda shape: Normal(shape, "optimal"),
    "laplace_shared": Laplace,
    "laplace_fixed": lambda shape: Laplace(shape, 0.5),
    "laplace_pixel": lambda shape: Laplace(shape, "pixel"),
    "categorical": lambda shape: Categorical(shape, levels=8),
    "discretized_logistic": lambda shape: DiscretizedLogistic(shape, mixtures=2, levels=8),
    "student_t": StudentT,
    "student_t_pixel": lambda shape: StudentT(shape, "pixel", df=5.0),
    "log_normal": LogNormal,
    "log_normal_pixel": lambda shape: LogNormal(shape, "pixel"),
    "beta": Beta,
    "beta_pixel": lambda shape: Beta(shape, "pixel"),
    "von_mises": VonMises,
    "von_mises_pixel": lambda shape: VonMises(shape, "pixel"),
    "poisson": Poisson,
    "negative_binomial": NegativeBinomial,
    "negative_binomial_by_logits": lambda shape: NegativeBinomial(shape, "pixel", by="logits"),
    "zero_inflated_poisson": ZeroInflatedPoisson,
    "zero_inflated_negative_binomial": lambda shape: ZeroInflatedNegativeBinomial(shape, "pixel"),
    "multinomial": lambda shape: Multinomial(shape, total=7),
}
CASES: dict[str, Callable[[], Conditional]] = {
    **{name: lambda make=make: make(SHAPE) for name, make in LIKELIHOOD_CASES.items()},  # type: ignore[misc]
    "diagonal_normal": lambda: DiagonalNormal(4),
    "full_normal": lambda: FullNormal(4),
    "dirichlet": lambda: DirichletPosterior(4),
    "logistic_normal": lambda: LogisticNormalPosterior(4),
}
# a circular mean, one without a closed form, and one whose samples have too long a tail
NOT_BY_SAMPLES = ("von_mises", "von_mises_pixel", "logistic_normal", "log_normal_pixel")
every_conditional = pytest.mark.parametrize("case", list(CASES))
every_likelihood = pytest.mark.parametrize("case", list(LIKELIHOOD_CASES))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
    pyro.clear_param_store()


def features(conditional: Conditional, *lead: int) -> Tensor:
    dtype = next((t.dtype for t in conditional.state_dict().values()), torch.float32)
    return torch.randn(*lead, *conditional.param_shape, dtype=dtype, requires_grad=True)


# The contract


@every_conditional
@pytest.mark.parametrize("lead", [(), (4,), (3, 4)])
def test_shapes(case: str, lead: tuple[int, ...]) -> None:
    conditional = CASES[case]()
    d = conditional(features(conditional, *lead))
    assert d.batch_shape == lead
    assert d.event_shape == conditional.event_shape
    x = d.sample((5,))
    assert x.shape == (5, *lead, *conditional.event_shape)
    assert not x.requires_grad
    assert d.log_prob(x).shape == (5, *lead)
    if case != "logistic_normal":
        assert d.mean.shape == (*lead, *conditional.event_shape)
    assert d.has_rsample == (not getattr(conditional, "discrete", False) and not isinstance(conditional, VonMises))
    if d.has_rsample:
        assert d.rsample().requires_grad
    wide = d.expand((6, *lead))
    assert wide.batch_shape == (6, *lead)
    assert wide.sample((2,)).shape == (2, 6, *lead, *conditional.event_shape)
    torch.testing.assert_close(wide.log_prob(x[0]), d.log_prob(x[0]).expand(6, *lead))
    if case != "logistic_normal":
        torch.testing.assert_close(wide.mean, d.mean.expand(6, *d.mean.shape))


@every_conditional
def test_leading_dimensions_agree_with_single_evaluations(case: str) -> None:
    conditional = CASES[case]().eval()
    h = features(conditional, 3, 4).detach()
    d = conditional(h)
    x = d.sample()
    for i in range(3):
        for j in range(4):
            torch.testing.assert_close(conditional(h[i, j]).log_prob(x[i, j]), d.log_prob(x)[i, j])


@every_conditional
def test_every_feature_and_parameter_gets_a_gradient(case: str) -> None:
    conditional = CASES[case]()
    h = features(conditional, 3)
    d = conditional(h)
    d.log_prob(d.sample()).sum().backward()
    assert h.grad is not None
    assert (h.grad != 0).all()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in conditional.parameters())


@every_conditional
def test_extreme_features_stay_finite(case: str) -> None:
    conditional = CASES[case]()
    x = conditional(torch.zeros(64, *conditional.param_shape)).sample()
    signs = torch.randint(0, 2, (64, *conditional.param_shape)) * 2.0 - 1
    for size in (20.0, 1e4):
        h = (size * signs).requires_grad_()
        d = conditional(h)
        log_prob = d.log_prob(x)
        log_prob.sum().backward()
        assert log_prob.isfinite().all()
        assert h.grad is not None
        assert h.grad.isfinite().all()
        assert case == "logistic_normal" or d.mean.isfinite().all()
        assert d.log_prob(d.sample()).isfinite().all()


@pytest.mark.parametrize("case", [case for case in CASES if case not in NOT_BY_SAMPLES])
def test_mean_is_that_of_the_samples(case: str) -> None:
    conditional = CASES[case]().eval()
    d = conditional(features(conditional).detach())
    x = d.sample((20_000,))
    error = x.std(0) / math.sqrt(len(x))
    assert ((x.mean(0) - d.mean).abs() < 5 * error + 1e-6).all()


@every_conditional
def test_double_precision(case: str) -> None:
    conditional = CASES[case]().double()
    h = features(conditional, 2).detach().double().requires_grad_()
    d = conditional(h)
    x = d.sample()
    assert case == "logistic_normal" or d.mean.dtype == torch.double
    assert x.dtype == d.log_prob(x).dtype == torch.double


@every_conditional
def test_half_precision_features_give_full_precision_log_prob(case: str) -> None:
    conditional = CASES[case]()
    h = features(conditional, 2).detach().bfloat16()
    d = conditional(h)
    assert d.log_prob(d.sample()).dtype == torch.float32


@every_conditional
def test_state_round_trip_and_repr(case: str) -> None:
    conditional, other = CASES[case]().eval(), CASES[case]().eval()
    with torch.no_grad():
        for tensor in conditional.state_dict().values():
            tensor.add_(0.3)
    other.load_state_dict(conditional.state_dict())
    h = features(conditional, 2)
    x = conditional(h).sample()
    torch.testing.assert_close(other(h).log_prob(x), conditional(h).log_prob(x), rtol=0, atol=0)
    assert f"event_shape={tuple(conditional.event_shape)}" in repr(conditional)


@every_conditional
def test_wrong_features_name_both_shapes(case: str) -> None:
    conditional = CASES[case]()
    given = (7, *conditional.param_shape[:-1], conditional.param_shape[-1] + 1)
    with pytest.raises(ValueError, match="expects") as error:
        conditional(torch.zeros(given))
    assert type(conditional).__name__ in str(error.value)
    assert str(given) in str(error.value)
    assert ", ".join(map(str, conditional.param_shape)) in str(error.value)


@every_likelihood
@pytest.mark.parametrize("family", list(POSTERIORS))
def test_pairs_run_with_vectorized_particles(case: str, family: str) -> None:
    p, q = LIKELIHOOD_CASES[case](SHAPE), posterior(family, 2)
    decoder = nn.Linear(2, p.param_shape.numel())
    x = p(torch.zeros(5, *p.param_shape)).sample()
    h = torch.randn(5, *q.param_shape, requires_grad=True)

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", p(decoder(z).unflatten(-1, p.param_shape)), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", q(h))

    elbo = Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1)
    elbo.differentiable_loss(model, guide, x).backward()
    assert h.grad is not None
    assert h.grad.isfinite().all()
    assert (h.grad != 0).any()


@every_likelihood
@pytest.mark.parametrize("shape", [(4,), (2, 2, 1)])
def test_init_features_reproduce_the_mean(case: str, shape: tuple[int, ...]) -> None:
    p = LIKELIHOOD_CASES[case](shape)
    mean = torch.tensor([0.05, 0.3, 0.5, 0.9]).reshape(shape)
    h = p.init_features(mean)
    assert h is not None
    assert h.shape == p.param_shape
    assert h.dtype == mean.dtype
    found = p(h).mean
    if isinstance(p, Multinomial):
        found = found * mean.sum() / p.total  # the total is the document's
    torch.testing.assert_close(found, mean, rtol=1e-4, atol=1e-5)
    edge = p.init_features(torch.zeros(shape))  # a pixel that is always black
    assert edge is not None
    assert edge.isfinite().all()
    with pytest.raises(ValueError, match=r"init_features expects a tensor of shape .* got \(9,\)"):
        p.init_features(torch.zeros(9))


def test_init_features_clip_as_burda_et_al() -> None:
    p = Bernoulli(2)
    h = p.init_features(torch.tensor([0.0, 1.0]))
    assert h is not None
    torch.testing.assert_close(h.sigmoid(), torch.tensor([0.001, 0.999]))


# Values


def normal_log_prob(x: float, loc: float, scale: float) -> float:
    return -0.5 * ((x - loc) / scale) ** 2 - math.log(scale) - 0.5 * math.log(2 * math.pi)


def logistic_cdf(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize(
    ("p", "h", "x", "expected"),
    [
        (Bernoulli(1), [2.0], 1.0, -math.log1p(math.exp(-2))),
        (ContinuousBernoulli(1), [2.0], 0.3, math.log(2 * math.exp(0.6) / math.expm1(2))),
        (Normal(1), [0.2], 1.0, normal_log_prob(1.0, 0.2, 1.0)),
        (Normal(1, 0.5), [0.2], 1.0, normal_log_prob(1.0, 0.2, 0.5)),
        (Normal(1, "pixel"), [0.2, -1.0], 1.0, normal_log_prob(1.0, 0.2, math.exp(-1))),
        (Laplace(1, 0.5), [0.2], 1.0, -0.8 / 0.5 - math.log(2 * 0.5)),
        (Laplace(1, "pixel"), [0.2, 1.0], 1.0, -0.8 / math.e - math.log(2 * math.e)),
        (Categorical(1, levels=3), [0.0, 1.0, 2.0], 0.5, 1 - math.log(1 + math.e + math.e**2)),
        # locations and scales where values run from -1 to 1: 1/3 is the level -1/3, its cell reaches from -2/3 to 0
        (
            DiscretizedLogistic(1, mixtures=1, levels=4),
            [0.0, 0.1, -1.0],
            1 / 3,
            math.log(logistic_cdf(-0.1 * math.e) - logistic_cdf((-2 / 3 - 0.1) * math.e)),
        ),
        (
            DiscretizedLogistic(1, mixtures=2, levels=4),
            [0.0, math.log(3), 0.1, -0.5, -1.0, 0.0],
            1.0,
            math.log(0.25 * logistic_cdf((0.1 - 2 / 3) * math.e) + 0.75 * logistic_cdf(-0.5 - 2 / 3)),
        ),
        (Poisson(1), [math.log(math.expm1(2.0 - 1e-6))], 3.0, 3 * math.log(2) - 2 - math.log(6)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_values(p: Likelihood, h: list[float], x: float, expected: float) -> None:
    d = p(torch.tensor(h, dtype=torch.double))
    assert d.log_prob(torch.tensor([x], dtype=torch.double)).item() == pytest.approx(expected, rel=1e-10)


def test_diagonal_normal_value() -> None:
    h = torch.tensor([0.5, -1.0, 0.3, -0.2])
    expected = normal_log_prob(0.0, 0.5, math.exp(0.3)) + normal_log_prob(1.0, -1.0, math.exp(-0.2))
    assert DiagonalNormal(2)(h).log_prob(torch.tensor([0.0, 1.0])).item() == pytest.approx(expected, rel=1e-5)


def test_full_normal_value() -> None:
    q = FullNormal(3)
    loc, log_scale, lower = [0.5, -1.0, 2.0], [0.3, -0.2, 0.1], [0.7, -0.4, 1.1]
    d = q(torch.tensor(loc + log_scale + lower, dtype=torch.double))
    unit = torch.tensor([[1, 0, 0], [0.7, 1, 0], [-0.4, 1.1, 1]], dtype=torch.double)
    factor = torch.diag(torch.tensor(log_scale, dtype=torch.double).exp()) @ unit
    torch.testing.assert_close(d.covariance_matrix, factor @ factor.T)
    z = torch.tensor([0.1, 0.2, 0.3], dtype=torch.double)
    noise = torch.linalg.solve(factor, z - torch.tensor(loc, dtype=torch.double))
    expected = -0.5 * noise.square().sum() - sum(log_scale) - 1.5 * math.log(2 * math.pi)
    torch.testing.assert_close(d.log_prob(z), expected)


def test_channel_order_of_features() -> None:
    """Parameter p of channel c is channel `p * C + c` of the features."""
    h = torch.randn(4, 2, 2, requires_grad=True)
    d = Normal((2, 2, 2), "pixel")(h)
    torch.testing.assert_close(d.mean, h[:2])
    torch.testing.assert_close(d.base_dist.scale, h[2:].exp())
    p = Categorical((2, 2, 2), levels=3)
    h = torch.randn(6, 2, 2)
    torch.testing.assert_close(p(h).log_prob(torch.zeros(2, 2, 2)), h.view(3, 2, 2, 2).log_softmax(0)[0].sum())


# Normalisation


@pytest.mark.parametrize(
    ("p", "values"),
    [
        (Bernoulli(1), torch.tensor([0.0, 1.0])),
        (Categorical(1), torch.arange(256) / 255),
        (Categorical(1, levels=2), torch.tensor([0.0, 1.0])),
        (DiscretizedLogistic(1), torch.arange(256) / 255),
        (DiscretizedLogistic(1, mixtures=1, levels=2), torch.tensor([0.0, 1.0])),
        (Poisson(1), torch.arange(200.0)),
    ],
)
@pytest.mark.parametrize("size", [0.0, 1.0, 5.0])
def test_mass_functions_sum_to_one(p: Likelihood, values: Tensor, size: float) -> None:
    assert p.discrete
    h = size * torch.randn(50, *p.param_shape)
    log_prob = p(h).log_prob(values.reshape(-1, 1, 1))  # (values, 50)
    torch.testing.assert_close(log_prob.logsumexp(0), torch.zeros(50), rtol=0, atol=2e-4)
    mean = (log_prob.exp() * values.unsqueeze(-1)).sum(0)
    torch.testing.assert_close(p(h).mean.squeeze(-1), mean, rtol=1e-3, atol=1e-4)
    assert p.support.check(values).all()


@pytest.mark.parametrize("p", [Normal(1), Normal(1, "pixel"), Laplace(1), Laplace(1, "pixel")])
def test_densities_integrate_to_one(p: Likelihood) -> None:
    assert not p.discrete
    x = torch.linspace(-40, 40, 80_001, dtype=torch.double)
    density = p(torch.tensor([0.25, 0.5][: p.param_shape[0]], dtype=torch.double)).log_prob(x[:, None])
    assert torch.trapezoid(density.exp(), x).item() == pytest.approx(1, abs=1e-6)


# Particular ones


@pytest.mark.parametrize("logit", [-300.0, -20.0, -3.0, -0.11, -0.09, -1e-5, 0.0, 1e-5, 0.09, 0.11, 3.0, 20.0, 300.0])
def test_continuous_bernoulli_against_integrals(logit: float) -> None:
    x = torch.linspace(0, 1, 400_001, dtype=torch.double)
    d = ExactContinuousBernoulli(logits=torch.tensor(logit, dtype=torch.double))
    log_density = d.log_prob(x)
    density = log_density.exp()
    mean = torch.trapezoid(density * x, x).item()
    assert torch.trapezoid(density, x).item() == pytest.approx(1, abs=1e-6)
    assert d.mean.item() == pytest.approx(mean, abs=1e-6)
    assert d.variance.item() == pytest.approx(torch.trapezoid(density * (x - mean) ** 2, x).item(), rel=1e-5)
    assert d.entropy().item() == pytest.approx(-torch.trapezoid(density * log_density, x).item(), abs=1e-5)
    u = torch.linspace(0, 1, 11, dtype=torch.double)
    torch.testing.assert_close(d.cdf(d.icdf(u)), u, rtol=0, atol=1e-7)
    cumulative = torch.cumulative_trapezoid(density, x)
    torch.testing.assert_close(d.cdf(x[1:]), cumulative, rtol=0, atol=1e-6)

    single = ExactContinuousBernoulli(logits=torch.tensor(logit))
    torch.testing.assert_close(single.log_prob(x.float()).double(), log_density, rtol=1e-5, atol=1e-4)
    assert single.mean.item() == pytest.approx(mean, abs=1e-6)
    wide = single.expand((3,))
    assert isinstance(wide, ExactContinuousBernoulli)
    assert ((wide.sample((1000,)) >= 0) & (wide.sample((1000,)) <= 1)).all()


def test_continuous_bernoulli_gradients() -> None:
    """Of the log-density, which is `x - mean` in the logit, and of samples, also about zero."""
    logits = torch.tensor([-1e4, -5.0, -0.1, -1e-7, 0.0, 1e-3, 0.1, 5.0, 1e4], requires_grad=True)
    d = ExactContinuousBernoulli(logits=logits)
    (gradient,) = torch.autograd.grad(d.log_prob(torch.full_like(logits, 0.25)).sum(), logits)
    torch.testing.assert_close(gradient, 0.25 - d.mean, rtol=1e-4, atol=1e-5)
    (gradient,) = torch.autograd.grad(d.rsample().sum(), logits)
    assert gradient.isfinite().all()
    assert (gradient >= 0).all()


@pytest.mark.parametrize(
    ("p", "q"), [(-300.0, 0.0), (-100.0, -3.0), (0.01, 0.0), (0.09, 0.11), (5.0, -0.05), (2.0, 2.0)]
)
def test_continuous_bernoulli_kl_against_an_integral(p: float, q: float) -> None:
    x = torch.linspace(0, 1, 400_001, dtype=torch.double)
    a, b = (ExactContinuousBernoulli(logits=torch.tensor(logit, dtype=torch.double)) for logit in (p, q))
    exact = torch.trapezoid(a.log_prob(x).exp() * (a.log_prob(x) - b.log_prob(x)), x).item()
    assert kl_divergence(a, b).item() == pytest.approx(exact, rel=1e-5, abs=1e-9)
    single = (ExactContinuousBernoulli(logits=torch.tensor(logit)) for logit in (p, q))
    assert kl_divergence(*single).item() == pytest.approx(exact, rel=1e-4, abs=1e-8)
    assert kl_divergence(*single_independent(p, q)).item() == pytest.approx(3 * exact, rel=1e-5, abs=1e-9)


def single_independent(p: float, q: float) -> list[Any]:
    logits = (torch.full((3,), logit, dtype=torch.double) for logit in (p, q))
    return [ExactContinuousBernoulli(logits=each).to_event(1) for each in logits]


def test_bernoulli_refuses_grey_pixels() -> None:
    with pyro.validation_enabled(True), pytest.raises(ValueError, match="support"):
        Bernoulli(3)(torch.zeros(3)).log_prob(torch.full((3,), 0.5))


@pytest.mark.parametrize("p", [Categorical(3, levels=5), DiscretizedLogistic(3, levels=5)])
def test_values_off_the_grid(p: Likelihood) -> None:
    h = torch.randn(p.param_shape)
    off, on = torch.tensor([0.0, 0.3, 1.0]), torch.tensor([0.0, 0.25, 1.0])
    for bad in (off, torch.tensor([0.0, 1.25, 0.5]), torch.tensor([-0.25, 0.5, 0.5])):
        with pyro.validation_enabled(True), pytest.raises(ValueError, match="multiples of 1/4 in"):
            p(h).log_prob(bad)
    with pyro.validation_enabled(False):
        torch.testing.assert_close(p(h).log_prob(off), p(h).log_prob(on))
    with pyro.validation_enabled(True):
        x = p(h).sample((100,))
        assert p(h).log_prob(x).shape == (100,)
        assert p(h).log_prob(torch.arange(3) / torch.tensor(4.0)).isfinite()


def test_nan_features_are_refused() -> None:
    for p in (Categorical(2, levels=3), DiscretizedLogistic(2), Normal(2, "pixel"), Poisson(2)):
        with pyro.validation_enabled(True), pytest.raises(ValueError, match="constraint"):
            p(torch.full(p.param_shape, math.nan))


def test_optimal_scale_in_training() -> None:
    p = Normal(SHAPE, "optimal")
    h, x = features(p, 4), torch.rand(4, *SHAPE)
    log_prob = p(h).log_prob(x)
    mse = (x - h).square().mean()
    count = SHAPE[0] * SHAPE[1] * SHAPE[2]
    torch.testing.assert_close(log_prob.mean(), -count / 2 * (1 + torch.log(2 * math.pi * mse)))
    (gradient,) = torch.autograd.grad(log_prob.sum(), h)
    torch.testing.assert_close(gradient, (x - h) / mse)  # that of -n / 2 log(mse)
    torch.testing.assert_close(p.log_scale, mse.detach().log() / 2)

    first = p.log_scale.clone()
    p(2 * h).log_prob(x)
    second = (x - 2 * h).square().mean().detach().log() / 2
    torch.testing.assert_close(p.log_scale, (first + second) / 2)
    stored = p.log_scale.clone()
    with torch.no_grad():
        p(h).log_prob(x + 5)
    torch.testing.assert_close(p.log_scale, stored)
    p(h.detach()).log_prob(h.detach())  # a perfect fit meets the floor
    assert p.log_scale.isfinite()


def test_optimal_scale_is_a_plain_normal_in_evaluation() -> None:
    p = Normal(2, "optimal")
    h, x = features(p, 50), torch.rand(50, 2)
    for _ in range(3):
        p(h).expand((50,)).log_prob(x)
    stored = p.log_scale.clone()
    p.eval()
    d = p(h)
    torch.testing.assert_close(d.log_prob(x), dist.Normal(h, stored.exp()).to_event(1).log_prob(x))
    torch.testing.assert_close(d.log_prob(x)[:1], p(h[:1]).log_prob(x[:1]))  # no datum sees its neighbors
    torch.testing.assert_close(p.log_scale, stored)


def test_soft_bound() -> None:
    x = torch.linspace(-50, 50, 10_001, dtype=torch.double, requires_grad=True)
    y = soft_bound(x)
    near = x.abs() <= 3
    torch.testing.assert_close(y[near], x[near], rtol=0, atol=0)
    torch.testing.assert_close(soft_bound(-x), -y)
    assert (y.diff() > 0).all()
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert (slope.diff().abs() < 0.01).all()  # no jump where the branches meet
    far = torch.tensor([-1e4, 1e4, 1e30], requires_grad=True)
    (slope,) = torch.autograd.grad(soft_bound(far).sum(), far)
    assert (slope[:2] > 0).all()
    torch.testing.assert_close(soft_bound(far), torch.tensor([-7.0, 7.0, 7.0]), rtol=0, atol=0.01)
    torch.testing.assert_close(bounded_exp(torch.tensor([-1.0, 2.0])), torch.tensor([-1.0, 2.0]).exp())


def test_fixed_scale_is_no_parameter_and_keeps_its_precision() -> None:
    p = Normal(2, 0.1).double()
    assert list(p.parameters()) == []
    assert p(torch.zeros(2, dtype=torch.double)).base_dist.scale[0].item() == 0.1


# By name, and errors


def test_factories() -> None:
    assert set(LIKELIHOODS) <= {name.removesuffix("_shared") for name in LIKELIHOOD_CASES}
    for name, cls in LIKELIHOODS.items():
        assert isinstance(likelihood(name, 3), cls)  # type: ignore[arg-type]
    for name, family in POSTERIORS.items():
        assert isinstance(posterior(name, 3), family)  # type: ignore[arg-type]
    assert likelihood("categorical", (1, 4, 4), levels=4).param_shape == (4, 4, 4)
    assert likelihood("discretized_logistic", (3, 4, 4), mixtures=2).param_shape == (18, 4, 4)
    assert FullNormal(1).param_shape == (2,)
    with pytest.raises(ValueError, match="unknown likelihood 'bernouli', did you mean 'bernoulli'"):
        likelihood("bernouli", 3)
    with pytest.raises(ValueError, match="unknown posterior 'full_nromal', did you mean 'full_normal'"):
        posterior("full_nromal", 3)


def test_bad_arguments() -> None:
    for scale in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="scale must be positive and finite"):
            Normal(3, scale)
    with pytest.raises(ValueError, match=r"scale must be a positive number or one of .*'optimal'.*'pixels'"):
        Normal(3, "pixels")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="scale must be"):
        Laplace(3, "optimal")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="levels must be at least 2, got 1"):
        Categorical(3, levels=1)
    with pytest.raises(ValueError, match="mixtures must be at least 1, got 0"):
        DiscretizedLogistic(3, mixtures=0)
    with pytest.raises(ValueError, match="positive sizes"):
        Bernoulli((1, 0, 3))
    with pytest.raises(ValueError, match="positive sizes"):
        DiagonalNormal(-2)
    with pytest.raises(NotImplementedError, match="Conditional must define distribution"):
        Conditional(3, 3)(torch.zeros(3))
    assert Likelihood(3).init_features(torch.zeros(3)) is None
