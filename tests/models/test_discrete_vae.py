"""The VAE with discrete latents: its bound by enumeration, and every estimator that trains it."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

import pyro_vae as pv
from pyro_vae.models import DiscreteVAE
from pyro_vae.pair.particles import particles_agree

SHAPES: dict[str, tuple[Any, Any]] = {
    "one": ((4,), "categorical"),
    "several": ((2, 3), "categorical"),
    "bits": (4, "bernoulli"),
    "array of bits": ((2, 2), "bernoulli"),
}
TRAINS = [
    *itertools.product(SHAPES, ["trace", "gumbel", "reinforce", "vimco", "rebar", "straight-through"]),
    ("one", "enum"),
    ("bits", "disarm"),
]


def small(kind: str) -> DiscreteVAE:
    torch.manual_seed(0)
    shape, latents = SHAPES[kind]
    vae = DiscreteVAE(5, shape, latents, hidden=(8,)).double()
    for logits in vae.prior.parameters():  # not uniform, so that the prior counts
        torch.nn.init.normal_(logits)
    return vae


def states(vae: DiscreteVAE) -> Tensor:
    """Every value of z, `(S, 1, *shape)`."""
    size = vae.prior.event_shape
    if vae.prior.latents == "bernoulli":
        found = torch.tensor(list(itertools.product((0.0, 1.0), repeat=size.numel())))
    else:
        one_hot = torch.eye(size[-1])
        found = torch.stack([torch.stack(rows) for rows in itertools.product(one_hot, repeat=size[:-1].numel())])
    return found.reshape(-1, 1, *size).double()


@pytest.fixture
def x() -> Tensor:
    return (torch.rand(6, 5) < 0.5).double()


@pytest.mark.parametrize("kind", SHAPES)
def test_bound_and_likelihood_by_enumeration(kind: str, x: Tensor) -> None:
    vae, z = small(kind), states(small(kind))
    with torch.no_grad():
        log_joint = vae.prior().log_prob(z) + vae.decode(z).log_prob(x)
        log_q = vae.encode(x).log_prob(z)
    torch.testing.assert_close(log_q.logsumexp(0).exp(), torch.ones_like(x[:, 0]))
    exact = (log_q.exp() * (log_joint - log_q)).sum(0)
    found = pv.bound(vae.model, vae.guide, x, num_samples=400, seed=0)
    assert float((found.elbo - exact).mean()) == pytest.approx(0.0, abs=0.03)
    marginal = pv.log_marginal(vae.model, vae.guide, x, num_samples=3000, seed=0)
    assert bool(((marginal.log_prob - log_joint.logsumexp(0)).abs() < 5 * marginal.std_error).all())


def test_enumeration_is_exact_for_one_variable(x: Tensor) -> None:
    vae, z = small("one"), states(small("one"))
    log_q = vae.encode(x).log_prob(z)
    exact = (log_q.exp() * (vae.prior().log_prob(z) + vae.decode(z).log_prob(x) - log_q)).sum()
    loss = pv.elbo.make("enum").differentiable_loss(vae.model, vae.guide, x)
    torch.testing.assert_close(loss, -exact)
    parameters = list(vae.parameters())
    for found, expected in zip(
        torch.autograd.grad(loss, parameters), torch.autograd.grad(-exact, parameters), strict=True
    ):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("kind", "elbo"), TRAINS)
def test_every_estimator_raises_the_bound(kind: str, elbo: str) -> None:
    vae = small(kind)
    x = torch.tensor([[1.0, 1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 1.0, 1.0, 0.0]]).double().repeat(10, 1)
    before = pv.bound(vae.model, vae.guide, x, num_samples=50, seed=0).mean
    objective = (
        pv.elbo.Relaxed(straight_through=True) if elbo == "straight-through" else pv.elbo.make(elbo, num_particles=2)
    )
    svi = pv.SVI(vae.model, vae.guide, lambda p: torch.optim.Adam(p, 0.02), objective)
    for _ in range(80):
        svi.step(x)
    assert pv.bound(vae.model, vae.guide, x, num_samples=50, seed=0).mean > before + 0.5


@pytest.mark.parametrize("kind", SHAPES)
def test_particles_draws_and_values(kind: str, x: Tensor) -> None:
    vae = small(kind)
    assert particles_agree(vae.model, vae.guide, (x,))
    assert vae.sample(3).shape == (3, 5)
    assert vae.reconstruct(x).shape == x.shape
    z = vae.encode(x).sample()
    assert set(z.unique().tolist()) <= {0.0, 1.0}
    if vae.prior.latents == "categorical":
        assert bool((z.sum(-1) == 1).all())


def test_images_and_networks() -> None:
    vae = DiscreteVAE((1, 8, 8), (3, 4), encoder=pv.nets.ConvEncoder, decoder=pv.nets.ConvDecoder)
    assert vae.reconstruct(torch.zeros(2, 1, 8, 8)).shape == (2, 1, 8, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latents": "poisson"}, "latents must be 'categorical' or 'bernoulli', got 'poisson'"),
        ({"latent_dim": 1}, r"needs two or more classes, and latent_dim=\(1,\)"),
        ({"latent_dim": (3, 0)}, "latent_dim must hold positive sizes"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiscreteVAE(5, **options)


def test_enumeration_over_several_is_not_claimed(x: Tensor) -> None:
    vae = small("several")
    with pytest.warns(UserWarning, match="found no sample sites configured for enumeration"):
        pv.elbo.make("enum").loss(vae.model, vae.guide, x)
