"""Pairs with a class that some data are labeled with: bounds by enumeration, and the classification loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.elbo import SemiSupervised
from pyro_vae.models import GMVAE, SemiSupervisedVAE
from pyro_vae.pair.particles import particles_agree

SYSTEMS = [SemiSupervisedVAE, GMVAE]
X = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0], [1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 0.0]]).double()
Y = torch.tensor([2, -1, 0, -1])


def small(system: type[SemiSupervisedVAE], **options: Any) -> SemiSupervisedVAE:
    torch.manual_seed(0)
    return system(4, num_classes=3, **{"latent_dim": 1, "hidden": (6,), **options}).double()


def on_grid(vae: SemiSupervisedVAE, x: Tensor) -> Tensor:
    """log p(x, y) of every class by quadrature over z, `(N, C)`."""
    z = torch.linspace(-10, 10, 2001, dtype=torch.float64).reshape(-1, 1, 1, 1)  # (M, 1, 1, D)
    one_hot = torch.eye(3).double()  # (C, C)
    with torch.no_grad():
        log_z = vae.latent_prior(one_hot).log_prob(z)  # (M, 1, C)
        given = vae.likelihood(vae.features(z, one_hot)).log_prob(x.unsqueeze(1))  # (M, N, C)
    step = float(z[1] - z[0])
    return (log_z + given).logsumexp(0) + torch.tensor(step / 3).double().log()


def spread(vae: SemiSupervisedVAE) -> None:
    """Widen q(z|x, y) to the prior's width or so, so that importance sampling works."""
    final: Any = vae.encoder.final
    with torch.no_grad():
        final.final.weight.mul_(0.1)
        final.final.bias[1:].fill_(0.5)


@pytest.mark.parametrize("system", SYSTEMS)
def test_likelihood_with_and_without_labels(system: type[SemiSupervisedVAE]) -> None:
    """A labeled datum's number is log p(x, y), another's log p(x)."""
    vae = small(system)
    spread(vae)
    joint = on_grid(vae, X)
    exact = torch.where(Y >= 0, joint.gather(1, Y.clamp_min(0).unsqueeze(1)).squeeze(1), joint.logsumexp(1))
    found = pv.log_marginal(vae.model, vae.guide, X, Y, num_samples=5000, seed=0)
    assert float(found.std_error.max()) < 0.05
    assert bool(((found.log_prob - exact).abs() < 5 * found.std_error).all())
    without = pv.log_marginal(vae.model, vae.guide, X, num_samples=5000, seed=0)
    assert bool(((without.log_prob - joint.logsumexp(1)).abs() < 5 * without.std_error).all())
    elbo = pv.bound(vae.model, vae.guide, X, Y, num_samples=500, seed=0).elbo
    assert bool((elbo < exact).all())


@pytest.mark.parametrize("system", SYSTEMS)
def test_enumeration_sums_over_the_classes(system: type[SemiSupervisedVAE]) -> None:
    """The ELBO written out, with the same draws of z given each class; for the labeled, the label's term alone."""
    vae = small(system)
    torch.manual_seed(1)
    objective = pv.elbo.make("enum")
    objective.loss(vae.model, vae.guide, X, Y)  # finds the plates, with draws of its own
    torch.manual_seed(1)
    loss = objective.differentiable_loss(vae.model, vae.guide, X, Y)
    torch.manual_seed(1)
    one_hot = torch.eye(3).double().unsqueeze(1)  # (C, 1, C)
    q_z = vae.posterior(vae.encoder(X, one_hot))
    z = q_z.rsample()  # (C, N, D)
    per_class = vae.likelihood(vae.features(z, one_hot)).log_prob(X)
    per_class = per_class + vae.latent_prior(one_hot).log_prob(z) - q_z.log_prob(z) - torch.tensor(3.0).log()
    q_y = vae.classify(X).probs.T  # (C, N)
    unlabeled = (q_y * (per_class - q_y.log())).sum(0)
    labeled = per_class.gather(0, Y.clamp_min(0).unsqueeze(0)).squeeze(0)
    expected = -torch.where(Y >= 0, labeled, unlabeled).sum()
    torch.testing.assert_close(loss, expected)
    parameters = list(vae.parameters())
    for found, wanted in zip(
        torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        torch.testing.assert_close(found, wanted)


def test_the_classification_loss() -> None:
    vae = small(SemiSupervisedVAE)
    torch.manual_seed(1)
    plain = pv.elbo.make("enum").loss(vae.model, vae.guide, X, Y)
    torch.manual_seed(1)
    with_loss = SemiSupervised(weight=5.0).loss(vae.model, vae.guide, X, Y)
    log_q = vae.classify(X).logits.log_softmax(-1)
    torch.testing.assert_close(with_loss - plain, -5.0 * (log_q[0, 2] + log_q[2, 0]).detach())
    nothing = SemiSupervised(weight=5.0).loss(vae.model, vae.guide, X, torch.full_like(Y, -1))
    torch.manual_seed(1)
    assert torch.isfinite(nothing)


def test_the_classification_loss_on_plain_functions_with_integer_labels() -> None:
    """Another pair: two functions, a categorical label of another name, an argument more."""
    net = nn.Linear(4, 3).double()

    def model(x: Tensor, label: Tensor, shift: float) -> None:
        with pyro.plate("data", len(x)):
            c = pyro.sample("kind", dist.Categorical(torch.ones(3).double()))
            pyro.sample(
                "x", dist.Normal(c.unsqueeze(-1) + shift, 1.0).expand([*c.shape[:-1], len(x), 4]).to_event(1), obs=x
            )

    def guide(x: Tensor, label: Tensor, shift: float) -> None:
        pyro.module("net", net)
        certain = torch.where(nn.functional.one_hot(label.clamp_min(0), 3) > 0, 0.0, -1e4).double()
        logits = torch.where((label >= 0).unsqueeze(-1), certain, net(x).log_softmax(-1))
        with pyro.plate("data", len(x)):
            pyro.sample("kind", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})

    losses = [SemiSupervised(weight=w, site="kind").loss(model, guide, X, Y, 0.5) for w in (0.0, 2.0)]
    log_q = net(X).log_softmax(-1)
    torch.testing.assert_close(losses[1] - losses[0], -2.0 * (log_q[0, 2] + log_q[2, 0]).detach())


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("elbo", ["semi_supervised", "enum", "vimco", "gumbel"])
def test_it_trains(system: type[SemiSupervisedVAE], elbo: str) -> None:
    vae = small(system, latent_dim=2) if system is GMVAE else small(system)
    x, y = X.repeat(5, 1), Y.repeat(5)
    before = {name: p.detach().clone() for name, p in vae.named_parameters()}
    history = pv.fit(vae.model, vae.guide, (x, y), elbo=elbo, num_particles=2, epochs=2, batch_size=10)
    assert torch.tensor(history.loss).isfinite().all()
    assert [name for name, p in vae.named_parameters() if torch.equal(p, before[name])] == []


def test_a_few_labels_are_learnt_from_the_groups_that_the_data_form() -> None:
    """Two groups of images, one label each: the rest follow."""
    torch.manual_seed(0)
    truth = torch.randint(2, (200,))
    probs = torch.tensor([[0.9, 0.9, 0.9, 0.1, 0.1, 0.1], [0.1, 0.1, 0.1, 0.9, 0.9, 0.9]])
    x, y = torch.bernoulli(probs[truth]), torch.full((200,), -1)
    for c in range(2):
        first = int((truth == c).nonzero()[0])
        y[first] = c
    vae = SemiSupervisedVAE(6, 2, latent_dim=1, hidden=(16,))
    svi = pv.SVI(vae.model, vae.guide, lambda p: torch.optim.Adam(p, 0.02), SemiSupervised(weight=20.0))
    for _ in range(150):
        svi.step(x, y)
    found = vae.classify(x).probs.argmax(-1)
    assert float((found == truth).float().mean()) > 0.95


def test_clusters_are_found_without_labels() -> None:
    torch.manual_seed(0)
    truth = torch.randint(3, (300,))
    x = torch.randn(300, 6) * 0.3 + 2 * torch.eye(3).repeat(1, 2)[truth]
    vae = GMVAE(6, 3, latent_dim=2, hidden=(16,), likelihood=pv.conditionals.Normal(6, 0.3))
    svi = pv.SVI(vae.model, vae.guide, lambda p: torch.optim.Adam(p, 0.02), pv.elbo.make("enum"))
    for _ in range(150):
        svi.step(x)
    assert pv.clustering_accuracy(vae.classify(x).probs.argmax(-1), truth) > 0.95


@pytest.mark.parametrize("system", SYSTEMS)
def test_values_and_shapes(system: type[SemiSupervisedVAE]) -> None:
    vae = small(system)
    assert particles_agree(vae.model, vae.guide, (X, Y))
    assert vae.sample(5).shape == (5, 4)
    assert vae.sample(3, torch.tensor([0, 1, 2]), mean=False).shape == (3, 4)
    assert vae.reconstruct(X).shape == vae.reconstruct(X, Y.clamp_min(0)).shape == X.shape
    assert vae.encode(X).batch_shape == (4,)
    assert vae.decode(torch.zeros(7, 4, 1).double()).batch_shape == (7, 4)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (torch.tensor([0, 1]), r"integer labels of shape \(4,\).* got labels of shape \(2,\) and type torch.int64"),
        (torch.tensor([0.0, 1.0, 2.0, 0.0]), r"integer labels of shape \(4,\).* type torch.float32"),
        (torch.tensor([0, 1, 3, -1]), "expected labels from 0 to 2, .* got -1 to 3"),
        (torch.tensor([0, 1, -2, -1]), "got -2 to 1"),
    ],
)
def test_bad_labels(y: Tensor, message: str) -> None:
    vae = small(SemiSupervisedVAE)
    with pytest.raises(ValueError, match=message):
        vae.guide(X, y)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda: SemiSupervised(weight=-1.0), "weight must be a number >= 0"),
        (lambda: SemiSupervised().loss(*_pair(), X), r"needs the labels as second argument, \(4,\) .* got none"),
        (lambda: SemiSupervised().loss(*_pair(), X, Y[:2]), r"labels of shape \(2,\)"),
        (lambda: SemiSupervised(site="label").loss(*_pair(), X, Y), r"no site 'label' .*it draws \['y', 'z'\]"),
        (lambda: SemiSupervisedVAE(4, num_classes=1), "num_classes must be at least 2"),
        (lambda: SemiSupervisedVAE(4, hidden=()), "hidden must hold positive sizes"),
    ],
)
def test_bad_calls(run: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run()


def _pair() -> tuple[Any, Any]:
    vae = small(SemiSupervisedVAE)
    return vae.model, vae.guide


def test_clustering_accuracy() -> None:
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    assert pv.clustering_accuracy(torch.tensor([2, 2, 0, 0, 1, 1]), labels) == 1.0
    assert pv.clustering_accuracy(torch.zeros(6).long(), labels) == pytest.approx(1 / 3)
    # a cluster more: its data count as wrong
    assert pv.clustering_accuracy(torch.tensor([0, 3, 1, 1, 2, 2]), labels) == pytest.approx(5 / 6)
    with pytest.raises(ValueError, match=r"clusters of shape \(2, 3\)"):
        pv.clustering_accuracy(torch.zeros(2, 3).long(), labels)
    with pytest.raises(ValueError, match="labels hold the number -1"):
        pv.clustering_accuracy(labels, labels - 1)
