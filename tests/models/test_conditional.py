"""The conditional VAE: log p(x|c) by quadrature, what the condition changes, in-painting, and data without one."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor

import pyro_vae as pv
from pyro_vae.models import ConditionalVAE, Quadrants
from pyro_vae.pair.particles import particles_agree


def small(condition: Any = 3, **options: Any) -> ConditionalVAE:
    return ConditionalVAE(6, condition, **{"latent_dim": 2, "hidden": (8,), **options})


def binary(*shape: int) -> Tensor:
    return (torch.rand(*shape) < 0.5).float()


def condition_of(vae: ConditionalVAE, n: int) -> Tensor:
    return torch.arange(n) % vae.condition_shape[0] if vae.labels else torch.rand(n, *vae.condition_shape)


@pytest.mark.parametrize("condition", [3, (4,), (1, 3, 2)])
def test_contract(condition: Any) -> None:
    vae, x = small(condition), binary(5, 6)
    c = condition_of(vae, 5)
    pv.preflight(vae.model, vae.guide, x, c)
    assert particles_agree(vae.model, vae.guide, (x, c))
    pv.elbo.make("mean_field").loss_and_grads(vae.model, vae.guide, x, c)
    assert [n for n, p in vae.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert vae.sample(5, condition=c).shape == vae.reconstruct(x, condition=c).shape == (5, 6)
    assert set(vae.sample(5, condition=c, mean=False).unique().tolist()) <= {0.0, 1.0}
    assert vae.decode(torch.zeros(4, 5, 2), c).batch_shape == (4, 5)


@pytest.mark.parametrize("condition", [3, (4,)])
def test_log_marginal_is_conditional(condition: Any) -> None:
    vae = small(condition, latent_dim=1).double()
    x = binary(6, 6).double()
    c = condition_of(vae, 6) if vae.labels else condition_of(vae, 6).double()
    svi = pv.SVI(vae.model, vae.guide, lambda p: torch.optim.Adam(p, 0.01), pv.elbo.make("iwae", num_particles=10))
    for _ in range(30):
        svi.step(x, c)
    z = torch.linspace(-12, 12, 3001, dtype=torch.double).reshape(-1, 1, 1)
    with torch.no_grad():
        prior = vae.prior_family(vae.prior_net(vae._encode_condition(c, 6)))
        joint = prior.log_prob(z.expand(-1, 6, 1)) + vae.decode(z.expand(-1, 6, 1), c).log_prob(x)
    exact = joint.logsumexp(0) + math.log(24 / 3000)
    found = pv.log_marginal(vae.model, vae.guide, x, c, num_samples=5000, seed=0)
    assert ((found.log_prob - exact).abs() < 5 * found.std_error).all()
    assert (pv.bound(vae.model, vae.guide, x, c, num_samples=200, seed=0).elbo < exact).all()
    other = pv.log_marginal(vae.model, vae.guide, x, c.flip(0), num_samples=5000, seed=0)
    assert float((other.log_prob - found.log_prob).abs().max()) > 0.05


def test_training_learns_what_the_label_says() -> None:
    """Samples of a digit are nearest to the mean image of that digit; a true label gives a better likelihood."""
    data: Any = pv.data.load("digits", binarize="threshold", flatten=True, seed=0)
    x, y = data.train.x[:1000], data.train.y[:1000]
    torch.manual_seed(0)
    vae = ConditionalVAE(64, 10, latent_dim=4, hidden=(64,))
    pv.fit(vae.model, vae.guide, (x, y), epochs=20, lr=3e-3, seed=0, progress=False)
    means = torch.stack([x[y == k].mean(0) for k in range(10)])
    labels = torch.arange(10).repeat(20)
    nearest = (vae.sample(200, condition=labels, mean=True).unsqueeze(1) - means).square().sum(-1).argmin(1)
    assert float((nearest == labels).float().mean()) > 0.9
    test, truth = data.test.x[:200], data.test.y[:200]
    right = pv.bound(vae.model, vae.guide, test, truth, seed=0).mean
    assert right > pv.bound(vae.model, vae.guide, test, (truth + 1) % 10, seed=0).mean + 3


def test_quadrants() -> None:
    x = torch.arange(2 * 3 * 5 * 4.0).reshape(2, 3, 5, 4)
    for visible in (1, 2, 3):
        cut = Quadrants((3, 5, 4), visible)
        hidden, seen = cut.split(x)
        assert torch.equal(cut.join(hidden, seen), x)
        assert hidden.shape[1] + seen.shape[1] == 60
        assert seen.shape[1] == int(cut.seen.sum())
    assert Quadrants((1, 4, 4), 1).seen[0].tolist() == [[False] * 4] * 2 + [[True, True, False, False]] * 2
    assert not Quadrants((1, 4, 4), 3).seen[0, 2:, 2:].any()
    with pytest.raises(ValueError, match="visible must be 1, 2 or 3"):
        Quadrants((1, 4, 4), 4)
    with pytest.raises(ValueError, match=r"expected images of shape \(N, 3, 5, 4\), got \(2, 3, 5, 5\)"):
        Quadrants((3, 5, 4)).split(torch.zeros(2, 3, 5, 5))


def test_painting_in_beats_the_mean_image() -> None:
    data = pv.data.load("digits", binarize="threshold", seed=0)
    cut = Quadrants((1, 8, 8), visible=2)
    (hidden, seen), (test_hidden, test_seen) = cut.split(data.train.x[:1000]), cut.split(data.test.x)
    torch.manual_seed(0)
    vae = ConditionalVAE(32, (32,), latent_dim=4, hidden=(64,))
    pv.fit(vae.model, vae.guide, (hidden, seen), epochs=20, lr=3e-3, seed=0, progress=False)
    mean = hidden.mean(0).clamp(0.01, 0.99)
    unconditional = torch.distributions.Bernoulli(mean).log_prob(test_hidden).sum(-1).mean()
    found = pv.bound(vae.model, vae.guide, test_hidden, test_seen, seed=0).mean
    assert found > float(unconditional) + 1.5
    assert cut.join(vae.sample(len(test_seen), condition=test_seen), test_seen).shape == data.test.x.shape


@pytest.mark.parametrize("program", ["model", "guide"])
def test_data_without_a_condition_are_refused(program: str) -> None:
    x = binary(5, 6)
    run = getattr(small(), program)
    with pytest.raises(ValueError, match=r"expected a condition as second argument, labels \(5,\), got none"):
        run(x)
    with pytest.raises(ValueError, match=r"expected as condition labels \(5,\), got one of shape \(4,\)"):
        run(x, torch.zeros(4))
    for validates in (True, False):
        with (
            pyro.validation_enabled(validates),
            pytest.raises(ValueError, match="expected labels from 0 to 2, got -1 to 2"),
        ):
            run(x, torch.tensor([0, 1, 2, -1, 0]))
    with pytest.raises(ValueError, match=r"expected as condition a tensor \(5, 4\), got one of shape \(5,\)"):
        getattr(small((4,)), program)(x, torch.zeros(5))


def test_fit_says_so_too() -> None:
    vae = small()
    with pytest.raises(ValueError, match="expected a condition as second argument"):
        pv.fit(vae.model, vae.guide, binary(20, 6), epochs=1, batch_size=10, progress=False)
    with pytest.raises(ValueError, match="expected a condition as second argument"):
        vae.sample(3)
