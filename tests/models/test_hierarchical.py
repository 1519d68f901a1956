"""Several layers of latents: log p(x) by quadrature and by importance sampling from both guides, depth, errors."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

import pyro_vae as pv
from pyro_vae.models import HierarchicalVAE, LadderVAE
from pyro_vae.pair.particles import particles_agree

KINDS: list[type[HierarchicalVAE]] = [HierarchicalVAE, LadderVAE]
DEEP: dict[str, Any] = {"latent_dims": (4, 3, 2), "hidden": ((12,), (8, 6), (5,))}


def binary(n: int, size: int = 6) -> Tensor:
    return (torch.rand(n, size) < 0.5).float()


def quadrature(vae: HierarchicalVAE, x: Tensor) -> Tensor:
    """log p(x) with two latents of one element each, `(N,)`."""
    z = torch.linspace(-7, 7, 281, dtype=x.dtype).unsqueeze(-1)
    with torch.no_grad():
        top = vae.prior().log_prob(z)
        middle = vae.layer_prior(0, z.unsqueeze(1)).log_prob(z)  # (z2, z1)
        given = torch.stack([vae.decode(z).log_prob(row) for row in x], -1)  # (z1, N)
    joint = top[:, None, None] + middle[:, :, None] + given
    return joint.logsumexp((0, 1)) + 2 * math.log(float(z[1] - z[0]))


@pytest.mark.parametrize("kind", KINDS)
def test_bounds_and_log_marginal_against_quadrature(kind: type[HierarchicalVAE]) -> None:
    vae = kind(4, latent_dims=(1, 1), hidden=((8,), (6,))).double()
    x = binary(6, 4).double()
    # an importance-weighted bound makes a guide wide enough for importance sampling
    svi = pv.SVI(vae.model, vae.guide, lambda p: torch.optim.Adam(p, 0.01), pv.elbo.make("iwae", num_particles=10))
    for _ in range(60):
        svi.step(x)
    exact = quadrature(vae, x)
    found = pv.log_marginal(vae.model, vae.guide, x, num_samples=5000, seed=0)
    assert float(found.std_error.max()) < 0.1
    assert ((found.log_prob - exact).abs() < 5 * found.std_error).all()
    elbo = pv.bound(vae.model, vae.guide, x, num_samples=200, seed=0)
    assert (elbo.elbo < exact).all()


@pytest.mark.parametrize("kind", KINDS)
def test_two_guides_of_one_model_agree_on_its_likelihood(kind: type[HierarchicalVAE]) -> None:
    """Each guide's importance sampling against annealed importance sampling, which owes nothing to a guide."""
    vae = kind(6, latent_dims=(2, 1), hidden=((8,), (6,)))
    x = binary(4)
    found = pv.log_marginal(vae.model, vae.guide, x, num_samples=20_000, seed=0)
    prior = pv.log_marginal(vae.model, None, x, num_samples=20_000, method="prior", seed=1)
    error = (found.std_error**2 + prior.std_error**2).sqrt()
    assert float(((found.log_prob - prior.log_prob).abs() / error).max()) < 4.5


@pytest.mark.parametrize("kind", KINDS)
def test_any_depth(kind: type[HierarchicalVAE]) -> None:
    vae, x = kind(6, **DEEP), binary(5)
    assert particles_agree(vae.model, vae.guide, (x,))
    elbo = pv.bound(vae.model, vae.guide, x)
    assert set(elbo.kl_sites) == {"z1", "z2", "z3"}
    pv.elbo.make("trace", num_particles=2).loss_and_grads(vae.model, vae.guide, x)
    assert [n for n, p in vae.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert vae.sample(4).shape == (4, 6)
    assert set(vae.sample(9, mean=False).unique().tolist()) <= {0.0, 1.0}
    assert vae.reconstruct(x).shape == (5, 6)
    assert vae.encode(x).event_shape == (4,)


def test_one_layer_is_a_vae() -> None:
    """With the same weights the bound is that of a VAE."""
    x = binary(7)
    deep = HierarchicalVAE(6, latent_dims=(3,), hidden=((8,),))
    vae = pv.VAE(6, 3, hidden=(8,), activation="tanh")
    vae.encoder.load_state_dict(deep.encoder.state_dict())
    vae.decoder.load_state_dict(deep.decoder.state_dict())
    a, b = (pv.bound(pair.model, pair.guide, x, seed=0).elbo for pair in (deep, vae))
    torch.testing.assert_close(a, b)


def test_the_ladder_has_all_kls_in_closed_form() -> None:
    """So `preflight` has nothing to say of the order, where it warns of the guide from below."""
    x = binary(5)
    ladder = LadderVAE(6, **DEEP)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pv.preflight(ladder.model, ladder.guide, x, elbo="mean_field")
    below = HierarchicalVAE(6, **DEEP)
    with pytest.warns(UserWarning, match="is sampled instead of integrated"):
        pv.preflight(below.model, below.guide, x, elbo="mean_field")


def test_the_ladders_posterior_is_a_product_of_normals() -> None:
    """Against the product on a grid; with features that say nothing it is the model's conditional."""
    ladder: Any = LadderVAE(3, latent_dims=(1, 1), hidden=((4,), (4,))).double()
    evidence, above = torch.tensor([[0.8, 0.3]]).double(), torch.tensor([[0.5]]).double()
    q = ladder._posterior(0, evidence, above)
    z = torch.linspace(-8, 8, 4001, dtype=torch.double).unsqueeze(-1)
    with torch.no_grad():
        product = ladder.normals[0](evidence).log_prob(z) + ladder.layer_prior(0, above).log_prob(z)
        product = product - product.logsumexp(0) - (z[1] - z[0]).log()
        torch.testing.assert_close(q.log_prob(z), product, atol=1e-6, rtol=1e-6)
        vague = ladder._posterior(0, torch.tensor([[0.0, 1e6]]).double(), above)
        torch.testing.assert_close(vague.mean, ladder.layer_prior(0, above).mean, atol=1e-4, rtol=1e-4)


def test_the_ladder_trains() -> None:
    data = pv.data.load("digits", binarize="threshold", flatten=True)
    torch.manual_seed(0)
    ladder = LadderVAE(64, latent_dims=(16, 8), hidden=((64,), (32,)))
    before = pv.bound(ladder.model, ladder.guide, data.test.x, seed=0).mean
    pv.fit(ladder.model, ladder.guide, data.train.x, epochs=12, lr=3e-3, seed=0, progress=False)
    after = pv.bound(ladder.model, ladder.guide, data.test.x, seed=0)
    assert after.mean > before + 8
    assert float(after.kl.mean()) > 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_bad_arguments(kind: type[HierarchicalVAE]) -> None:
    with pytest.raises(ValueError, match="expected hidden widths for each of the 2 layers of latents"):
        kind(6, latent_dims=(3, 2), hidden=((8,),))
    with pytest.raises(ValueError, match="the prior is over events of shape"):
        kind(6, latent_dims=(3, 2), hidden=((8,), (4,)), prior=pv.priors.StandardNormal(3))
    with pytest.raises(ValueError, match="VampPrior cannot be the prior here"):
        kind(6, latent_dims=(3, 2), hidden=((8,), (4,)), prior="vamp")
    with pytest.raises(ValueError, match="latent_dims must hold positive sizes"):
        kind(6, latent_dims=(3, 0), hidden=((8,), (4,)))
    with pytest.raises(ValueError, match=r"expected data of shape .* got \(3, 5\)"):
        kind(6, latent_dims=(3, 2), hidden=((8,), (4,))).guide(torch.zeros(3, 5))


def test_a_ladder_needs_hidden_layers() -> None:
    with pytest.raises(ValueError, match="hidden must hold positive sizes"):
        LadderVAE(6, latent_dims=(3, 2), hidden=((8,), ()))
