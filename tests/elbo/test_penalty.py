"""Penalties on a batch's latents: the MMD against its closed form between Gaussians, and what the objectives add up."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.conditionals import Normal, Point
from pyro_vae.elbo import WAE, InfoVAE, Sparse, mmd
from pyro_vae.elbo.objectives.penalty import _SCALES
from pyro_vae.oracles import Discrete, LinearGaussian, TopDownChain


def gaussian_kernel_mean(shift: float, variance: float, size: int, square: float) -> float:
    """E exp(-d^2 / 2l^2) for a difference of `size` independent normals with one mean and variance."""
    factor = square / (square + variance)
    return factor ** (size / 2) * math.exp(-size * shift**2 / (2 * (square + variance)))


@pytest.mark.parametrize(("shift", "scale", "length"), [(0.0, 1.0, None), (0.7, 1.0, None), (0.3, 0.5, 0.8)])
def test_mmd_between_gaussians(shift: float, scale: float, length: float | None) -> None:
    """The mean over many samples is the closed form: the estimate has no bias, small as the samples are."""
    torch.manual_seed(0)
    size, repeats = 3, 20_000
    x = torch.randn(repeats, 7, size)
    y = shift + scale * torch.randn(repeats, 5, size)
    found = mmd(x, y, kernel="rbf", length=length)
    square = size if length is None else length**2
    exact = (
        gaussian_kernel_mean(0, 2, size, square)
        + gaussian_kernel_mean(0, 2 * scale**2, size, square)
        - 2 * gaussian_kernel_mean(shift, 1 + scale**2, size, square)
    )
    error = float(found.std() / math.sqrt(repeats))
    assert float(found.mean()) == pytest.approx(exact, abs=4 * error)
    assert exact == 0 or abs(exact) > 20 * error


def test_the_inverse_multiquadratic_kernel() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(4, 2), torch.randn(3, 2)

    def k(a: Tensor, b: Tensor) -> float:
        d = float((a - b).square().sum())
        return sum(2 * s * 2 / (2 * s * 2 + d) for s in _SCALES)

    within = [sum(k(s[i], s[j]) for i in range(len(s)) for j in range(len(s)) if i != j) for s in (x, y)]
    across = sum(k(a, b) for a in x for b in y)
    expected = within[0] / 12 + within[1] / 6 - 2 * across / 12
    assert float(mmd(x, y)) == pytest.approx(expected, rel=1e-5)


def test_mmd_of_one_datum_is_zero_and_gradients_are_finite() -> None:
    assert float(mmd(torch.zeros(1, 2), torch.ones(1, 2))) == 0.0
    x = torch.zeros(4, 2, requires_grad=True)  # all in one place
    mmd(x, torch.ones(4, 2)).backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert x.grad.any()
    with pytest.raises(ValueError, match="kernel must be 'imq' or 'rbf', got 'cauchy'"):
        mmd(x, x, kernel="cauchy")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="samples of 2 and 3 elements"):
        mmd(x, torch.ones(4, 3))


class TwoPlates:
    """Two latents of different layout, one in an inner plate, the second depending on the first; Poisson counts."""

    def __init__(self) -> None:
        self.net = nn.Linear(3, 2)

    def model(self, x: Tensor) -> None:
        pyro.module("net", self.net)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            with pyro.plate("inner", 3, dim=-2):
                w = pyro.sample("w", dist.Normal(z[..., 0] + 5, 1.0))
            rate = (w.sum(-2, keepdim=True) / 100).exp()
            pyro.sample("x", dist.Poisson(rate.unsqueeze(-1).expand(*rate.shape, 3)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("net", self.net)
        with pyro.plate("data", len(x), dim=-1):
            loc = self.net(x)
            z = pyro.sample("z", dist.Normal(loc, 0.1).to_event(1))
            with pyro.plate("inner", 3, dim=-2):
                pyro.sample("w", dist.Normal(z[..., 0], 0.1))


@pytest.mark.parametrize("num_particles", [1, 4])
def test_alpha_zero_and_weight_one_is_the_elbo(num_particles: int) -> None:
    pair = LinearGaussian(seed=3)
    x = pair.simulate(6)
    values = []
    for objective in (InfoVAE(num_particles, alpha=0.0, weight=1.0), pv.elbo.MeanField(num_particles)):
        torch.manual_seed(0)
        values.append(float(objective.loss(pair.model, pair.guide, x)))
    assert values[0] == pytest.approx(values[1])


@pytest.mark.parametrize("vectorize", [True, False])
def test_the_parts_add_up(vectorize: bool) -> None:
    """E[value] = reconstruction + (1 - a) KL + (a + l - 1) MMD^2, the last in closed form for a linear encoder."""
    pair = LinearGaussian(seed=3)
    x = pair.simulate(4)
    objective = InfoVAE(2000, alpha=0.3, weight=50.0, kernel="rbf", length=1.0, vectorize_particles=vectorize)
    if not vectorize:
        objective = InfoVAE(300, alpha=0.3, weight=50.0, kernel="rbf", length=1.0, vectorize_particles=False)
    torch.manual_seed(0)
    found = float(objective.loss(pair.model, pair.guide, x)) / len(x)
    with torch.no_grad():
        loc, scale = pair.q(x).mean, pair.q(x).stddev
        kl = pair.kl(x).mean()
        reconstruction = -(pair.elbo(x).mean() + kl)

        def mean_kernel(shift: Tensor, variance: Tensor) -> Tensor:
            return ((1 + variance).rsqrt() * torch.exp(-shift.square() / (2 * (1 + variance)))).prod(-1)

        pairs = mean_kernel(loc[:, None] - loc, scale[:, None] ** 2 + scale**2)
        within = (pairs.sum() - pairs.diagonal().sum()) / 12
        across = mean_kernel(loc, scale**2 + 1).mean()
        prior = mean_kernel(torch.zeros(loc.shape[-1]), torch.full((loc.shape[-1],), 2.0))
        exact = float(reconstruction + 0.7 * kl + 49.3 * (within + prior - 2 * across))
    assert found == pytest.approx(exact, rel=0.02)


def test_latents_of_several_sites_stand_side_by_side() -> None:
    pair = TwoPlates()
    x = torch.ones(5, 3)
    for particles in (1, 2):
        seen: dict[str, Tensor] = {}

        class Look(WAE):
            def penalty(self, run: Any, plate: Any, prior: Any) -> Tensor:
                seen["q"], seen["p"] = self.latents(run, plate).detach(), prior()  # noqa: B023
                return super().penalty(run, plate, prior)

        torch.manual_seed(0)
        Look(particles).loss_and_grads(pair.model, pair.guide, x)
        assert seen["q"].shape == seen["p"].shape == (particles, 5, 5)
        # of the prior, not of the model at the guide's z: w is about 5 more than z there
        off = seen["p"][..., 2:] - seen["p"][..., :1]
        assert float(off.mean()) == pytest.approx(5, abs=1.0)
        assert float((seen["p"][..., :1] - seen["q"][..., :1]).abs().min()) > 1e-4


def test_the_aggregate_posterior_goes_to_the_prior() -> None:
    """A deterministic encoder under WAE-MMD: codes of all data have the prior's moments, without it they do not."""
    x = pv.data.load("digits", flatten=True).train.x[:500]
    spread = {}
    for weight in (0.0, 500.0):
        torch.manual_seed(0)
        vae = pv.VAE(64, 4, hidden=(64,), likelihood=Normal(64, 0.3), posterior=Point(4))
        pv.fit(vae.model, vae.guide, x, elbo=WAE(weight=weight), epochs=20, lr=3e-3, seed=0, progress=False)
        z = vae.encode(x).mean.detach()
        spread[weight] = float(mmd(z, torch.randn(500, 4)))
    assert spread[500.0] < 0.05 < spread[0.0]


def test_a_learned_prior_gets_gradients() -> None:
    vae = pv.VAE(6, 2, hidden=(8,), likelihood="normal", posterior=Point(2), prior=pv.priors.FlowPrior(2, num_flows=1))
    WAE().loss_and_grads(vae.model, vae.guide, torch.randn(8, 6))
    assert [n for n, p in vae.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_what_is_refused() -> None:
    x = torch.rand(5, 64)
    ae = pv.Autoencoder(64, 3, hidden=(8,), likelihood="normal")
    with pytest.raises(ValueError, match="the flat prior is improper"):
        WAE().loss(ae.model, ae.guide, x)
    discrete = Discrete()
    with pytest.raises(ValueError, match=r"site 'c' is drawn from Categorical.*'trace'"):
        WAE().loss(discrete.model, discrete.guide, discrete.simulate(3))
    with pytest.raises(ValueError, match=r"take values from -?\d.* and Sparse needs activations in \[0, 1\]"):
        Sparse().loss(ae.model, ae.guide, 100 * x)
    for bad in ({"alpha": 1.5}, {"alpha": 0.0, "weight": 0.5}, {"length": 0.0}, {"kernel": "x"}):
        with pytest.raises(ValueError, match=r"expected alpha <= 1|length must be|kernel must be"):
            InfoVAE(**bad)
    wrong: list[dict[str, Any]] = [{"rate": 0.0}, {"weight": -1.0}]
    for options in wrong:
        with pytest.raises(ValueError, match="must be"):
            Sparse(**options)


# Sparsity


def sigmoid_code(size: int = 32) -> pv.Autoencoder:
    return pv.Autoencoder(64, size, hidden=(32,), likelihood=Normal(64, 0.3), code=nn.Sigmoid())


def test_the_sparsity_penalty_is_a_kl_of_bernoullis() -> None:
    ae, x = sigmoid_code(), torch.rand(7, 64)
    plain = pv.elbo.make("mean_field").loss(ae.model, ae.guide, x)
    rate = ae.code_of(x).mean(0)
    kl = torch.distributions.kl_divergence(dist.Bernoulli(torch.tensor(0.1)), dist.Bernoulli(rate)).sum()
    for particles in (1, 3):
        found = Sparse(particles, rate=0.1, weight=2.0).loss(ae.model, ae.guide, x)
        torch.testing.assert_close(found, plain + 7 * 2 * kl.detach())


def test_training_holds_the_rate() -> None:
    x = pv.data.load("digits", flatten=True).train.x[:500]
    ae = sigmoid_code()
    pv.fit(ae.model, ae.guide, x, elbo=Sparse(rate=0.1, weight=5.0), epochs=25, lr=5e-3, seed=0, progress=False)
    rates = ae.code_of(x).detach().mean(0)
    assert float((rates - 0.1).abs().mean()) < 0.04


def test_two_latents_of_a_chain_train() -> None:
    pair = TopDownChain()
    assert pv.SVI(pair.model, pair.guide, loss=InfoVAE(3, alpha=0.5, weight=5.0)).step(pair.simulate(6)).isfinite()
