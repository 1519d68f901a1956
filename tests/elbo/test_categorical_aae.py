"""The adversarial autoencoder with classes: what its phases touch, judge and hide, and that it learns from labels."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.compilation import gradients as compiled
from pyro_vae.elbo.adversarial import CategoricalAAE, Critic
from pyro_vae.models import GMVAE, SemiSupervisedVAE
from tests.helpers.phased_gradients import assert_same_gradients

make: Callable[..., Any] = partial(CategoricalAAE, critic=partial(Critic, hidden=(16, 16)))


class TwoClasses(nn.Module):
    """Written as no system of ours is: counts, two classes one of which is inside a plate, and a scalar style."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder, self.encoder = nn.Linear(3 + 2 * 2 + 1, 4), nn.Linear(4, 3 + 4 + 2)

    def model(self, x: Tensor, y: Tensor) -> None:
        pyro.module("classes.decoder", self.decoder)
        with pyro.plate("data", len(x), dim=-2):
            with pyro.plate("once", 1, dim=-1):
                a = pyro.sample("kind", dist.OneHotCategorical(logits=torch.zeros(3)))
                s = pyro.sample("style", dist.Normal(0.0, 1.0))
            with pyro.plate("pair", 2, dim=-1):
                b = pyro.sample("b", dist.OneHotCategorical(logits=torch.zeros(2)))
            parts = [a.squeeze(-2), b.flatten(-2), s]
            rate = self.decoder(torch.cat(parts, -1)).exp()
            with pyro.plate("counts", 4, dim=-1):
                pyro.sample("x", dist.Poisson(rate), obs=x)

    def guide(self, x: Tensor, y: Tensor) -> None:
        pyro.module("classes.encoder", self.encoder)
        h = self.encoder(x).unsqueeze(-2)
        with pyro.plate("data", len(x), dim=-2):
            with pyro.plate("pair", 2, dim=-1):
                pyro.sample("b", dist.OneHotCategorical(logits=h[..., 0, 3:7].unflatten(-1, (2, 2))))
            with pyro.plate("once", 1, dim=-1):
                pyro.sample("kind", dist.OneHotCategorical(logits=h[..., :3]))
                pyro.sample("style", dist.Normal(h[..., 7], h[..., 8].exp()))


def pair_and_batch(kind: str) -> tuple[Any, tuple[Tensor, ...]]:
    if kind == "classes":
        return TwoClasses(), (torch.randint(0, 5, (6, 4)).float(), torch.full((6,), -1))
    vae = (GMVAE if kind == "clusters" else SemiSupervisedVAE)(8, 3, 2, (16,))
    return vae, ((torch.rand(6, 8) < 0.5).float(), torch.tensor([0, -1, 2, -1, -1, 1]))


def options_of(kind: str) -> dict[str, Any]:
    return {"labels": kind == "labels", "site": "kind" if kind == "classes" else "y"}


@pytest.mark.parametrize("kind", ["labels", "clusters", "classes"])
def test_a_phase_touches_what_it_owns_and_nothing_else(kind: str) -> None:
    pair, batch = pair_and_batch(kind)
    if kind == "clusters":
        batch = batch[:1]
    objective = make(**options_of(kind))
    svi = pv.SVI(pair.model, pair.guide, lambda p: torch.optim.SGD(p, lr=0.1), objective)
    svi.prepare(*batch)
    names = [phase.name for phase in objective.phases]
    assert names == ["critic", "regularize", *(["classify"] if kind == "labels" else []), "reconstruct"]

    def side(name: str) -> str:
        if name.startswith("critic/"):
            return "critic"
        return "guide" if any(part in name for part in ("encoder", "posterior", "classifier")) else "model"

    moved_by: dict[str, set[str]] = {}
    for phase in objective.phases:
        objective.phases = (phase,)
        svi = pv.SVI(pair.model, pair.guide, lambda p: torch.optim.SGD(p, lr=0.1), objective)
        svi.prepare(*batch)
        before = {name: p.detach().clone() for name, p in svi.params.items()}
        svi.step(*batch)
        moved_by[phase.name] = {n for n, p in svi.params.items() if not torch.equal(p.detach(), before[n])}
        assert moved_by[phase.name]
        assert {side(n) for n in moved_by[phase.name]} <= {role.rstrip("/") for role in phase.owns}
    # nothing asks for the prior's density, so what it would learn stays
    idle = {n for n in svi.params if n not in set().union(*moved_by.values())}
    assert all("prior" in n for n in idle), idle
    if kind == "labels":
        assert all("classifier" in n for n in moved_by["classify"])


@pytest.mark.parametrize("kind", ["labels", "clusters", "classes"])
def test_compiled_phases_have_the_eager_gradients(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "compile_graph", lambda module, inputs: module)  # graphs run as recorded
    pair, batch = pair_and_batch(kind)
    assert_same_gradients(pair, batch, partial(make, **options_of(kind)))


def test_reconstruction_is_decoded_from_probabilities_with_labels_hidden() -> None:
    vae, (x, y) = pair_and_batch("labels")
    torch.manual_seed(5)
    found = make().loss(vae.model, vae.guide, x, y)
    torch.manual_seed(5)
    probs = vae.classify(x).probs
    z = vae.posterior(vae.encoder(x, probs)).rsample()
    expected = -vae.likelihood(vae.features(z, probs)).log_prob(x).sum()
    torch.testing.assert_close(found, expected.detach())


def test_labels_change_the_phase_that_classifies_and_no_other() -> None:
    vae, (x, y) = pair_and_batch("labels")
    objective = make()
    pv.SVI(vae.model, vae.guide, loss=objective).prepare(x, y)
    for phase in objective.phases:
        losses = []
        for labels in (y, torch.full_like(y, -1), (y + 1) % 3):
            torch.manual_seed(3)
            losses.append(float(phase.loss(vae.model, vae.guide, x, labels).detach()))
        assert (len(set(losses)) == 1) == (phase.name != "classify"), phase.name
    known = y >= 0
    expected = -vae.classify(x).probs[known, y[known]].log().sum()
    (classify,) = (p for p in objective.phases if p.name == "classify")
    torch.testing.assert_close(classify.loss(vae.model, vae.guide, x, y), expected)


def test_what_the_two_critics_judge() -> None:
    pair, batch = pair_and_batch("classes")
    objective = make(**options_of("classes"))
    pv.SVI(pair.model, pair.guide, loss=objective).step(*batch)
    assert objective.critics["y"].net.in_shape == (3 + 2 * 2,)
    assert objective.critics["z"].net.in_shape == (1,)
    judged: dict[str, Tensor] = {}
    inner = objective.critic_loss
    objective.critic_loss = lambda name, real, fake: (
        judged.update({name: real, name + " fake": fake}) or inner(name, real, fake)
    )
    objective.phases[0].loss(pair.model, pair.guide, *batch)
    blocks = judged["y"].split([3, 2, 2], 1)
    assert all(bool(((b == 0) | (b == 1)).all()) and bool((b.sum(1) == 1).all()) for b in blocks)
    fakes = judged["y fake"].split([3, 2, 2], 1)
    assert all(torch.allclose(b.sum(1), torch.ones(6)) and bool((b < 1).all()) for b in fakes)
    # the guide's order of sites is another: each block is that site's
    torch.testing.assert_close(fakes[0], pair.encoder(batch[0])[:, :3].softmax(-1))


def test_the_weight_is_the_rate_of_the_phase_against_the_critics() -> None:
    vae, (x, y) = pair_and_batch("labels")
    svi = pv.SVI(vae.model, vae.guide, lambda p: torch.optim.Adam(p, lr=0.01), make(weight=0.3))
    svi.prepare(x, y)
    rates = [optimizer.param_groups[0]["lr"] for optimizer in svi.optimizers]
    assert rates == pytest.approx([0.01, 0.003, 0.01, 0.01])


def test_a_draw_is_a_draw_everywhere_else() -> None:
    vae, (x, y) = pair_and_batch("labels")
    objective = make()
    pv.SVI(vae.model, vae.guide, loss=objective).step(x, y)
    site = pyro.poutine.trace(vae.guide).get_trace(x).nodes["y"]["value"]
    assert bool(((site == 0) | (site == 1)).all())
    assert math.isfinite(pv.bound(vae.model, vae.guide, x, y, seed=0).mean)


def test_a_few_labels_teach_the_guide() -> None:
    """Three prototypes with noise, twelve labels: the guide knows all others, and is certain of them."""
    torch.manual_seed(0)
    prototypes = (torch.rand(3, 20) < 0.5).float()
    y = torch.randint(0, 3, (300,))
    x = (prototypes[y] + 0.1 * torch.randn(300, 20)).clamp(0, 1)
    shown = torch.full_like(y, -1)
    shown[:12] = y[:12]
    likelihood = pv.conditionals.Normal(20, 0.3)
    vae = SemiSupervisedVAE(20, 3, 2, (32,), "relu", likelihood, posterior=pv.conditionals.Point(2))
    options: dict[str, Any] = {"batch_size": 50, "lr": 5e-3, "seed": 0, "progress": False}
    history = pv.fit(vae.model, vae.guide, (x, shown), elbo=make(weight=0.3), steps=80, **options)
    assert all(math.isfinite(v) for v in history.loss)
    with torch.no_grad():
        probs = vae.classify(x).probs
    assert float((probs.argmax(-1) == y).float().mean()) > 0.95
    assert float(probs.max(-1).values.mean()) > 0.85


def test_what_it_cannot_be_given() -> None:
    plain, (x,) = pv.VAE(8, 2, (16,)), (torch.rand(6, 8),)
    with pytest.raises(ValueError, match=r"no OneHotCategorical latent \(it has \['z'\]\)"):
        pv.SVI(plain.model, plain.guide, loss=make(labels=False)).step(x)
    vae, (x, y) = pair_and_batch("labels")
    with pytest.raises(ValueError, match="categorical_aae' with labels=False"):
        pv.SVI(vae.model, vae.guide, loss=make()).step(x)
    with pytest.raises(ValueError, match=r"no site 'label'"):
        pv.SVI(vae.model, vae.guide, loss=make(site="label")).step(x, y)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Categorical(logits=torch.zeros(3)))
            pyro.sample("x", dist.Normal(torch.zeros(8), 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Categorical(logits=x[:, :3]))

    with pytest.raises(ValueError, match="no gradient passes a draw at the site 'k', from Categorical"):
        pv.SVI(model, guide, loss=make(labels=False)).step(x)
