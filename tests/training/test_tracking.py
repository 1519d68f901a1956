"""Trackers: what reaches files and services, with stand-ins for the packages that may be missing."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import pyro_vae as pv
from pyro_vae.training.fitting import State
from pyro_vae.training.history import Epoch, History
from pyro_vae.training.tracking import JSONLines, MLflow, TensorBoard, WandB

NAMES = {"epoch", "loss", "train_elbo", "valid_elbo", "log_likelihood", "kl", "kl_weight", "lr", "seconds"}


def _state(*epochs: int, **changes: Any) -> State:
    values = {"loss": 9.0, "train_elbo": -8.0, "valid_elbo": None, "log_likelihood": -7.0, "kl": 1.0}
    values |= {"kl_weight": 1.0, "lr": 0.1, "seconds": 0.5, **changes}
    return State(History([Epoch(epoch=n, step=10 * n, **values) for n in epochs]), None)  # type: ignore[arg-type]


class Recorder:
    """Stands in for a module or an object: notes every call of it and of what it gives."""

    def __init__(self, calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]], name: str = "") -> None:
        self._calls, self._name = calls, name

    def __getattr__(self, name: str) -> Recorder:
        return Recorder(self._calls, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Recorder:
        self._calls.append((self._name, args, kwargs))
        return Recorder(self._calls)


def _stand_in(monkeypatch: pytest.MonkeyPatch, name: str) -> list[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
    monkeypatch.setitem(sys.modules, name, Recorder(calls))
    return calls


def test_json_lines_of_a_training(tmp_path: Path) -> None:
    data = pv.data.load("digits", flatten=True, binarize="static")
    vae = pv.VAE(data.shape, latent_dim=2, hidden=(4,))
    path = tmp_path / "new" / "metrics.jsonl"
    history = pv.fit(vae.model, vae.guide, data, epochs=2, steps=None, callbacks=[JSONLines(path)])
    assert [json.loads(line) for line in path.read_text().splitlines()] == [asdict(epoch) for epoch in history]


def test_json_lines_after_a_resumption(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    first = JSONLines(path)
    for n in (1, 2, 3):
        first(_state(*range(1, n + 1)))
    again = JSONLines(path)  # another process, from a checkpoint after epoch 1
    again(_state(1, 2))
    again(_state(1, 2, 3))
    assert [json.loads(line)["epoch"] for line in path.read_text().splitlines()] == [1, 2, 3]


def test_json_has_no_nan(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    JSONLines(path)(_state(1, loss=float("nan")))
    assert json.loads(path.read_text())["loss"] is None
    assert json.loads(path.read_text())["valid_elbo"] is None


def test_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = _stand_in(monkeypatch, "torch.utils.tensorboard")
    with TensorBoard(tmp_path) as tracker:
        assert calls == []  # nothing is made before there is something to show
        tracker(_state(1, 2, valid_elbo=-9.0))
        tracker(_state(1, 2, 3, valid_elbo=float("inf")))
    assert calls[0] == ("SummaryWriter", (str(tmp_path),), {"purge_step": 20})
    scalars = [args for name, args, _ in calls if name == "add_scalar"]
    assert {name for name, _, step in scalars if step == 20} == NAMES
    assert {name for name, _, step in scalars if step == 30} == NAMES - {"valid_elbo"}
    assert ("train_elbo", -8.0, 20) in scalars
    assert [name for name, *_ in calls if name != "add_scalar"] == ["SummaryWriter", "flush", "flush", "close"]


def test_wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = _stand_in(monkeypatch, "wandb")
    with WandB("project", config={"lr": 0.1}, mode="offline") as tracker:
        tracker(_state(1))
    assert calls[0] == ("init", (), {"project": "project", "config": {"lr": 0.1}, "mode": "offline"})
    (metrics,) = calls[1][1]
    assert (calls[1][0], calls[1][2], set(metrics)) == ("log", {"step": 10}, NAMES - {"valid_elbo"})
    assert metrics["kl"] == 1.0
    assert calls[2][0] == "finish"


def test_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = _stand_in(monkeypatch, "mlflow")
    config = {"lr": 0.1, "model": {"init_args": {"latent_dim": 2}}}
    with MLflow("experiment", config=config, run_name="first") as tracker:
        tracker(_state(1))
    assert [name for name, *_ in calls] == ["set_experiment", "start_run", "log_params", "log_metrics", "end_run"]
    assert calls[1][2] == {"run_name": "first"}
    assert calls[2][1] == ({"lr": 0.1, "model.init_args.latent_dim": 2},)
    assert set(calls[3][1][0]) == NAMES - {"valid_elbo"}
    assert calls[3][2] == {"step": 10}


@pytest.mark.parametrize(
    ("make", "module", "package"),
    [
        (lambda: TensorBoard("x"), "torch.utils.tensorboard", "tensorboard"),
        (lambda: WandB("x"), "wandb", "wandb"),
        (lambda: MLflow("x"), "mlflow", "mlflow"),
    ],
)
def test_what_is_not_installed(make: Any, module: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=f"needs the package {package}.*pip install {package}"):
        make()


def test_a_tracker_never_ends_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a callback returns ends the run if it is true; what a service's `log` returns must not."""
    service = SimpleNamespace(init=lambda **_: SimpleNamespace(log=lambda *_, **__: True))
    monkeypatch.setitem(sys.modules, "wandb", service)
    assert WandB("x")(_state(1)) is None
