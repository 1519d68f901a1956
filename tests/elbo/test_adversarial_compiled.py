"""Compiled phases have the eager gradients, each of its own parameters, and what cannot be compiled says why."""

from __future__ import annotations

import json
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.compilation import gradients as compiled
from pyro_vae.elbo.adversarial import Critic
from pyro_vae.support.random import fork_rng
from tests.helpers.phased_gradients import assert_same_gradients
from tests.helpers.phased_pairs import NAMES, pair_and_batch
from tests.helpers.resuming import assert_resumes_exactly, digits
from tests.helpers.resuming import vae as small

pytestmark = pytest.mark.usefixtures("recorded")


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
    """Penalties differentiate twice, spectral normalization changes buffers within the loss."""
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
    for phase, text in zip(("critic", "regularize"), said, strict=True):
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
        return {name: t.clone() for name, t in {**vae.state_dict(), **svi.objective.state_dict()}.items()}

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
    svi.objective.load_state_dict({n: t for n, t in then.items() if n not in vae.state_dict()})
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
