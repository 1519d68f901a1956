"""Objectives made of phases: what each may touch, what it estimates, and how it goes wrong aloud."""

from __future__ import annotations

import math
import warnings
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.elbo import adversarial
from pyro_vae.elbo.adversarial import GAMES, Critic, NoisyEncoder, Phase, PhasedELBO, gradient_penalty, r1_penalty
from pyro_vae.elbo.adversarial.draws import generate, infer, reconstruct
from tests.helpers.phased_pairs import NAMES, pair_and_batch


def make(name: str, **options: Any) -> Any:
    return pv.elbo.make(name, critic=partial(Critic, hidden=(16, 16)), **options)


def values(svi: pv.SVI) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in svi.params.items()}


@pytest.mark.parametrize("kind", ["vae", "two plates"])
@pytest.mark.parametrize("name", NAMES)
def test_a_phase_touches_what_it_owns_and_nothing_else(name: str, kind: str) -> None:
    """Every phase alone: all parameters it owns move, unless it asks nothing of them, and no other one does."""
    pair, batch = pair_and_batch(kind)
    objective = make(name)
    svi = pv.SVI(pair.model, pair.guide, lambda p: torch.optim.SGD(p, lr=0.1), objective)
    svi.prepare(*batch)
    phases = objective.phases
    sides = {
        n: "guide" if "encoder" in n or "posterior" in n else "critic" if n.startswith("critic/") else "model"
        for n in svi.params
    }
    moved_by_any: set[str] = set()
    for phase in phases:
        objective.phases = (phase,)
        svi = pv.SVI(pair.model, pair.guide, lambda p: torch.optim.SGD(p, lr=0.1), objective)
        svi.prepare(*batch)
        before = values(svi)
        svi.step(*batch)
        moved = {n for n, value in values(svi).items() if not torch.equal(value, before[n])}
        assert moved, phase.name
        allowed = {role.rstrip("/") for role in phase.owns}
        assert {sides[n] for n in moved} <= allowed, f"{phase.name} moved {moved}"
        assert all(p.grad is None for p in svi.params.values())
        moved_by_any |= moved
    untouched = set(svi.params) - moved_by_any
    assert {sides[n] for n in untouched} <= ({"guide"} if name == "gan" else set()), untouched


@pytest.mark.parametrize("name", NAMES)
def test_fit_trains_it_and_measures_the_elbo_beside(name: str) -> None:
    x = pv.data.load("digits", binarize="dynamic", flatten=True).train.head(200)
    runs = []
    for _ in range(2):
        torch.manual_seed(1)
        vae = pv.VAE(64, 4, (32,))
        options: dict[str, Any] = {"batch_size": 50, "epochs": 2, "progress": False, "seed": 3}
        history = pv.fit(vae.model, vae.guide, x, elbo=make(name), **options)
        runs.append([(e.loss, e.train_elbo) for e in history])
    assert runs[0] == runs[1]
    assert all(math.isfinite(v) for row in runs[0] for v in row)
    assert -200 < runs[0][-1][1] < 0


def test_the_total_correlation_of_a_gaussian() -> None:
    """q(z) is N(0, S) with correlation rho, whose total correlation is -log(1 - rho^2) / 2."""
    rho, noise = 0.8, 0.3
    factor = torch.linalg.cholesky(torch.tensor([[1.0, rho], [rho, 1.0]]) - noise**2 * torch.eye(2))

    def model(x: Tensor) -> None:
        shift = pyro.param("shift", torch.zeros(2))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z + shift, 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x @ factor.T, noise).to_event(1))

    objective = make("factor_vae")
    svi = pv.SVI(model, guide, lambda p: torch.optim.Adam(p, lr=5e-3), objective)
    for step in range(500):
        for optimizer in svi.optimizers:
            optimizer.param_groups[0]["lr"] = 5e-3 * (1 - step / 500)
        svi.step(torch.randn(500, 2))
    found = float(objective.total_correlation(model, guide, torch.randn(50_000, 2)))
    assert found == pytest.approx(-0.5 * math.log(1 - rho**2), rel=0.1)  # 0.51


def test_factor_vae_without_its_penalty_is_the_elbo() -> None:
    vae, (x,) = pair_and_batch("vae")
    objective = make("factor_vae", gamma=0.0)
    pv.SVI(vae.model, vae.guide, loss=objective).prepare(x)
    losses = []
    for loss in (objective, pv.elbo.MeanField()):
        torch.manual_seed(5)
        losses.append(float(loss.loss(vae.model, vae.guide, x)))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_aae_reconstructs_by_the_likelihood() -> None:
    vae, (x,) = pair_and_batch("vae")
    torch.manual_seed(5)
    found = make("aae").loss(vae.model, vae.guide, x)
    torch.manual_seed(5)
    expected = -vae.decode(vae.encode(x).rsample()).log_prob(x).sum()
    torch.testing.assert_close(found, expected.detach())


def test_veegan_asks_the_guide_for_the_latents_of_samples() -> None:
    """-log q(z | G(z)) by hand, with a critic that is zero everywhere."""
    vae = pv.VAE(3, 2, (8,), likelihood=pv.conditionals.Normal(3, 0.1))

    class Zero(nn.Linear):
        def __init__(self, shape: torch.Size) -> None:
            super().__init__(shape.numel(), 1)
            nn.init.zeros_(self.weight), nn.init.zeros_(self.bias)

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).squeeze(-1)

    torch.manual_seed(5)
    found = pv.elbo.make("veegan", critic=Zero, weight=2.0).loss(vae.model, vae.guide, torch.zeros(7, 3))
    torch.manual_seed(5)
    z = vae.prior().expand((7,)).rsample()
    expected = -2.0 * vae.encode(vae.decode(z).mean).log_prob(z).sum()
    torch.testing.assert_close(found, expected.detach())


def test_vae_gan_measures_the_features_of_its_critic() -> None:
    vae, (x,) = pair_and_batch("vae")
    objective = make("vae_gan", scale=2.0)
    pv.SVI(vae.model, vae.guide, loss=objective).prepare(x)
    torch.manual_seed(5)
    found = objective.loss(vae.model, vae.guide, x)
    torch.manual_seed(5)
    q = vae.encode(x)
    rebuilt = vae.decode(q.rsample()).mean
    f = objective.critics["x"].features
    distance = 0.5 * ((f(x) - f(rebuilt)) / 2.0).square().sum()
    kl = torch.distributions.kl_divergence(q.base_dist, dist.Normal(0.0, 1.0)).sum()
    torch.testing.assert_close(found, (kl + distance).detach())


@pytest.mark.parametrize("game", GAMES)
def test_a_game_has_its_solution_where_the_two_sides_agree(game: str) -> None:
    """At the best critic of equal sides the losses of both sides balance, and raising a logit lowers `up`."""
    g = GAMES[game]
    logit = torch.tensor(0.5 if game == "least_squares" else 0.0, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(g.real(logit) + g.fake(logit), logit)
    assert float(slope) == pytest.approx(0.0)
    for side, sign in ((g.real, -1), (g.fake, 1), (g.up, -1), (g.down, 1)):
        (slope,) = torch.autograd.grad(side(logit), logit)
        assert float(slope) * sign > 0


def test_the_log_ratio_game_estimates_the_kl() -> None:
    """With the best critic, log p - log q of two Gaussians, the pair's loss is KL(q || p) = 1/2."""
    z = torch.randn(200_000, dtype=torch.float64) + 1.0
    logits = dist.Normal(0.0, 1.0).log_prob(z) - dist.Normal(1.0, 1.0).log_prob(z)
    assert float(GAMES["log_ratio"].up(logits).mean()) == pytest.approx(0.5, abs=0.01)


def test_penalties_of_a_quadratic_critic() -> None:
    x = torch.randn(6, 3, dtype=torch.float64)

    def critic(v: Tensor) -> Tensor:
        return 0.5 * v.square().sum(-1)

    assert float(r1_penalty(critic, x).detach()) == pytest.approx(float(0.5 * x.square().sum(1).mean()))
    between = gradient_penalty(critic, x, x)  # the gradient at x is x
    assert float(between.detach()) == pytest.approx(float((x.norm(dim=1) - 1).square().mean()))


@pytest.mark.parametrize("options", [{"gradient_penalty": 10.0, "game": "wasserstein"}, {"r1": 5.0}])
def test_penalties_reach_the_critic(options: dict[str, Any]) -> None:
    vae, (x,) = pair_and_batch("vae")
    losses = []
    for chosen in ({**options, "r1": 0.0, "gradient_penalty": 0.0}, options):
        objective = make("gan", **chosen)
        torch.manual_seed(2)
        pv.SVI(vae.model, vae.guide, loss=objective).prepare(x)
        torch.manual_seed(3)
        losses.append(objective.phases[0].loss(vae.model, vae.guide, x))
    assert float(losses[1].detach() - losses[0].detach()) > 1e-4
    losses[1].backward()


def test_spectral_normalization_bounds_each_layer() -> None:
    critic = Critic((1, 8, 8), hidden=(16,), channels=(4,), spectral=True)
    for _ in range(50):
        critic(torch.randn(4, 1, 8, 8))
    for layer in critic.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            assert float(torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2)) == pytest.approx(1.0, abs=0.05)


def test_critics_take_their_steps_and_their_rate() -> None:
    vae, (x,) = pair_and_batch("vae")
    objective = make("gan", critic_steps=3, critic_lr=0.5)
    svi = pv.SVI(vae.model, vae.guide, lambda p: torch.optim.Adam(p, lr=0.01), objective)
    svi.step(x)
    critic, pair = svi.optimizers
    assert critic.param_groups[0]["lr"] == pytest.approx(0.005)
    assert pair.param_groups[0]["lr"] == pytest.approx(0.01)
    assert {int(state["step"]) for state in critic.state.values()} == {3}
    assert {int(state["step"]) for state in pair.state.values()} == {1}


def test_the_average_of_the_model() -> None:
    vae, (x,) = pair_and_batch("vae")
    objective = make("gan", average=0.75)
    with pytest.raises(ValueError, match="nothing is averaged yet"), objective.averaged():
        pass
    svi = pv.SVI(vae.model, vae.guide, lambda p: torch.optim.SGD(p, lr=1.0), objective)
    seen = []
    for _ in range(3):
        svi.step(x)
        seen.append(vae.decoder.final.bias.detach().clone())
    expected = 0.75 * (0.75 * seen[0] + 0.25 * seen[1]) + 0.25 * seen[2]
    with objective.averaged():
        torch.testing.assert_close(vae.decoder.final.bias.detach(), expected)
    torch.testing.assert_close(vae.decoder.final.bias.detach(), seen[2])


def test_a_state_put_back_goes_on_as_before() -> None:
    vae, (x,) = pair_and_batch("vae")
    spectral = partial(Critic, hidden=(8,), spectral=True)

    def fresh() -> tuple[Any, pv.SVI]:
        objective = pv.elbo.make("aae", critic=spectral, average=0.5)
        return objective, pv.SVI(vae.model, vae.guide, loss=objective)

    objective, svi = fresh()
    for _ in range(3):
        svi.step(x)
    weights = {name: t.clone() for name, t in vae.state_dict().items()}
    (bias,) = (name for name in svi.params if name.endswith("decoder$$$final.bias"))
    state = {name: t.clone() for name, t in objective.state_dict().items()}
    moments = [optimizer.state_dict() for optimizer in svi.optimizers]
    moments = [torch.load(_bytes(m), weights_only=True) for m in moments]
    torch.manual_seed(7)
    expected = [float(svi.step(x)) for _ in range(3)]
    after = {name: t.clone() for name, t in objective.state_dict().items()}

    vae.load_state_dict(weights)
    objective, svi = fresh()
    before = torch.get_rng_state()
    svi.prepare(x)
    assert torch.equal(before, torch.get_rng_state())
    objective.load_state_dict(state)
    with objective.averaged():
        torch.testing.assert_close(vae.decoder.final.bias.detach(), state["average/" + bias])
    for optimizer, kept in zip(svi.optimizers, moments, strict=True):
        optimizer.load_state_dict(kept)
    torch.manual_seed(7)
    assert [float(svi.step(x)) for _ in range(3)] == expected
    for name, value in objective.state_dict().items():
        assert torch.equal(value, after[name]), name
    with pytest.raises(ValueError, match=r"the state has critic/other\.weight"):
        objective.load_state_dict({"critic/other.weight": torch.zeros(1)})


def _bytes(value: Any) -> Any:
    import io

    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return buffer


def test_a_condition_stands_beside_what_is_judged() -> None:
    pair, (x, y) = pair_and_batch("two plates")
    objective = make("aae", condition=lambda x, y: y.unsqueeze(1))
    pv.SVI(pair.model, pair.guide, loss=objective).step(x, y)
    assert objective.critics["z"].net.in_shape == (4,)  # three latents and the label
    wrong = make("aae", condition=lambda x, y: y)
    with pytest.raises(ValueError, match=r"condition gave \(6,\), expected \(6, C\)"):
        pv.SVI(pair.model, pair.guide, loss=wrong).step(x, y)


def test_what_critics_look_at() -> None:
    pair, (x, y) = pair_and_batch("two plates")
    drawn, made = infer(pair.model, pair.guide, (x, y), {}), generate(pair.model, (x, y), {})
    assert torch.equal(drawn.x, x)
    assert drawn.z.shape == made.z.shape == (6, 3)
    nodes = drawn.traces.guide.nodes
    assert torch.equal(drawn.z, torch.cat([nodes["a"]["value"], nodes["b"]["value"].squeeze(1)], 1))
    torch.testing.assert_close(reconstruct(drawn), pair.decoder(drawn.z).exp())
    torch.testing.assert_close(made.x, pair.decoder(made.z).exp())


def test_a_mean_that_no_gradient_reaches_is_refused() -> None:
    def model(x: Tensor) -> None:
        logits = pyro.param("logits", torch.zeros(3))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Categorical(logits=logits), obs=x)

    def guide(x: Tensor) -> None:
        loc = pyro.param("loc", torch.zeros(()))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 1.0))

    with pytest.raises(ValueError, match="site 'x' is observed under Categorical"):
        pv.SVI(model, guide, loss=make("gan")).step(torch.tensor([0, 1, 2]))


def test_a_phase_without_parameters_says_so() -> None:
    net = nn.Linear(2, 2)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(net(z), 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 1.0).to_event(1))

    with pytest.raises(ValueError, match=r"phase 'generate' depends on no parameter that it owns \(model\)"):
        pv.SVI(model, guide, loss=make("gan")).step(torch.zeros(4, 2))


def test_an_encoder_with_noise_of_its_own() -> None:
    net = NoisyEncoder((1, 2, 2), 3, noise_dim=2, hidden=(8,))
    x = torch.zeros(5, 7, 1, 2, 2)
    assert net(x).shape == (5, 7, 3)
    assert not torch.equal(net(x), net(x))
    vae = pv.VAE(4, 3, (8,), posterior=pv.conditionals.Point(3), encoder=partial(NoisyEncoder, hidden=(8,)))
    last: Any = vae.encoder
    before = last.net.final.weight.detach().clone()
    pv.SVI(vae.model, vae.guide, loss=make("aae")).step(torch.ones(6, 4))
    assert not torch.equal(before, last.net.final.weight)


def test_owning_by_name() -> None:
    phase = Phase("decoder", lambda *a: torch.zeros(()), ("net.decoder", "critic/x"))
    assert phase.may_touch("net.decoder.weight", ["model"])
    assert phase.may_touch("critic/x.weight", [])
    assert not phase.may_touch("net.encoder.weight", ["guide"])
    assert not Phase("m", phase.loss, ("model",)).may_touch("model.weight", ["guide"])
    with pytest.raises(ValueError, match="owns no parameters"):
        Phase("none", phase.loss, ())
    with pytest.raises(ValueError, match="steps >= 1"):
        Phase("none", phase.loss, ("model",), steps=0)


def test_a_critic_that_has_won_and_collapsed_samples_are_reported() -> None:
    def model(x: Tensor) -> None:
        loc = pyro.param("loc", torch.zeros(2))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(loc + 1e-3 * z, 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 1.0).to_event(1))

    objective = make("gan")
    svi = pv.SVI(model, guide, lambda p: torch.optim.SGD(p, lr=0.05), objective)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(502):
            svi.step(torch.randn(20, 2) + 10.0)
            pyro.param("loc").data.zero_()  # a generator that cannot follow
    said = [str(w.message) for w in caught]
    assert any("tells" in s and "of the pairs apart" in s for s in said), said
    assert sum("mode collapse" in s for s in said) == 1
    assert objective.health()["spread/x"] < 0.3
    assert objective.health()["accuracy/x"] > 0.99


def test_a_critic_that_is_not_finite_ends_the_run() -> None:
    vae = pv.VAE(4, 2, (8,))

    class Broken(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return (super().forward(x) * math.nan).squeeze(-1)

    objective = pv.elbo.make("gan", critic=lambda shape: Broken(shape.numel(), 1))
    with pytest.raises(pv.NonFiniteLoss):
        pv.fit(vae.model, vae.guide, torch.ones(20, 4), elbo=objective, epochs=1, batch_size=5, progress=False)


def test_it_says_that_it_is_no_bound() -> None:
    vae, (x,) = pair_and_batch("vae")
    assert not adversarial.AAE.is_bound
    with pytest.raises(ValueError, match=r"(no|not a) bound"):
        pv.compare_elbos(vae.model, vae.guide, x, estimators=["aae", "trace"], seed=0)
    with pytest.raises(ValueError, match=r"(no|not a) bound"):
        pv.check_estimator("aae", seed=0)


def test_what_it_cannot_be_given() -> None:
    vae, (x,) = pair_and_batch("vae")
    with pytest.raises(ValueError, match="leave out kl_weight"):
        pv.fit(vae.model, vae.guide, x, elbo="aae", epochs=1, batch_size=3, kl_weight=0.5, preflight=False)
    with pytest.raises(TypeError, match="an optimizer for each phase"):
        pv.SVI(vae.model, vae.guide, torch.optim.Adam(vae.parameters()), make("aae"))
    with pytest.raises(ValueError, match="num_particles must be 1"):
        pv.elbo.make("aae", num_particles=2)
    with pytest.raises(NotImplementedError, match="the phases critic, regularize, reconstruct"):
        make("aae").loss_and_grads(vae.model, vae.guide, x)
    with pytest.raises(ValueError, match="float16"):
        pv.SVI(vae.model, vae.guide, loss=make("aae"), precision="float16")
    with pytest.raises(ValueError, match="a decay between 0 and 1"):
        make("aae", average=2.0)
    pair, (counts, y) = pair_and_batch("two plates")
    wide = torch.cat([counts, counts], 1)  # of which the pair observes one half
    svi = pv.SVI(lambda x, y: pair.model(x[:, :4], y), lambda x, y: pair.guide(x[:, :4], y), loss=make("veegan"))
    with pytest.raises(ValueError, match="no observed site has that shape"):
        svi.step(wide, y)
    plain = pv.elbo.make("vae_gan", critic=lambda s: nn.Sequential(nn.Flatten(), nn.Linear(64, 1), nn.Flatten(0)))
    with pytest.raises(TypeError, match="no method features"):
        pv.SVI(vae.model, vae.guide, loss=plain).step(x)
    with pytest.raises(ValueError, match=r"gave logits of shape \(\)"):
        pv.SVI(vae.model, vae.guide, loss=pv.elbo.make("gan", critic=lambda s: _Sum())).step(x)
    with pytest.raises(TypeError, match=r"a function from a shape to an nn\.Module"):
        pv.SVI(vae.model, vae.guide, loss=pv.elbo.make("gan", critic=lambda s: 3)).step(x)


class _Sum(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sum()


def test_half_precision_runs_the_networks() -> None:
    vae, (x,) = pair_and_batch("vae")
    svi = pv.SVI(vae.model, vae.guide, loss=make("aae"), precision="bfloat16")
    assert math.isfinite(float(svi.step(x)))


def test_an_objective_of_ones_own() -> None:
    """Two phases written by hand on plain functions: one pulls, the other may only touch what it names."""

    class Own(PhasedELBO):
        def __init__(self) -> None:
            super().__init__()
            self.phases = (
                Phase("first", lambda m, g, x: (m(x) - 1).square(), ("a",)),
                Phase("second", lambda m, g, x: (m(x) + g(x)).square(), ("guide",), steps=2, lr=0.5),
            )

    def model(x: Tensor) -> Any:
        return pyro.param("a", torch.tensor(0.0)) + pyro.param("b", torch.tensor(0.0))

    def guide(x: Tensor) -> Any:
        return pyro.param("c", torch.tensor(1.0))

    svi = pv.SVI(model, guide, lambda p: torch.optim.SGD(p, lr=0.1), Own())
    loss = svi.step(torch.zeros(1))
    # a: 0 - 0.1 * 2 * (0 - 1) = 0.2; c: 1 - 0.05 * 2 * 1.2 = 0.88, and then - 0.05 * 2 * 1.08
    assert float(svi.params["a"].detach()) == pytest.approx(0.2)
    assert float(svi.params["b"].detach()) == 0.0
    assert float(svi.params["c"].detach()) == pytest.approx(0.88 - 0.108)
    assert float(loss) == pytest.approx(1.08**2)
