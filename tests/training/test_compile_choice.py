"""`compile="auto"` compiles where the steps that are left save more than compiling takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import pyro_vae as pv
from pyro_vae.compilation import costs
from pyro_vae.distributed.ranks import Ranks
from pyro_vae.training import compile_choice
from pyro_vae.training.compile_choice import CompileChoice

pytestmark = pytest.mark.usefixtures("recorded")


@pytest.fixture(autouse=True)
def _own_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))


def test_costs_are_the_median_of_the_latest() -> None:
    assert costs.expected_seconds() == 15.0
    for seconds in (100.0, *[8.0] * 5, *[4.0] * 5):
        costs.note_seconds(seconds)
    assert costs.expected_seconds() == 4.0


def test_a_damaged_file_counts_as_none(tmp_path: Path) -> None:
    (tmp_path / "pyro_vae_seconds.json").write_text('{"no": "list"}')
    assert costs.expected_seconds() == 15.0
    costs.note_seconds(3.0)
    assert costs.expected_seconds() == 3.0


@pytest.mark.parametrize(("seconds", "compiles"), [(0.01, False), (0.02, True)])
def test_the_choice(seconds: float, compiles: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of the 4000 steps that are left is compared with 15 seconds."""
    now = [0.0]
    monkeypatch.setattr(compile_choice.time, "perf_counter", lambda: now[0])
    choice = CompileChoice(5000)
    choice.start()
    for _ in range(1000):
        now[0] += seconds
        choice.step()
    assert choice.compiles(1000, Ranks()) == compiles
    assert not CompileChoice(None).compiles(0, Ranks())


@pytest.mark.parametrize("kind", ["in memory", "an endless loader"])
def test_fit_chooses(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the first epoch, or after some steps of a first epoch that does not end."""
    monkeypatch.setattr(compile_choice, "FEWEST", 3)
    monkeypatch.setattr(compile_choice, "expected_seconds", lambda: 1e-6)
    vae = pv.VAE(4, latent_dim=2, hidden=(3,))
    x = torch.rand(12, 4).round()
    seen: list[int] = []

    class Endless:
        def __iter__(self) -> Any:
            while True:
                yield x[:4]

    def note(p: list[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.SGD(p, lr=0.01)

    def graphs(state: Any) -> None:
        seen.append(state.svi.compilation.graphs)

    if kind == "in memory":
        pv.fit(vae.model, vae.guide, x, epochs=3, batch_size=4, optim=note, progress=False, callbacks=[graphs])
        assert seen == [0, 1, 1]
    else:
        pv.fit(vae.model, vae.guide, Endless(), steps=9, optim=note, progress=False, callbacks=[graphs])
        assert seen == [1]
