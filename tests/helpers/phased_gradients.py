"""Compiled and eager gradients of phases, side by side."""

from __future__ import annotations

import json
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor

import pyro_vae as pv
from pyro_vae.compilation.recordable import Recordable
from pyro_vae.support.random import fork_rng


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
        with fork_rng(step), pyro.validation_enabled(False), Recordable():
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
