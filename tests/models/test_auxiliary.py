"""The auxiliary VAE: its log p(x) is that of its decoder, and it trains like any pair."""

from __future__ import annotations

import copy
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyro_vae as pv
from pyro_vae.models import AuxiliaryVAE
from pyro_vae.nets import MLP
from pyro_vae.pair.particles import particles_agree


@pytest.fixture(scope="module")
def digits() -> Tensor:
    return pv.data.load("digits", binarize="threshold", flatten=True).train.head(16)


def quadrature(vae: Any, x: Tensor) -> Tensor:
    """log p(x) of a VAE with a latent of one element, `(N,)`."""
    z = torch.linspace(-8, 8, 2001, dtype=x.dtype).reshape(-1, 1, 1)
    with torch.no_grad():
        log_joint = vae.prior().log_prob(z) + vae.decode(z).log_prob(x)
    return log_joint.logsumexp(0) + (z[1] - z[0]).log().squeeze()


def test_log_prob_is_that_of_the_decoder(digits: Tensor) -> None:
    """By quadrature over z, without a; and by importance sampling of both."""
    vae = AuxiliaryVAE(64, latent_dim=1, auxiliary_dim=1, hidden=(16,)).double()
    x = digits[:6].double()
    # an importance-weighted bound makes a guide wide enough for importance sampling
    svi = pv.SVI(vae.model, vae.guide, lambda p: torch.optim.Adam(p, 0.01), pv.elbo.make("iwae", num_particles=20))
    for _ in range(100):
        svi.step(x)
    found = pv.log_marginal(vae.model, vae.guide, x, num_samples=10_000, seed=0)
    assert ((found.log_prob - quadrature(vae, x)).abs() < 5 * found.std_error).all()
    assert float(found.std_error.max()) < 0.05
    elbo = pv.bound(vae.model, vae.guide, x, num_samples=500, seed=0)
    assert (elbo.elbo < quadrature(vae, x)).all()


@pytest.mark.parametrize("elbo", ["mean_field", "trace", "stl", "iwae", "dreg"])
@pytest.mark.parametrize("posterior", ["diagonal_normal", "iaf"])
def test_trains_with_every_kind_of_estimator(elbo: str, posterior: str, digits: Tensor) -> None:
    vae = AuxiliaryVAE(64, latent_dim=3, auxiliary_dim=2, hidden=(16, 8), posterior=posterior)
    assert particles_agree(vae.model, vae.guide, (digits,))
    with pytest.warns(UserWarning, match="the KL of \\['a'\\] is sampled"):
        pv.preflight(vae.model, vae.guide, digits)
    before = {name: p.detach().clone() for name, p in vae.named_parameters()}
    assert pv.SVI(vae.model, vae.guide, loss=pv.elbo.make(elbo, num_particles=2)).step(digits).isfinite()
    assert not [name for name, p in vae.named_parameters() if torch.equal(p, before[name])]


def test_the_auxiliary_latent_makes_the_posterior_richer() -> None:
    """A posterior of two correlated elements: diagonal normals of which a shifts the mean can follow it."""
    weight = torch.tensor([[1.0, 1.0], [0.5, -0.2]])
    decoder = MLP(2, (), 2).requires_grad_(False)
    decoder.final.weight.copy_(weight)
    decoder.final.bias.zero_()
    likelihood = pv.conditionals.Normal(2, 0.5)
    vae = AuxiliaryVAE(2, 2, auxiliary_dim=1, hidden=(16,), likelihood=likelihood, decoder=decoder).eval()
    x = torch.tensor([[1.0, -0.5]]).expand(128, 2)
    optimizer = torch.optim.Adam([p for p in vae.parameters() if p.requires_grad], 0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 400)
    svi = pv.SVI(vae.model, vae.guide, optimizer, pv.elbo.make("trace"))
    for _ in range(400):
        svi.step(x)
        schedule.step()

    precision = torch.eye(2) + weight.T @ weight / 0.25
    best_diagonal = float((precision.diagonal().log().sum() - torch.logdet(precision)) / 2)
    log_prob = dist.MultivariateNormal(torch.zeros(2), weight @ weight.T + torch.eye(2) / 4).log_prob(x[0])
    elbo = pv.bound(vae.model, vae.guide, x, num_samples=300, seed=0).elbo
    gap = float(log_prob - elbo.mean())
    assert best_diagonal > 0.25
    assert -0.01 < gap < best_diagonal - 0.1


def test_encode_reconstruct_and_copies(digits: Tensor) -> None:
    vae = AuxiliaryVAE((1, 8, 8), latent_dim=3, auxiliary_dim=2, hidden=(16,))
    x = digits.reshape(-1, 1, 8, 8)
    assert vae.encode(x).batch_shape == (16,)
    assert vae.reconstruct(x).shape == x.shape
    assert vae.sample(2).shape == (2, 1, 8, 8)
    assert copy.deepcopy(vae).name != vae.name
    with pytest.raises(ValueError, match="hidden must hold positive sizes"):
        AuxiliaryVAE(64, hidden=())
    with pytest.raises(ValueError, match=r"expected data of shape .* got \(3, 5\)"):
        vae.guide(torch.zeros(3, 5))
