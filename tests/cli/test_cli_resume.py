"""`pyro-vae train --resume`."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from pyro_vae.cli import main
from pyro_vae.runs import load_run
from pyro_vae.training.history import History
from pyro_vae.training.svi import SVI
from tests.helpers.run_damage import reseal

QUICK = ["train", "--model.hidden", "[8]", "--model.latent_dim", "2", "--num_samples", "5", "--lr_schedule", "cosine"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return tmp_path


def stop_in_step(monkeypatch: pytest.MonkeyPatch, number: int, kind: int) -> None:
    """Let the process be stopped by a signal in a certain step."""
    update, count = SVI.update, 0

    def counted(svi: SVI) -> None:
        nonlocal count
        count += 1
        if count == number:
            os.kill(os.getpid(), kind)
        update(svi)

    monkeypatch.setattr(SVI, "update", counted)


def figures(path: str) -> list[dict[str, Any]]:
    rows = History.load(Path(path, "metrics.csv")).to_dicts()
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def error_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert main(list(words)) in (1, 2, 130)
    return capsys.readouterr().err


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_goes_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: int) -> None:
    assert main([*QUICK, "--epochs", "3", "--out", "whole"]) == 0
    with monkeypatch.context() as patch:
        stop_in_step(patch, 20, kind)
        message = error_of(capsys, *QUICK, "--epochs", "3", "--out", "stopped")
    assert "interrupted: trained for 1 epoch" in message
    assert "`pyro-vae train --resume stopped` resumes it" in message
    assert len(figures("stopped")) == 1
    assert main(["train", "--resume", "stopped"]) == 0
    assert figures("stopped") == figures("whole")
    whole, stopped = (load_file(f"{name}/weights.safetensors") for name in ("whole", "stopped"))
    assert all(torch.equal(value, stopped[name]) for name, value in whole.items())


def test_a_run_stopped_in_its_first_epoch_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        stop_in_step(patch, 3, signal.SIGINT)
        assert "no epoch was completed" in error_of(capsys, *QUICK, "--epochs", "2", "--out", "a")
    assert main(["train", "--resume=a"]) == 0
    assert [row["epoch"] for row in figures("a")] == [1, 2]


def test_a_finished_run_is_extended(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*QUICK, "--epochs", "1", "--out", "a"]) == 0
    assert main(["train", "--resume", "a", "--epochs", "2"]) == 0
    assert len(figures("a")) == 2
    assert yaml.safe_load(Path("a/config.yaml").read_text())["epochs"] == 2
    message = error_of(capsys, "train", "--resume", "a", "--lr", "0.5", "--model.latent_dim", "3")
    assert "lr was 0.001, is now 0.5" in message
    assert "latent_dim" in message
    assert "Only epochs, steps" in message
    assert len(figures("a")) == 2


def test_there_must_be_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert "nothing holds no config.yaml" in error_of(capsys, "train", "--resume", "nothing")
    assert not Path("nothing").exists()


@pytest.mark.parametrize("entry", ["model", "elbo"])
def test_code_of_a_stranger_is_not_run(capsys: pytest.CaptureFixture[str], here: Path, entry: str) -> None:
    (here / "canary.py").write_text("open('sang', 'w').close()\nfrom pyro_vae import VAE as Bird\n")
    assert main([*QUICK, "--epochs", "1", "--out", "a"]) == 0
    config = yaml.safe_load(Path("a/config.yaml").read_text())
    config[entry] = {"class_path": "canary.Bird", "init_args": {}}
    Path("a/config.yaml").write_text(yaml.safe_dump(config))
    assert "its checksum is not the one in run.json" in error_of(capsys, "train", "--resume", "a", "--epochs", "2")
    reseal(Path("a"))
    assert "canary.Bird" in error_of(capsys, "train", "--resume", "a", "--epochs", "2")
    assert not Path("sang").exists()


def test_overwriting_begins_anew(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*QUICK, "--epochs", "2", "--out", "a"]) == 0
    assert main([*QUICK, "--epochs", "1", "--out", "a", "--overwrite", "true", "--lr", "0.01"]) == 0
    assert len(list(Path("a/checkpoints").glob("*.json"))) == 1
    assert main(["train", "--resume", "a", "--epochs", "2"]) == 0
    assert len(figures("a")) == 2


def test_estimators_by_site_are_stored_and_resumed(capsys: pytest.CaptureFixture[str]) -> None:
    mixture = [
        *QUICK,
        "--lr_schedule",
        "constant",
        "--model",
        "GMVAE",
        "--model.num_classes",
        "3",
        "--elbo.y",
        "enum",
        "--elbo.z",
        "stl",
    ]
    assert main([*mixture, "--epochs", "2", "--out", "whole"]) == 0
    assert main([*mixture, "--epochs", "1", "--out", "half"]) == 0
    assert main(["train", "--resume", "half", "--epochs", "2"]) == 0
    for path in ("whole", "half"):
        assert yaml.safe_load(Path(path, "config.yaml").read_text())["elbo"] == {"y": "enum", "z": "stl"}
    assert load_run("half").history.elbo == "y=enum, z=stl"
    assert figures("half") == figures("whole")
    assert main(["train", "--resume", "half", "--epochs", "3", "--elbo.y", "disarm"]) == 1
    assert "elbo was {'y': 'enum', 'z': 'stl'}, is now" in capsys.readouterr().err
    words = ["--num_particles", "[2]", "--repeats", "4", "--num_data", "10"]
    assert main(["compare-elbos", "half", "--estimators", "[{y: enum, z: stl}, trace]", *words]) == 0
    assert "y=enum, z=stl" in capsys.readouterr().out
