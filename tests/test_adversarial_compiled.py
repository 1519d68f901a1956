"""Compiled phases have the eager gradients, each of its own parameters, and what cannot be compiled says why."""

from __future__ import annotations

import json
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae import compiled
from pyro_vae.elbo.adversarial import Critic
from pyro_vae.elbo.tracing import fork_rng
from tests.test_adversarial import NAMES, pair_and_batch
from tests.test_resume import assert_resumes_exactly, digits
from tests.test_resume import vae as small

pytestmark = pytest.mark.usefixtures("recorded")


class Kept(torch.optim.SGD):
    """Moves nothing, and keeps the gradients of each step."""

    def __init__(self, params: list[Tensor]) -> None:
        super().__init__(params, lr=0.0)
        self.found: list[list[Tensor]] = []
        self.register_step_pre_hook(self._keep)

    def _keep(self, *_: Any) -> None:
        grads = [p.grad for group in self.param_groups for p in group["params"]]
        self.found.append([torch.zeros(()) if g is None else g.clone() for g in grads])


def run(svi: pv.SVI, batch: tuple[Tensor, ...], steps: int) -> list[Tensor]:
    losses = []
    for step in range(steps):
        # Bernoulli draws are made in another way in a graph
        with fork_rng(step), pyro.validation_enabled(False), compiled.Recordable():
            losses.append(svi.gradients(batch, scale=0.25))
            svi.update()
    return losses


def assert_same_gradients(pair: Any, batch: tuple[Tensor, ...], make: Any, steps: int = 3) -> None:
    """Compiled and eager gradients of every phase agree on the same noise, step after step, and so does the health."""
    objectives = make(), make()
    svis = []
    for objective, compiles in zip(objectives, (False, True), strict=True):
        torch.manual_seed(0)  # the same critics
        svi = pv.SVI(pair.model, pair.guide, Kept, objective, compile=compiles)
        with fork_rng(9):
            svi.prepare(*batch)
        svis.append(svi)
    losses = [run(svi, batch, steps) for svi in svis]
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=1e-5)
    for phase, eager, ours in zip(objectives[0].phases, *(svi.optimizers for svi in svis), strict=True):
        assert isinstance(eager, Kept)
        assert isinstance(ours, Kept)
        assert len(ours.found) == len(eager.found) == steps * phase.steps
        for expected, found in zip(eager.found, ours.found, strict=True):
            scale = max(float(g.abs().max()) for g in expected)
            assert scale > 0
            for a, b in zip(expected, found, strict=True):
                torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-5 * scale)
    assert objectives[1].health() == pytest.approx(objectives[0].health(), rel=1e-5)
    state = svis[1].compiled_state()
    assert state is not None
    assert set(state) == {phase.name for phase in objectives[1].phases}
    assert all(of["reason"] is None and len(of["graphs"]) == 1 for of in state.values())
    json.dumps(state)


def narrow(name: str, **options: Any) -> Any:
    return pv.elbo.make(
        name, critic=partial(Critic, hidden=(16, 16), spectral=options.pop("spectral", False)), **options
    )


@pytest.mark.parametrize("kind", ["vae", "two plates"])
@pytest.mark.parametrize("name", NAMES)
def test_every_objective(name: str, kind: str) -> None:
    pair, batch = pair_and_batch(kind)
    assert_same_gradients(pair, batch, partial(narrow, name))


@pytest.mark.parametrize(
    "options",
    [
        {"game": "wasserstein", "gradient_penalty": 10.0},
        {"r1": 5.0, "game": "hinge"},
        {"critic_steps": 3, "average": 0.9},
        {"spectral": True, "game": "least_squares"},
    ],
    ids=["gradient penalty", "r1", "critic steps", "spectral"],
)
@pytest.mark.parametrize("name", ["gan", "veegan", "vae_gan"])
def test_every_option(name: str, options: dict[str, Any]) -> None:
    """Penalties differentiate twice, spectral normalisation changes buffers within the loss."""
    pair, batch = pair_and_batch("vae")
    assert_same_gradients(pair, batch, partial(narrow, name, **options))


@pytest.mark.parametrize("name", ["ali", "veegan"])
def test_noise_on_what_the_critic_sees(name: str) -> None:
    pair, batch = pair_and_batch("two plates")
    assert_same_gradients(pair, batch, partial(narrow, name, noise=1.0))


@pytest.mark.slow
def test_the_compiler_itself(really: None) -> None:
    pair, batch = pair_and_batch("vae")
    assert_same_gradients(pair, batch, partial(narrow, "gan", r1=1.0))


def test_what_cannot_be_recorded_names_its_phase() -> None:
    class Looking(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            out = super().forward(x).squeeze(-1)
            return out * 2 if float(out.detach().sum()) > 0 else out

    vae, (x,) = pair_and_batch("vae")
    objective = pv.elbo.make("aae", critic=lambda shape: Looking(shape.numel(), 1))
    svi = pv.SVI(vae.model, vae.guide, loss=objective, compile=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            svi.step(x)
    said = [str(w.message) for w in caught]
    assert len(said) == 2
    for phase, text in zip(("critic", "regularise"), said, strict=True):
        assert f"steps of the phase '{phase}' run eagerly, not compiled: the pair's control flow" in text
    state = svi.compiled_state()
    assert state is not None
    assert state["reconstruct"]["reason"] is None
    assert state["reconstruct"]["graphs"]


def test_a_run_goes_on_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """A state put back is compiled at once, for the batches of then, and the steps after it have the same bits."""
    vae, (x,) = pair_and_batch("vae")
    compiles: list[Any] = []

    def count(module: Any, inputs: Any) -> Any:
        compiles.append(module)
        return module

    monkeypatch.setattr(compiled, "compile_graph", count)

    def fresh() -> pv.SVI:
        sgd = partial(torch.optim.SGD, lr=0.01)
        return pv.SVI(vae.model, vae.guide, sgd, narrow("aae", spectral=True, average=0.9), compile=True)

    def weights(svi: pv.SVI) -> dict[str, Tensor]:
        return {name: t.clone() for name, t in {**vae.state_dict(), **svi.loss.state()}.items()}

    def steps(svi: pv.SVI, which: range) -> list[float]:
        losses = []
        for step in which:
            with fork_rng(step):
                losses.append(float(svi.step(x)))
        return losses

    svi = fresh()
    steps(svi, range(4))
    assert len(compiles) == 3
    then, state = weights(svi), json.loads(json.dumps(svi.compiled_state()))
    losses, expected = steps(svi, range(4, 7)), weights(svi)
    graphs = {name: of["graphs"] for name, of in state.items()}

    vae.load_state_dict({n: t for n, t in then.items() if n in vae.state_dict()})
    svi = fresh()
    svi.prepare(x)
    svi.loss.load_state({n: t for n, t in then.items() if n not in vae.state_dict()})
    svi.load_compiled(state)
    assert steps(svi, range(4, 7)) == losses
    assert len(compiles) == 6
    assert {name: of["graphs"] for name, of in svi.compiled_state().items()} == graphs
    found = weights(svi)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert any(not torch.equal(then[name], expected[name]) for name in expected)


@pytest.mark.parametrize("name", ["aae", "factor_vae"])
def test_fit_resumes_compiled_phases(tmp_path: Path, name: str) -> None:
    """With ragged last batches, which run eagerly until they have been seen often enough."""
    assert_resumes_exactly(tmp_path, small, digits(), (8, 4), epochs=4, elbo=name, compile=True)
