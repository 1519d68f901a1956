"""The Gaussian mixture: its exact posterior, and EM and SVI against scikit-learn on the same data."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import pytest
import torch
from sklearn.mixture import GaussianMixture as SklearnMixture
from torch import Tensor

import pyro_vae as pv
from pyro_vae.models import GaussianMixture

KINDS = {"full": "full", "diagonal": "diag"}


def groups(n: int = 300) -> Tensor:
    """Three groups of correlated points in the plane, that overlap a little."""
    torch.manual_seed(1)
    loc = torch.tensor([[0.0, 0.0], [4.0, 1.0], [0.0, 5.0]])
    tril = torch.tensor([[[1.0, 0.0], [0.8, 0.6]], [[0.5, 0.0], [-0.3, 1.0]], [[1.5, 0.0], [0.0, 0.4]]])
    c = torch.randint(3, (n,))
    return (loc[c] + (tril[c] @ torch.randn(n, 2, 1)).squeeze(-1)).double()


def reference(x: Tensor, covariance: str) -> float:
    """scikit-learn's mean log-likelihood, the best of ten starts."""
    found = SklearnMixture(3, covariance_type=KINDS[covariance], n_init=10, tol=1e-8, max_iter=1000, random_state=0)
    return float(found.fit(x.numpy()).score(x.numpy()))


@pytest.mark.parametrize("covariance", KINDS)
def test_em_reaches_scikit_learns_likelihood(covariance: Any) -> None:
    x = groups()
    mixture = GaussianMixture(2, 3, covariance).double().start_at(x, seed=0)
    course = [float(mixture.em_step(x)) for _ in range(200)]
    assert all(after > before - 1e-9 for before, after in itertools.pairwise(course))
    assert course[-1] == pytest.approx(reference(x, covariance), abs=1e-5)


@pytest.mark.parametrize("covariance", KINDS)
def test_svi_reaches_scikit_learns_likelihood(covariance: Any) -> None:
    x = groups()
    mixture = GaussianMixture(2, 3, covariance).double().start_at(x, seed=0)
    svi = pv.SVI(mixture.model, mixture.guide, lambda p: torch.optim.Adam(p, 0.05), pv.elbo.make("enum"))
    for step in range(150):
        svi.step(x)
        if svi.optimizer is not None:
            svi.optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / 150)
    assert float(mixture.log_prob(x).detach().mean()) == pytest.approx(reference(x, covariance), abs=1e-3)


@pytest.mark.parametrize("covariance", KINDS)
def test_every_number_is_the_likelihood(covariance: Any) -> None:
    """By a sum over components written out; the loss and its gradient, the bound, importance weights."""
    x = groups(40)
    mixture = GaussianMixture(2, 3, covariance).double().start_at(x, seed=0)
    parts = []
    for c in range(3):
        scale = mixture.min_scale + mixture.log_scale[c].exp()
        tril = torch.diag(scale)
        if covariance == "full":
            tril[1, 0] = mixture.lower[c, 0]
        apart = torch.linalg.solve(tril, (x - mixture.loc[c]).T)
        log_normal = -0.5 * apart.square().sum(0) - scale.log().sum() - math.log(2 * math.pi)
        parts.append(mixture.logits.log_softmax(0)[c] + log_normal)
    log_prob = torch.stack(parts).logsumexp(0)
    torch.testing.assert_close(mixture.log_prob(x), log_prob)

    loss = pv.elbo.make("enum").differentiable_loss(mixture.model, mixture.guide, x)
    torch.testing.assert_close(loss, -log_prob.sum())
    parameters = list(mixture.parameters())
    for found, expected in zip(
        torch.autograd.grad(loss, parameters), torch.autograd.grad(-log_prob.sum(), parameters), strict=True
    ):
        torch.testing.assert_close(found, expected)

    marginal = pv.log_marginal(mixture.model, mixture.guide, x, num_samples=3)
    torch.testing.assert_close(marginal.log_prob, log_prob.detach())
    elbo = pv.bound(mixture.model, mixture.guide, x, num_samples=400, seed=0).elbo
    assert float((elbo - log_prob.detach()).mean()) == pytest.approx(0.0, abs=0.05)


def test_draws_have_the_mixtures_moments() -> None:
    x = groups()
    mixture = GaussianMixture(2, 3).double().start_at(x, seed=0)
    mixture.em_step(x)  # after an M-step the mixture has the data's mean and covariance
    torch.manual_seed(0)
    drawn = mixture.sample(20_000)
    torch.testing.assert_close(drawn.mean(0), x.mean(0), atol=0.06, rtol=0)
    torch.testing.assert_close(drawn.T.cov(), x.T.cov(correction=0), atol=0.15, rtol=0)


def test_a_single_datum_in_a_component_keeps_its_least_scale() -> None:
    x = torch.cat([torch.randn(20, 2), torch.tensor([[50.0, 50.0]])]).double()
    mixture = GaussianMixture(2, 2, min_scale=0.1).double().start_at(x, seed=0)
    for _ in range(20):
        mixture.em_step(x)
    assert bool(mixture.log_prob(x).isfinite().all())
    assert float((mixture.min_scale + mixture.log_scale.detach().exp()).min()) == pytest.approx(0.1, rel=1e-6)


def test_copies_and_bad_arguments() -> None:
    mixture = GaussianMixture(2, 3)
    assert copy.deepcopy(mixture).name != mixture.name
    assert mixture.sample(4).shape == (4, 2)
    with pytest.raises(ValueError, match="covariance must be 'full' or 'diagonal', got 'round'"):
        GaussianMixture(2, 3, "round")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="min_scale must be positive"):
        GaussianMixture(2, 3, min_scale=0.0)
    with pytest.raises(ValueError, match="data_shape must have 1 size"):
        GaussianMixture((1, 8, 8))
    with pytest.raises(ValueError, match=r"expected data of shape \(N, 2\), got \(4, 3\)"):
        mixture.guide(torch.zeros(4, 3))
    with pytest.raises(ValueError, match=r"sample\(0\)"):
        mixture.sample(0)
