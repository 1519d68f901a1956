"""Auxiliary and skip deep generative models: likelihoods by quadrature, the sum over classes written out, classes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.models import AuxiliaryDGM
from pyro_vae.pair.particles import particles_agree

X = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0], [1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 0.0]]).double()
Y = torch.tensor([2, -1, 0, -1])
both = pytest.mark.parametrize("skip", [False, True])


def small(**options: Any) -> Any:
    torch.manual_seed(0)
    chosen = {"latent_dim": 1, "auxiliary_dim": 1, "hidden": (5, 6), **options}
    return AuxiliaryDGM(4, num_classes=3, **chosen).double()


def spread(vae: AuxiliaryDGM) -> None:
    """Widen the guide's normals, so that importance sampling works."""
    nets: Any = (vae.encoder.final, vae.auxiliary_encoder)
    with torch.no_grad():
        for net in nets:
            net.final.weight.mul_(0.1)
            net.final.bias[1:].fill_(0.3)


def on_grid(vae: Any) -> Tensor:
    """log p(x, y) of every class by quadrature over z, and over a where the data depend on it, `(N, C)`."""
    line, one_hot = torch.linspace(-8, 8, 161).double(), torch.eye(3).double()
    step = float(line[1] - line[0])
    with torch.no_grad():
        if vae.skip:
            z, a = (part.reshape(-1, 1, 1, 1) for part in torch.cartesian_prod(line, line).T)
            log_p = vae.latent_prior(one_hot).log_prob(z) + vae.auxiliary_prior(z, one_hot).log_prob(a)
            given = vae.likelihood(vae.features(z, one_hot, a)).log_prob(X.unsqueeze(1))
            return (log_p + given).logsumexp(0) + math.log(step**2 / 3)
        z = line.reshape(-1, 1, 1, 1)
        given = vae.likelihood(vae.features(z, one_hot)).log_prob(X.unsqueeze(1))
        return (vae.latent_prior(one_hot).log_prob(z) + given).logsumexp(0) + math.log(step / 3)


@both
def test_likelihood_with_and_without_labels(skip: bool) -> None:
    """A labeled datum's number is log p(x, y), another's log p(x); without `skip` the auxiliary latent changes none."""
    vae = small(skip=skip)
    spread(vae)
    joint = on_grid(vae)
    exact = torch.where(Y >= 0, joint.gather(1, Y.clamp_min(0).unsqueeze(1)).squeeze(1), joint.logsumexp(1))
    found = pv.log_marginal(vae.model, vae.guide, X, Y, num_samples=5000, seed=0)
    assert float(found.std_error.max()) < 0.1
    assert bool(((found.log_prob - exact).abs() < 5 * found.std_error).all())
    elbo = pv.bound(vae.model, vae.guide, X, Y, num_samples=500, seed=0).elbo
    assert bool((elbo < exact).all())
    assert particles_agree(vae.model, vae.guide, (X, Y))


@both
def test_enumeration_sums_over_the_classes(skip: bool) -> None:
    """The ELBO written out, with the same draws; for the labeled, the label's term; and the classification loss."""
    vae = small(skip=skip)
    objective = pv.elbo.SemiSupervised(weight=3.0)
    objective.loss(vae.model, vae.guide, X, Y)  # finds the plates, with draws of its own
    torch.manual_seed(1)
    loss = objective.differentiable_loss(vae.model, vae.guide, X, Y)
    torch.manual_seed(1)
    q_a = vae.encode_auxiliary(X)
    a, one_hot = q_a.rsample(), torch.eye(3).double().unsqueeze(1)  # (C, 1, C)
    q_z = vae.posterior(vae.encoder(X, a, one_hot))
    z = q_z.rsample()  # (C, N, D)
    if skip:
        per_class = vae.likelihood(vae.features(z, one_hot, a)).log_prob(X)
        per_class = per_class + vae.auxiliary_prior(z, one_hot).log_prob(a)
    else:
        per_class = vae.likelihood(vae.features(z, one_hot)).log_prob(X)
        per_class = per_class + vae.auxiliary_prior(z, one_hot, X).log_prob(a)
    per_class = per_class + vae.latent_prior(one_hot).log_prob(z) - q_z.log_prob(z) - math.log(3)
    q_y = vae.classifier(X, a).softmax(-1).T  # (C, N)
    unlabeled = (q_y * (per_class - q_y.log())).sum(0)
    labeled = per_class.gather(0, Y.clamp_min(0).unsqueeze(0)).squeeze(0)
    bound = torch.where(Y >= 0, labeled, unlabeled) - q_a.log_prob(a)
    again = vae.encode_auxiliary(X).rsample()  # the guide's second run, with the labels hidden
    log_q = vae.classifier(X, again).log_softmax(-1)
    expected = -bound.sum() - 3.0 * (log_q[0, 2] + log_q[2, 0])
    torch.testing.assert_close(loss, expected)
    weights = list(vae.parameters())
    for found, wanted in zip(torch.autograd.grad(loss, weights), torch.autograd.grad(expected, weights), strict=True):
        torch.testing.assert_close(found, wanted)


@both
def test_classes_images_and_networks_of_ones_own(skip: bool) -> None:
    vae = small(skip=skip, classifier=lambda shape, out: nn.Linear(shape[0], out[0]))
    torch.manual_seed(0)
    many = vae.encode_auxiliary(X).sample((4000,))
    exact = vae.classifier(X, many).softmax(-1).mean(0)
    torch.testing.assert_close(vae.classify(X, num_samples=4000).probs, exact, atol=0.02, rtol=0)
    assert vae.sample(2, torch.tensor([0, 2])).shape == (2, 4)
    assert vae.sample(3, mean=True).shape == (3, 4)
    assert vae.reconstruct(X).shape == vae.reconstruct(X, Y.clamp_min(0)).shape == (4, 4)
    assert vae.encode(X).event_shape == (1,)
    assert vae.decode(torch.zeros(5, 1).double(), torch.tensor([0, 1, 2, 0, 1])).batch_shape == (5,)
    with pytest.raises(ValueError, match="num_classes must be at least 2, got 1"):
        AuxiliaryDGM(4, num_classes=1)
    with pytest.raises(ValueError, match="expected labels from 0 to 2"):
        vae.guide(X, torch.tensor([3, -1, 0, 1]))
