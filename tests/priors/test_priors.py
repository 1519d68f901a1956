"""Priors: shapes, values, gradients; densities by quadrature, draws against densities, lookup by name."""

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

import pyro_vae as pv
from pyro_vae.conditionals import POSTERIORS, SHARE_POSTERIORS
from pyro_vae.pair.particles import particles_agree
from pyro_vae.priors import (
    PRIORS,
    SHARE_PRIORS,
    AutoregressivePrior,
    DirichletPrior,
    FlowPrior,
    LaplacePrior,
    LogisticNormalPrior,
    MixturePrior,
    Prior,
    StandardNormal,
    VampPrior,
    prior,
)

PROPER = [name for name in PRIORS if name != "flat"]
LEARNED: dict[str, Callable[[int], Prior]] = {
    "mixture": lambda d: MixturePrior(d, components=3),
    "vamp": lambda d: VampPrior(d, 4, components=3),
    "coupling": lambda d: FlowPrior(d, "coupling", num_flows=2, hidden=(9,)),
    "spline": lambda d: FlowPrior(d, "spline", num_flows=2, hidden=(9,), bins=4),
    "radial": lambda d: FlowPrior(d, "radial"),
    "autoregressive": lambda d: AutoregressivePrior(d, components=3, hidden=(9, 8)),
}
every_learned = pytest.mark.parametrize("case", list(LEARNED))


def encode(size: int) -> Callable[[Tensor], Any]:
    """A stand-in for an encoder."""
    torch.manual_seed(5)
    loc = torch.randn(4, size, dtype=torch.double)
    return lambda u: dist.Normal(u @ loc.to(u), 0.3 + u[..., :1]).to_event(1)


def called(p: Prior) -> Any:
    return p(encode(p.event_shape[0])) if p.uses_encoder else p()


def made(case: str, size: int, noise: float = 0.3) -> Prior:
    """A prior away from where it begins, in double precision."""
    torch.manual_seed(1)
    p = LEARNED[case](size).double()
    with torch.no_grad():
        for parameter in p.parameters():
            parameter.add_(noise * torch.randn_like(parameter))
    return p


@pytest.mark.parametrize("name", list(PRIORS))
def test_contract(name: str) -> None:
    p = prior(name, 3, 4)
    distribution = called(p)
    assert p.event_shape == distribution.event_shape == (3,)
    assert distribution.batch_shape == ()
    with pyro.plate("particles", 5, dim=-2), pyro.plate("data", 4, dim=-1):
        z = torch.zeros(5, 4, 3)
        z = pyro.sample("z", distribution, obs=z if name == "flat" else None)
    assert z.shape == (5, 4, 3)
    assert distribution.log_prob(z).shape == (5, 4)
    assert distribution.expand((4,)).log_prob(z[0]).shape == (4,)
    assert called(p.double()).log_prob(z.double()).dtype == torch.double
    p.load_state_dict(prior(name, 3, 4).state_dict())


@pytest.mark.parametrize("name", list(PRIORS))
def test_in_a_vae(name: str) -> None:
    """Every parameter gets a gradient, particles vectorize, a copy is apart."""
    vae = pv.VAE(6, 3, hidden=(8,), prior=name)
    x = (torch.rand(5, 6) < 0.5).float()
    pv.elbo.make("trace").loss_and_grads(vae.model, vae.guide, x)
    assert [n for n, p in vae.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert particles_agree(vae.model, vae.guide, (x,))
    pv.preflight(vae.model, vae.guide, x)
    twin = copy.deepcopy(vae)
    with torch.no_grad():
        for p in twin.parameters():
            p.add_(1.0)
    assert pv.bound(vae.model, vae.guide, x, seed=0).mean != pv.bound(twin.model, twin.guide, x, seed=0).mean
    if name != "flat":
        assert vae.sample(4).shape == (4, 6)
        assert pv.sample(vae.model, x).shape == (5, 6)


@every_learned
def test_it_integrates_to_one(case: str) -> None:
    p = called(made(case, 1))
    z = torch.linspace(-30, 30, 12_001, dtype=torch.double).unsqueeze(-1)
    assert float(p.log_prob(z).detach().exp().sum() * (z[1] - z[0])) == pytest.approx(1, abs=1e-4)
    p = called(made(case, 2))
    line = torch.linspace(-12, 12, 301, dtype=torch.double)
    grid = torch.cartesian_prod(line, line)
    assert float(p.log_prob(grid).detach().exp().sum() * (line[1] - line[0]) ** 2) == pytest.approx(1, abs=2e-3)


@every_learned
def test_draws_follow_the_density(case: str) -> None:
    """Means of functions of draws against quadrature, in two dimensions; one of them is the log-density itself."""
    p = called(made(case, 2))
    line = torch.linspace(-12, 12, 301, dtype=torch.double)
    grid = torch.cartesian_prod(line, line)
    torch.manual_seed(2)
    with torch.no_grad():
        density = p.log_prob(grid).exp() * (line[1] - line[0]) ** 2
        z = p.sample((20_000,))

        def functions(z: Tensor) -> Tensor:
            near = torch.exp(-(z - 0.5).square().sum(-1))
            return torch.stack([z[:, 0], z[:, 1], z[:, 0] * z[:, 1], z[:, 1] ** 2, near, p.log_prob(z)], -1)

        exact = (density.unsqueeze(-1) * functions(grid).nan_to_num(neginf=0.0)).sum(0)
        found = functions(z)
        error = found.std(0) / math.sqrt(len(z))
    assert float(((found.mean(0) - exact).abs() / error).max()) < 4.5


def test_standard_normal() -> None:
    p = StandardNormal(2)
    expected = -math.log(2 * math.pi) - (1 + 4) / 2
    assert p().log_prob(torch.tensor([1.0, -2.0])).item() == pytest.approx(expected)
    assert p.state_dict() == {}
    assert {name for name, _ in p.named_buffers()} == {"loc", "scale"}


def test_mixture_against_a_sum() -> None:
    p = MixturePrior(2, components=2)
    with torch.no_grad():
        p.logits.copy_(torch.tensor([0.3, 0.7]).log())
        p.loc.copy_(torch.tensor([[0.0, 1.0], [2.0, -1.0]]))
        p.log_scale.copy_(torch.tensor([[0.0, 0.5], [-0.5, 0.0]]))
    z = torch.tensor([1.0, 0.5])
    parts = [dist.Normal(p.loc[k], p.log_scale[k].exp()).log_prob(z).sum().exp() for k in range(2)]
    assert p().log_prob(z).exp().item() == pytest.approx((0.3 * parts[0] + 0.7 * parts[1]).item())


def test_vamp_is_the_mean_of_the_posteriors_at_its_inputs() -> None:
    vae = pv.VAE((1, 4, 4), 3, hidden=(8,), prior=VampPrior(3, (1, 4, 4), components=5))
    z = torch.randn(7, 3)
    assert isinstance(vae.prior, VampPrior)
    u = vae.prior.inputs
    assert u.shape == (5, 1, 4, 4)
    assert 0 < u.min().item() < u.max().item() < 1
    expected = torch.stack([vae.encode(u[k]).log_prob(z) for k in range(5)]).logsumexp(0) - math.log(5)
    torch.testing.assert_close(vae.prior_distribution().log_prob(z), expected)
    names = [name for name, _ in vae.named_parameters()]
    assert len(names) == len(set(names))  # it holds no encoder of its own
    assert "prior.pseudo" in names
    x = torch.rand(9, 1, 4, 4)
    torch.testing.assert_close(vae.prior.start_at(x).inputs, x[:5].clamp(0.05, 0.95))
    with pytest.raises(ValueError, match=r"expected data of shape \(at least 5, 1, 4, 4\), got \(3, 1, 4, 4\)"):
        vae.prior.start_at(x[:3])


@pytest.mark.parametrize("posterior", list(POSTERIORS))
def test_vamp_takes_every_posterior(posterior: str) -> None:
    vae = pv.VAE(6, 3, hidden=(8,), posterior=posterior, prior="vamp")
    x = (torch.rand(5, 6) < 0.5).float()
    assert pv.SVI(vae.model, vae.guide, loss=pv.elbo.make("trace", num_particles=2)).step(x).isfinite()
    assert vae.sample(3).shape == (3, 6)


def test_vamp_bounds_are_bounds() -> None:
    """log p(x) by quadrature over a latent of one element, by importance sampling, and the ELBO below it."""
    vae = pv.VAE(4, 1, hidden=(8,), prior=VampPrior(1, 4, components=6)).double()
    x = (torch.rand(6, 4) < 0.5).double()
    svi = pv.SVI(vae.model, vae.guide, lambda p: torch.optim.Adam(p, 0.01), pv.elbo.make("iwae", num_particles=20))
    for _ in range(50):
        svi.step(x)
    z = torch.linspace(-10, 10, 4001, dtype=torch.double).reshape(-1, 1, 1)
    with torch.no_grad():
        joint = vae.prior_distribution().log_prob(z) + vae.decode(z).log_prob(x)
    exact = joint.logsumexp(0) + math.log(20 / 4000)
    found = pv.log_marginal(vae.model, vae.guide, x, num_samples=5000, seed=0)
    assert ((found.log_prob - exact).abs() < 5 * found.std_error).all()
    assert (pv.bound(vae.model, vae.guide, x, num_samples=500, seed=0).elbo < exact).all()


def test_flow_begins_near_the_standard_normal() -> None:
    z = torch.randn(50, 3)
    torch.testing.assert_close(FlowPrior(3)().log_prob(z), StandardNormal(3)().log_prob(z), atol=0.3, rtol=0.05)


def test_autoregressive_order() -> None:
    """A factor depends on the elements before it alone."""
    p = made("autoregressive", 3)()
    z = torch.randn(3, dtype=torch.double)
    other = z + torch.tensor([0.0, 0.0, 1.0], dtype=torch.double)
    torch.testing.assert_close(p.elements(z).mean, p.elements(other).mean)
    moved = p.elements(z + torch.tensor([1.0, 0.0, 0.0], dtype=torch.double)).mean - p.elements(z).mean
    assert moved[0] == 0
    assert moved[1:].abs().min() > 1e-4


@pytest.mark.parametrize("name", ["mixture", "flow", "autoregressive"])
def test_a_learned_prior_fits_what_is_no_normal(name: str) -> None:
    torch.manual_seed(0)
    z = torch.where(torch.rand(500, 1) < 0.5, -2.0, 2.0) + 0.3 * torch.randn(500, 2)
    p: Any = prior(name, 2)
    optimizer = torch.optim.Adam(p.parameters(), 0.05 if name == "mixture" else 0.01)
    for _ in range(100):
        optimizer.zero_grad()
        (-p().log_prob(z).mean()).backward()
        optimizer.step()
    normal = dist.MultivariateNormal(z.mean(0), z.T.cov()).log_prob(z).mean()
    assert p().log_prob(z).mean().item() > float(normal) + 0.25


def test_errors() -> None:
    with pytest.raises(ValueError, match="'standart_normal', did you mean 'standard_normal'"):
        prior("standart_normal", 3)
    with pytest.raises(ValueError, match="the prior 'vamp' needs the shape of one datum"):
        prior("vamp", 3)
    with pytest.raises(ValueError, match="a VampPrior is called with the encoder"):
        VampPrior(3, 4)()
    with pytest.raises(ValueError, match="positive"):
        StandardNormal(0)
    with pytest.raises(ValueError, match="scale must be positive"):
        LaplacePrior(3, scale=0.0)
    with pytest.raises(NotImplementedError, match="Prior must define"):
        Prior(3)()


# Shares that sum to one


class Log(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return z.log()


@pytest.mark.parametrize("posterior", list(SHARE_POSTERIORS))
def test_a_topic_of_each_word_against_the_dirichlet_multinomial(posterior: str) -> None:
    """Where each share is that of one word, log p(x) has a closed form."""
    torch.manual_seed(0)
    alpha = 2.0
    vae = pv.VAE(
        4,
        4,
        likelihood="multinomial",
        posterior=posterior,
        prior=DirichletPrior(4, alpha),
        encoder=nn.Linear(4, 4 if posterior == "dirichlet" else 6),
        decoder=Log(),
    ).double()
    encoder: Any = vae.encoder
    with torch.no_grad():  # near the exact posterior, Dirichlet(alpha + x), so that few samples are enough
        if posterior == "dirichlet":
            encoder.weight.copy_(0.3 * torch.eye(4))
            encoder.bias.fill_(0.5)
        else:
            encoder.weight.zero_()
            encoder.bias.zero_()
    x = torch.tensor([[3.0, 0.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 2.0]]).double()
    found = pv.log_marginal(vae.model, vae.guide, x, num_samples=40_000, seed=0)
    n = x.sum(-1)
    a = torch.tensor(alpha).double()
    exact = (n + 1).lgamma() - (x + 1).lgamma().sum(-1) + (4 * a).lgamma() - (n + 4 * a).lgamma()
    exact = exact + ((x + a).lgamma() - a.lgamma()).sum(-1)
    assert ((found.log_prob - exact).abs() < 5 * found.std_error + 1e-3).all()
    assert found.std_error.max() < 0.1


def test_logistic_normal_prior_is_the_laplace_approximation_of_a_dirichlet_one() -> None:
    """Curvature of the Dirichlet density over log-ratios, at its mode, in any direction."""
    alpha, basis = 2.5, LogisticNormalPrior(3)().basis.double()

    def log_density(e: Tensor) -> Tensor:
        logs = (basis @ e).log_softmax(-1)
        return (alpha * logs).sum()  # the Jacobian to log-ratios multiplies the density by the shares

    hessian: Any = torch.autograd.functional.hessian(log_density, torch.zeros(2, dtype=torch.double))
    scale = LogisticNormalPrior(3, alpha).scale.double()
    torch.testing.assert_close(-hessian, torch.diag(scale**-2), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", list(SHARE_PRIORS))
def test_priors_over_shares(name: str) -> None:
    p = prior(name, 3, concentration=0.5)
    assert p().expand((4,)).sample((2,)).shape == (2, 4, 3)
    assert p.double()().sample().dtype == torch.double
    vae = pv.VAE(6, 3, hidden=(8,), posterior="logistic_normal", prior=name)
    x = (torch.rand(5, 6) < 0.5).float()
    pv.elbo.make("iwae", num_particles=2).loss_and_grads(vae.model, vae.guide, x)
    assert all(p.grad is not None and p.grad.any() for p in vae.parameters())
    pv.preflight(vae.model, vae.guide, x)
    assert vae.sample(4).shape == (4, 6)
    with pytest.raises(ValueError, match="the prior is over shares that sum to one, but the posterior over unrestr"):
        pv.VAE(6, 3, prior=name)
    with pytest.raises(ValueError, match=r"the prior is over unrestricted.*prior='logistic_normal'"):
        pv.VAE(6, 3, posterior="dirichlet")
    with pytest.raises(ValueError, match=r"the posterior is over shares.*posterior='diagonal_normal'"):
        pv.models.ConditionalVAE(6, condition=3, posterior="dirichlet")
    with pytest.raises(ValueError, match="at least 2, got 1"):
        prior(name, 1)
    with pytest.raises(ValueError, match="concentration must be positive"):
        prior(name, 3, concentration=0.0)
