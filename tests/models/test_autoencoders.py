"""Autoencoders as pairs: the loss is the reconstruction's, codes are sparse where asked, what they lack is said."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss

import pyro_vae as pv
from pyro_vae.conditionals import Normal, Point, TopK
from pyro_vae.pair.particles import particles_agree
from pyro_vae.priors import FlatPrior, LaplacePrior


@pytest.fixture(scope="module")
def digits() -> Tensor:
    return pv.data.load("digits", flatten=True).train.head(300)


def dense(**options: Any) -> pv.Autoencoder:
    return pv.Autoencoder(64, **{"latent_dim": 8, "hidden": (32,), "likelihood": Normal(64, 1.0), **options})


def conv(likelihood: str = "bernoulli") -> pv.Autoencoder:
    def encoder(in_shape: Any, out_shape: Any) -> nn.Module:
        return pv.nets.ConvEncoder(in_shape, out_shape, channels=(4, 8), hidden=16)

    def decoder(in_shape: Any, out_shape: Any) -> nn.Module:
        return pv.nets.ConvDecoder(in_shape, out_shape, channels=(8, 4), hidden=16)

    return pv.Autoencoder((1, 8, 8), 4, likelihood=likelihood, encoder=encoder, decoder=decoder)


@pytest.mark.parametrize("elbo", ["mean_field", "trace"])
def test_the_loss_is_half_the_squared_error(elbo: str, digits: Tensor) -> None:
    """In value, and in every gradient, against plain PyTorch."""
    ae = dense()
    loss = pv.elbo.make(elbo).loss_and_grads(ae.model, ae.guide, digits)
    found = {name: p.grad.clone() for name, p in ae.named_parameters() if p.grad is not None}
    ae.zero_grad()
    plain = mse_loss(ae.decoder(ae.encoder(digits)), digits, reduction="sum") / 2
    plain.backward()
    torch.testing.assert_close(loss, plain.detach() + digits.numel() * math.log(2 * math.pi) / 2)
    assert set(found) == {name for name, _ in ae.named_parameters()}
    for name, p in ae.named_parameters():
        torch.testing.assert_close(found[name], p.grad)


def test_the_loss_of_a_convolutional_one_is_the_cross_entropy(digits: Tensor) -> None:
    ae, x = conv(), (digits.reshape(-1, 1, 8, 8) > 0.5).float()
    plain = binary_cross_entropy_with_logits(ae.decoder(ae.encoder(x)), x, reduction="none").sum((1, 2, 3))
    torch.testing.assert_close(-pv.bound(ae.model, ae.guide, x).elbo, plain.detach())
    assert particles_agree(ae.model, ae.guide, (x,))
    before = pv.bound(ae.model, ae.guide, x).mean
    pv.fit(ae.model, ae.guide, x, epochs=10, lr=1e-2, seed=0, progress=False)
    assert pv.bound(ae.model, ae.guide, x).mean > before + 5


def test_it_is_the_limit_of_a_vae_without_a_kl(digits: Tensor) -> None:
    """The loss of the same networks with weight 0 on the KL, as the posterior's scale goes to zero."""
    ae = dense()
    vae = pv.VAE(64, latent_dim=8, hidden=(32,), likelihood=Normal(64, 1.0), decoder=ae.decoder)
    encoder: Any = vae.encoder
    free = pv.elbo.WeightedKL(pv.elbo.make("mean_field", num_particles=20), 0.0)
    target, off = pv.elbo.make("mean_field").loss(ae.model, ae.guide, digits), []
    for log_scale in (-1.0, -3.0, -7.0, -1e6):
        own: Any = ae.encoder
        with torch.no_grad():
            encoder.body.load_state_dict(own.body.state_dict())
            encoder.final.weight.copy_(torch.cat([own.final.weight, torch.zeros(8, 32)]))
            encoder.final.bias.copy_(torch.cat([own.final.bias, torch.full((8,), log_scale)]))
        off.append(float((free.loss(vae.model, vae.guide, digits) - target) / len(digits)))
    assert off[0] > 4 * off[1] > 0
    assert abs(off[3]) < 1e-3


def test_an_l1_penalty_is_a_laplace_prior(digits: Tensor) -> None:
    ae = dense(latent_dim=128, prior=LaplacePrior(128, scale=0.25))
    result = pv.bound(ae.model, ae.guide, digits)
    penalty = ae.code_of(digits).abs().sum(-1) / 0.25 + 128 * math.log(0.5)
    torch.testing.assert_close(result.kl, penalty.detach())


def near_zero(ae: pv.Autoencoder, x: Tensor) -> float:
    return float((ae.code_of(x).abs() < 0.05).float().mean())


def test_l1_makes_codes_sparse(digits: Tensor) -> None:
    sparse, plain = dense(latent_dim=128, prior=LaplacePrior(128, scale=0.3)), dense(latent_dim=128)
    for ae in (sparse, plain):
        pv.fit(ae.model, ae.guide, digits, epochs=40, lr=3e-3, seed=0, progress=False, preflight=False)
    assert near_zero(sparse, digits) > near_zero(plain, digits) + 0.3


def test_top_k_keeps_the_k_largest(digits: Tensor) -> None:
    ae = dense(latent_dim=128, code=TopK(5))
    code, raw = ae.code_of(digits), ae.encoder(digits)
    assert ((code != 0).sum(-1) == 5).all()
    smallest = torch.where(code != 0, code, math.inf).amin(-1)
    assert (torch.where(code != 0, -math.inf, raw).amax(-1) <= smallest).all()
    before = pv.bound(ae.model, ae.guide, digits).mean
    pv.fit(ae.model, ae.guide, digits, epochs=10, lr=3e-3, seed=0, progress=False)
    assert pv.bound(ae.model, ae.guide, digits).mean > before + 1
    with pytest.raises(ValueError, match=r"TopK\(5\) got a code of 3 elements"):
        TopK(5)(torch.zeros(2, 3))


def test_a_point_mass_has_no_importance_weights(digits: Tensor) -> None:
    ae, vae = dense(), pv.VAE(64, 8, hidden=(32,), likelihood=Normal(64, 1.0), posterior=Point(8))
    for pair in (ae, vae):
        with pytest.raises(ValueError, match="a point mass at the continuous site 'z', which has no density"):
            pv.log_marginal(pair.model, pair.guide, digits[:3], num_samples=5)
    with pytest.raises(ValueError, match=r"point mass at the continuous site .* no density"):
        pv.log_marginal(vae.model, vae.guide, digits[:3], method=pv.Importance(defensive=0.5), num_samples=10)
    found = pv.log_marginal(vae.model, vae.guide, digits[:3], num_samples=10, method="prior")
    assert found.log_prob.isfinite().all()


def test_a_point_mass_at_a_discrete_site_is_legal() -> None:
    """With all of the posterior at one state the weight is the joint probability of this state."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(torch.ones(4) / 4))
            pyro.sample("x", dist.Normal(k.float(), 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Delta(x.round().clamp(0, 3)))

    x = torch.tensor([0.2, 2.9])
    expected = dist.Normal(x.round(), 1.0).log_prob(x) - math.log(4)
    torch.testing.assert_close(pv.log_marginal(model, guide, x, num_samples=3).log_prob, expected)


def test_what_is_flat_cannot_be_drawn_from(digits: Tensor) -> None:
    ae = dense()
    for ask in (lambda: ae.sample(3), lambda: pv.sample(ae.model, digits[:3]), lambda: FlatPrior(3)().sample()):
        with pytest.raises(ValueError, match="the flat prior is improper"):
            ask()
    for method in ("prior", "ais"):
        with pytest.raises(ValueError, match="the flat prior is improper"):
            pv.log_marginal(ae.model, None, digits[:3], method=method)


def test_reconstruct(digits: Tensor) -> None:
    ae = dense()
    torch.testing.assert_close(ae.reconstruct(digits), ae.decoder(ae.encoder(digits)).detach())
    torch.testing.assert_close(ae.reconstruct(digits), pv.reconstruct(ae.model, ae.guide, digits))
