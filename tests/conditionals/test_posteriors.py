"""Posterior families beyond the normals: one contract, densities against Jacobians and quadrature, gradients, fits."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import AffineTransform, Transform

import pyro_vae as pv
from pyro_vae.conditionals import (
    POSTERIORS,
    Conditional,
    CouplingFlow,
    Flow,
    FlowDistribution,
    InverseAutoregressiveFlow,
    LowRankNormal,
    PlanarFlow,
    RadialFlow,
    SplineFlow,
    posterior,
)
from pyro_vae.conditionals.transforms import Planar, Radial, affine, spline
from pyro_vae.nets import MLP
from pyro_vae.oracles import LinearGaussian
from pyro_vae.pair.particles import particles_agree

FLOWS: dict[str, Callable[[int], Conditional]] = {
    "planar": lambda d: PlanarFlow(d, num_flows=3),
    "radial": lambda d: RadialFlow(d, num_flows=3),
    "iaf": lambda d: InverseAutoregressiveFlow(d, num_flows=3, hidden=(9, 8), context_dim=2),
    "coupling": lambda d: CouplingFlow(d, num_flows=3, hidden=(9,), context_dim=2),
    "spline": lambda d: SplineFlow(d, num_flows=2, hidden=(9, 8), context_dim=2, bins=4),
}
FAMILIES: dict[str, Callable[[int], Conditional]] = {"low_rank": lambda d: LowRankNormal(d, rank=2), **FLOWS}
every_family = pytest.mark.parametrize("case", list(FAMILIES))
every_flow = pytest.mark.parametrize("case", list(FLOWS))


def made(case: str, size: int = 3, *, double: bool = False, noise: float = 0.3) -> Conditional:
    """A family whose weights are as far from the identity as training may take them, or nearer with less noise."""
    torch.manual_seed(1)
    family = FAMILIES[case](size)
    with torch.no_grad():
        for parameter in family.parameters():
            parameter.add_(noise * torch.randn_like(parameter))
    return family.double() if double else family


def features(family: Conditional, *lead: int, scale: float = 1.0) -> Tensor:
    dtype = next((p.dtype for p in family.buffers() if p.is_floating_point()), torch.float32)
    if isinstance(family, PlanarFlow):
        scale *= 3  # u takes a tenth of its features
    return (scale * torch.randn(*lead, *family.param_shape, dtype=dtype)).requires_grad_()


def double_features(family: Conditional, *lead: int, scale: float = 1.0) -> Tensor:
    return features(family, *lead, scale=scale).detach().double().requires_grad_()


# The contract


@every_family
@pytest.mark.parametrize("lead", [(), (4,), (3, 4)])
def test_shapes(case: str, lead: tuple[int, ...]) -> None:
    family = made(case)
    d = family(features(family, *lead))
    assert (d.batch_shape, d.event_shape, d.has_rsample) == (lead, (3,), True)
    x = d.sample((5,))
    assert x.shape == (5, *lead, 3)
    assert not x.requires_grad
    assert d.log_prob(x).shape == (5, *lead)
    assert d.rsample().requires_grad
    wide = d.expand((6, *lead))
    assert wide.sample((2,)).shape == (2, 6, *lead, 3)
    torch.testing.assert_close(wide.log_prob(x[0].clone()), d.log_prob(x[0].clone()).expand(6, *lead))
    assert d.log_prob(torch.zeros(3)).shape == lead  # one value for all


@every_family
def test_leading_dimensions_agree_with_single_evaluations(case: str) -> None:
    family = made(case, double=True)
    h = double_features(family, 3, 4).detach()
    d = family(h)
    x = d.sample((2,))
    together = d.log_prob(x)
    for i in range(3):
        for j in range(4):
            torch.testing.assert_close(family(h[i, j]).log_prob(x[:, i, j]), together[:, i, j])


@every_family
def test_every_feature_and_parameter_gets_a_gradient(case: str) -> None:
    """Also of a value drawn without recording gradients, which a cache would score without them."""
    family = made(case)
    h = features(family, 8)
    d = family(h)
    x = d.sample()
    inputs = [h, *family.parameters()]
    found = torch.autograd.grad(d.log_prob(x).sum(), inputs)
    expected = torch.autograd.grad(family(h).log_prob(x.clone()).sum(), inputs)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
        assert one.isfinite().all()
    assert (found[0] != 0).any(0).all()
    assert all(one.abs().sum() > 0 for one in found)


@every_family
def test_extreme_features_stay_finite(case: str) -> None:
    torch.manual_seed(0)
    family = FAMILIES[case](3)
    x = torch.randn(64, 3)
    signs = torch.randint(0, 2, (64, *family.param_shape)) * 2.0 - 1
    for size in (20.0, 1e4):
        h = (size * signs).requires_grad_()
        d = family(h)
        log_prob = d.log_prob(x)
        log_prob.sum().backward()
        assert log_prob.isfinite().all()
        assert h.grad is not None
        assert h.grad.isfinite().all()
        z = d.rsample()
        assert d.log_prob(z).isfinite().all()
        assert d.log_prob(z.detach().clone()).isfinite().all()


@every_family
def test_precisions(case: str) -> None:
    family = made(case)
    h = features(family, 2).detach()
    assert family(h.bfloat16()).sample().dtype == torch.float32
    d = family.double()(h.double())
    x = d.sample()
    assert x.dtype == d.log_prob(x).dtype == d.log_prob(x.clone()).dtype == torch.double


@every_family
def test_nothing_is_left_on_another_device(case: str) -> None:
    family = made(case).to("meta")
    with pyro.validation_enabled(False):
        d = family(torch.zeros(4, *family.param_shape, device="meta")).expand((2, 4))
        z = d.rsample()
        assert z.device == d.log_prob(z).device == d.log_prob(z.clone()).device == torch.device("meta")


@every_family
def test_state_round_trip(case: str) -> None:
    family, other = made(case), FAMILIES[case](3)
    other.load_state_dict(family.state_dict())
    h = features(family, 2).detach()
    x = torch.randn(2, 3)
    torch.testing.assert_close(other(h).log_prob(x), family(h).log_prob(x), rtol=0, atol=0)
    torch.testing.assert_close(copy.deepcopy(family)(h).log_prob(x), family(h).log_prob(x), rtol=0, atol=0)


@every_family
def test_a_new_family_is_nearly_the_diagonal_normal(case: str) -> None:
    torch.manual_seed(0)
    family, x = FAMILIES[case](3), torch.randn(100, 3)
    h = torch.zeros(100, *family.param_shape)
    h[..., :6] = torch.tensor([0.5, -1.0, 2.0, -0.5, 0.3, -1.0])
    normal = dist.Normal(h[..., :3], h[..., 3:6].exp()).to_event(1)
    torch.testing.assert_close(family(h).log_prob(x), normal.log_prob(x), rtol=0.01, atol=0.1)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r"num_flows must hold positive sizes, at least one, got \(0,\)"):
        posterior("iaf", 3, num_flows=0)
    with pytest.raises(ValueError, match="rank must hold positive sizes"):
        LowRankNormal(3, rank=0)
    with pytest.raises(ValueError, match="hidden must hold positive sizes"):
        CouplingFlow(3, hidden=())
    with pytest.raises(ValueError, match="context_dim must hold positive sizes"):
        CouplingFlow(3, context_dim=0)
    with pytest.raises(ValueError, match="bins must be at least 2, got 1"):
        SplineFlow(3, bins=1)
    with pytest.raises(ValueError, match=r"PlanarFlow expects a tensor of shape \(\*, 34\), got \(2, 6\)"):
        PlanarFlow(3)(torch.zeros(2, 6))
    with pytest.raises(NotImplementedError, match="Flow must define transforms"):
        Flow(3, 1)(torch.zeros(7))


# Densities


@every_flow
@pytest.mark.parametrize("size", [1, 2, 5])
def test_log_prob_is_that_of_the_change_of_variables(case: str, size: int) -> None:
    """Against the Jacobian by automatic differentiation, for draws and for copies of them, and z = f(e) inverted."""
    family = made(case, size, double=True)
    h = double_features(family, 6).detach()
    d = family(h)
    z = d.sample()
    for i in range(6):
        steps = family(h[i]).transforms

        def push(e: Tensor, steps: list[Transform] = steps) -> Tensor:
            for step in steps:
                e = step(e)
            return e

        e = z[i].clone()
        for step in reversed(steps):
            e = step._inv_call(e)
        torch.testing.assert_close(push(e), z[i], rtol=0, atol=1e-9)
        _, log_det = torch.linalg.slogdet(torch.func.jacrev(push)(e))
        expected = dist.Normal(torch.zeros(size).double(), 1.0).to_event(1).log_prob(e) - log_det
        torch.testing.assert_close(d.log_prob(z)[i], expected, rtol=1e-8, atol=1e-7)
        torch.testing.assert_close(d.log_prob(z.clone())[i], expected, rtol=1e-8, atol=1e-7)


@every_family
def test_density_integrates_to_one(case: str) -> None:
    family = made(case, 2, double=True, noise=0.2)
    h = double_features(family, scale=0.7).detach()
    h[2:4] = -1.0
    d = family(h)
    with torch.no_grad():
        draws = d.sample((20_000,))
        low, high = draws.min(0).values - 1, draws.max(0).values + 1
        axes = [torch.linspace(float(a), float(b), 300).double() for a, b in zip(low, high, strict=True)]
        cell = math.prod(float(axis[1] - axis[0]) for axis in axes)
        total = d.log_prob(torch.cartesian_prod(*axes)).exp().sum() * cell
    assert float(total) == pytest.approx(1, abs=2e-3)


def test_low_rank_normal_is_what_it_says() -> None:
    family = LowRankNormal(3, rank=2)
    h = features(family).detach()
    scale, factor = h[3:6].exp(), h[6:].reshape(3, 2)
    covariance = scale[:, None] * (torch.eye(3) + factor @ factor.T) * scale
    torch.testing.assert_close(family(h).covariance_matrix, covariance)
    torch.testing.assert_close(family(h).mean, h[:3])


def test_planar_step_by_hand() -> None:
    """And where w'u < -1, which is not a bijection, so that u is moved."""
    u, w, b = torch.tensor([0.5, -1.0]).double(), torch.tensor([0.8, 0.3]).double(), torch.tensor([0.2]).double()
    x = torch.tensor([1.0, -2.0]).double()
    step = Planar(u, w, b)
    dot = math.log1p(math.exp(0.1 + math.log(math.e - 1))) - 1  # w'u = 0.1
    moved = u + (dot - 0.1) * w / 0.73
    torch.testing.assert_close(step(x), x + moved * math.tanh(0.8 - 0.6 + 0.2))
    steep = Planar(-20 * w, w, b)
    assert -1 < float(steep.dot) < -0.99
    y = torch.linspace(-9, 9, 50).double().unsqueeze(-1) * torch.ones(2).double()
    torch.testing.assert_close(steep(steep._inv_call(y)), y, rtol=0, atol=1e-9)
    still = Planar(torch.zeros(2), torch.zeros(2), torch.zeros(1))
    assert torch.equal(still(x), x)


def test_radial_step_by_hand() -> None:
    center, x = torch.tensor([1.0, 0.0]).double(), torch.tensor([4.0, 4.0]).double()
    step = Radial(center, torch.tensor([0.0]).double(), torch.tensor([2.0]).double())
    alpha, total = math.log(2), math.log1p(math.exp(2))
    torch.testing.assert_close(step(x), x + (total - alpha) / (alpha + 5) * (x - center))
    torch.testing.assert_close(step._inv_call(center.clone()), center)
    inward = Radial(center, torch.tensor([1.0]).double(), torch.tensor([-7.0]).double())
    y = center + torch.logspace(-4, 3, 50).double().unsqueeze(-1)
    torch.testing.assert_close(inward(inward._inv_call(y)), y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("steepness", [0.0, 1.0, 5.0, 1e3])
def test_spline(dtype: torch.dtype, steepness: float) -> None:
    """Monotone, inverted, and with its derivative, inside, at the knots and outside; also where it is steepest."""
    parameters = steepness * torch.randn(200, 1, 3 * 8 - 1, dtype=dtype)
    x = torch.linspace(-6, 6, 601, dtype=dtype).requires_grad_()
    grid = x.expand(200, 601)
    y, log_slope = spline(grid, parameters.expand(200, 601, 23), False)
    (slope,) = torch.autograd.grad(y.sum(), grid)
    torch.testing.assert_close(log_slope.exp(), slope, rtol=1e-3, atol=1e-4)
    assert (y.diff() > -1e-6).all()
    assert torch.equal(y[:, :100], grid[:, :100])
    assert torch.equal(y[:, -100:], grid[:, -100:])
    back, again = spline(y, parameters.expand(200, 601, 23), True)
    # where it is flat, an error of the last digit of y is a larger one of x
    assert ((back - grid).abs() * slope.clamp(max=1) < 100 * torch.finfo(dtype).eps).all()
    if dtype == torch.float64:
        torch.testing.assert_close(again, log_slope, rtol=0, atol=1e-6)
    if steepness == 0:
        torch.testing.assert_close(y, grid)


def test_affine_scales_are_bounded() -> None:
    y, log_scale = affine(torch.ones(1), torch.tensor([[0.0, 1e5]]))
    assert log_scale.item() == pytest.approx(7, abs=0.01)
    x, again = affine(y, torch.tensor([[0.0, 1e5]]), True)
    assert (x.item(), again.item()) == (pytest.approx(1.0), log_scale.item())


@pytest.mark.parametrize(
    ("family", "seen"), [(InverseAutoregressiveFlow(6), 5), (CouplingFlow(6), 3), (SplineFlow(6), 3)]
)
def test_networks_see_the_elements_before_alone(family: Any, seen: int) -> None:
    for net in family.nets:
        with torch.no_grad():
            net.final.weight.mul_(100)
        offset = net.context(torch.randn(6))
        jacobian = torch.func.jacrev(lambda x, net=net, offset=offset: net(x, offset).sum(-1))(torch.randn(6))
        before = net.degrees.unsqueeze(-1) > net.degrees
        assert torch.equal(jacobian != 0, before)
        assert int(before.sum(-1).max()) == seen


# Gradients


@every_family
def test_gradients_of_any_value_by_finite_differences(case: str) -> None:
    """In the value (HMC, sticking the landing) and in the features; the planar step's root is implicit."""
    family = made(case, 3, double=True)
    h = double_features(family, 2, scale=0.7)
    x = family(h).sample((2,)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, h: family(h).log_prob(x), (x, h), atol=1e-6)


@every_family
def test_a_draw_has_the_gradients_of_its_copy(case: str) -> None:
    """In total, through the draw and the parameters, for the features and for the weights."""
    family = made(case, 4, double=True)
    h = double_features(family, 5)
    inputs = [h, *family.parameters()]
    d = family(h)
    z = d.rsample((2,))
    direct = torch.autograd.grad(d.log_prob(z).sum(), inputs, retain_graph=True)
    inverted = torch.autograd.grad(d.log_prob(z.clone()).sum(), inputs)
    for one, other in zip(direct, inverted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)


class Pair(nn.Module):
    """A linear-Gaussian model whose guide is a family of free features, one row per datum."""

    def __init__(self, family: Conditional, oracle: LinearGaussian, n: int) -> None:
        super().__init__()
        self.family, self.oracle = family.double(), oracle.requires_grad_(False)
        self.h = nn.Parameter(torch.zeros(n, *family.param_shape, dtype=torch.double))
        self.eval()  # Pyro warns of fixed parameters in training mode

    def model(self, x: Tensor) -> None:
        self.oracle.model(x)

    def guide(self, x: Tensor) -> None:
        pyro.module("pair", self)
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.family(self.h))


@every_flow
def test_sticking_the_landing_leaves_out_the_score(case: str) -> None:
    """Its gradient against one by hand: the density's parameters held fixed while the draw moves."""
    oracle = LinearGaussian(latent_dim=3)
    pair = Pair(made(case), oracle, 5)
    with torch.no_grad():
        pair.h.copy_(double_features(pair.family, 5))
    x = oracle.simulate(5)
    torch.manual_seed(3)
    inputs = [pair.h, *pair.family.parameters()]
    loss = pv.elbo.make("stl").differentiable_loss(pair.model, pair.guide, x)
    found = torch.autograd.grad(loss, inputs)

    torch.manual_seed(3)
    z = pair.family(pair.h).rsample()
    held = copy.deepcopy(pair.family).requires_grad_(False)(pair.h.detach())
    log_p = oracle.prior().log_prob(z) + oracle.likelihood(z).log_prob(x)
    for one, other in zip(found, torch.autograd.grad((held.log_prob(z) - log_p).sum(), inputs), strict=True):
        torch.testing.assert_close(one, other)


# In pairs


@pytest.mark.parametrize("elbo", ["mean_field", "trace", "stl", "iwae", "dreg"])
@pytest.mark.parametrize("name", list(POSTERIORS))
def test_every_family_trains_with_every_kind_of_estimator(name: str, elbo: str, digits: Tensor) -> None:
    vae = pv.VAE(64, latent_dim=3, hidden=(16,), posterior=name)
    svi = pv.SVI(vae.model, vae.guide, loss=pv.elbo.make(elbo, num_particles=2))
    before = {name: p.detach().clone() for name, p in vae.named_parameters()}
    loss = svi.step(digits)
    assert loss.isfinite()
    unmoved = [name for name, p in vae.named_parameters() if torch.equal(p, before[name])]
    assert not unmoved
    assert particles_agree(vae.model, vae.guide, (digits,))
    assert pv.log_marginal(vae.model, vae.guide, digits[:4], num_samples=20).log_prob.isfinite().all()


@pytest.fixture(scope="module")
def digits() -> Tensor:
    return pv.data.load("digits", binarize="threshold", flatten=True).train.head(16)


@pytest.mark.parametrize("name", list(POSTERIORS))
def test_zero_features_and_double_precision_in_a_vae(name: str, digits: Tensor) -> None:
    vae: Any = pv.VAE(64, latent_dim=3, hidden=(16,), posterior=name).double()
    nn.init.zeros_(vae.encoder.final.weight)
    nn.init.zeros_(vae.encoder.final.bias)
    x = digits.double()
    loss = pv.elbo.make("trace", num_particles=2).differentiable_loss(vae.model, vae.guide, x)
    loss.backward()
    assert loss.dtype == torch.double
    assert vae.encoder.final.bias.grad.isfinite().all()
    found = pv.log_marginal(vae.model, vae.guide, x, num_samples=2000, seed=0)
    vae.posterior = pv.conditionals.DiagonalNormal(3)
    vae.encoder = MLP(64, (), 6).double()
    nn.init.zeros_(vae.encoder.final.weight)
    reference = pv.log_marginal(vae.model, vae.guide, x, num_samples=2000, seed=1)
    error = (found.std_error.square() + reference.std_error.square()).sqrt()
    assert ((found.log_prob - reference.log_prob).abs() < 5 * error).all()


@every_family
def test_a_pair_of_functions_with_two_plates_and_counts(case: str) -> None:
    """Two latents per datum, Poisson counts, an extra argument: log p(x) by the family and by the prior's draws."""
    family, encoder = made(case, 2, noise=0.1), nn.Linear(2, 2 * FAMILIES[case](2).param_shape[0])

    with torch.no_grad():  # near the prior, where log p(x) is easy
        for parameter in encoder.parameters():
            parameter.mul_(0.3)

    def model(x: Tensor, exposure: Tensor) -> None:
        with pyro.plate("data", len(x)):
            with pyro.plate("parts", 2):
                z = pyro.sample("rates", dist.Normal(torch.zeros(2), 0.7).to_event(1))
            rate = z.sum(-3, keepdim=True)
            pyro.sample("counts", dist.Poisson(exposure.unsqueeze(-1) * rate.exp()).to_event(1), obs=x)

    def guide(x: Tensor, exposure: Tensor) -> None:
        with pyro.plate("data", len(x)), pyro.plate("parts", 2):
            h = encoder(x).unflatten(-1, (2, -1)).transpose(0, 1)  # (parts, data, features)
            pyro.sample("rates", family(h))

    def by_prior(x: Tensor, exposure: Tensor) -> None:
        with pyro.plate("data", len(x)), pyro.plate("parts", 2):
            pyro.sample("rates", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    x, exposure = torch.tensor([[0.0, 1.0], [2.0, 1.0], [0.0, 0.0], [3.0, 2.0]]), torch.ones(4)
    found = pv.log_marginal(model, guide, x, exposure, num_samples=20_000, seed=0)
    reference = pv.log_marginal(model, by_prior, x, exposure, num_samples=20_000, seed=1)
    error = (found.std_error.square() + reference.std_error.square()).sqrt()
    assert ((found.log_prob - reference.log_prob).abs() < 5 * error).all()


# Fits


def oracle_2d() -> LinearGaussian:
    """A posterior whose two elements correlate by -0.8."""
    oracle = LinearGaussian(data_dim=2, latent_dim=2, scale=0.5)
    with torch.no_grad():
        oracle.weight.copy_(torch.tensor([[1.0, 1.0], [0.5, -0.2]]))
    return oracle.requires_grad_(False)


def gap(family: Conditional, steps: int = 300) -> tuple[float, float]:
    """How far the ELBO of a fitted family stays below log p(x), nats per datum, and the error of that."""
    oracle = oracle_2d()
    x = oracle.simulate(4)
    pair = Pair(family, oracle, 4)
    optimizer = torch.optim.Adam(pair.parameters(), 0.05, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

    def log_w(draws: int) -> Tensor:
        q = pair.family(pair.h)
        z = q.rsample((draws,))
        return oracle.prior().log_prob(z) + oracle.likelihood(z).log_prob(x) - q.log_prob(z)

    for _ in range(steps):
        optimizer.zero_grad()
        (-log_w(32).mean()).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        below = oracle.log_prob(x) - log_w(5000)
    return float(below.mean()), float((below.var(0).sum() / 5000).sqrt() / 4)


def test_the_diagonal_normal_cannot_follow_a_correlated_posterior() -> None:
    """The best one stays below by `(sum log diag(P) - log det P) / 2`, P the posterior's precision."""
    precision = oracle_2d().posterior(torch.zeros(1, 2).double()).precision_matrix[0]
    expected = float((precision.diagonal().log().sum() - torch.logdet(precision)) / 2)
    assert expected > 0.25
    found, error = gap(posterior("diagonal_normal", 2))
    assert abs(found - expected) < 5 * error + 0.01


@pytest.mark.parametrize(
    "family",
    [
        lambda: posterior("full_normal", 2),
        lambda: LowRankNormal(2, rank=2),
        lambda: InverseAutoregressiveFlow(2, hidden=(16,)),
        lambda: CouplingFlow(2, hidden=(16,)),
    ],
    ids=["full_normal", "low_rank_normal", "iaf", "coupling"],
)
def test_families_that_reach_a_correlated_normal(family: Callable[[], Conditional]) -> None:
    found, error = gap(family())
    assert -5 * error < found < 0.02


@pytest.mark.parametrize(
    "family",
    [lambda: SplineFlow(2, hidden=(16,)), lambda: PlanarFlow(2, num_flows=8), lambda: RadialFlow(2, num_flows=8)],
    ids=["spline", "planar", "radial"],
)
def test_families_that_come_nearer_to_it(family: Callable[[], Conditional]) -> None:
    found, error = gap(family())
    assert -5 * error < found < 0.1


class OfPyro(Flow):
    """A user's own flow, of a transform of Pyro's."""

    def __init__(self) -> None:
        super().__init__(2, 1)
        self.net = dist.transforms.conditional_matrix_exponential(2, 1, hidden_dims=[4])

    def transforms(self, context: Tensor) -> list[Transform]:
        return [self.net.condition(context), AffineTransform(0.0, torch.ones(2, dtype=context.dtype), event_dim=1)]


def test_a_flow_of_pyros_transforms() -> None:
    family = OfPyro().double()
    h = torch.randn(3, 5).double().requires_grad_()
    d = family(h)
    assert isinstance(d, FlowDistribution)
    z = d.sample((4,))
    inputs = [h, *family.parameters()]
    found = torch.autograd.grad(d.log_prob(z).sum(), inputs)
    expected = torch.autograd.grad(family(h).log_prob(z.clone()).sum(), inputs)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
