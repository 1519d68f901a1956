"""What a stranger's run may do when it is resumed, evaluated or listed: nothing outside its directory."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

import pyro_vae as pv
from pyro_vae.cli import main
from pyro_vae.runs import create_run, list_runs, load_run, save_json, save_run, train
from pyro_vae.runs.machine import commit
from pyro_vae.runs.run import check_resumable
from pyro_vae.support.formats import parse_yaml, parsing
from pyro_vae.support.memory import TooLarge, limited_tensors
from tests.helpers import paths
from tests.helpers.run_damage import reseal, rewrite

STORED = paths.STORED / "format_2" / "vae"
CANARY = "import pathlib; pathlib.Path(__file__).with_name('sang').write_text('')\n"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return shutil.copytree(STORED, tmp_path / "runs" / "a")


@pytest.fixture
def sang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], bool]:
    """Whether the module `canary`, which can be imported, was."""
    (tmp_path / "canary.py").write_text(CANARY + "class Song:\n    pass\n\ndef sing(*args):\n    return 1.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(sys.modules, "canary", None)
    del sys.modules["canary"]
    return lambda: (tmp_path / "sang").exists()


def error_of(capsys: pytest.CaptureFixture[str], *words: Any) -> str:
    assert main([*map(str, words)]) != 0
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.class_path", "canary.Song"),
        ("model.init_args.encoder", "canary.sing"),
        ("lr_schedule.class_path", "canary.Song"),
        ("elbo", "canary.Song"),
        ("lr_schedule", {"class_path": "canary.Song"}),
        ("optim", "canary.sing"),
        ("precision", "canary.sing"),
        ("config", "evil.yaml"),
        ("callbacks", ["canary.sing"]),
        ("device", "canary.sing"),
    ],
)
def test_what_a_configuration_may_say(
    run: Path, sang: Callable[[], bool], capsys: pytest.CaptureFixture[str], key: str, value: Any
) -> None:
    rewrite(run / "config.yaml", lambda c: c.update({key: value}))
    reseal(run)
    message = error_of(capsys, "train", "--resume", run, "--epochs", 3)
    assert "config.yaml" in message
    assert "trust" in message
    assert not sang()


def test_the_configuration_of_a_resumed_run_is_that_of_its_record(run: Path) -> None:
    assert check_resumable(run)["model"]["init_args"]["activation"] == "elu"
    rewrite(run / "config.yaml", lambda c: c["model"]["init_args"].update(activation="tanh"))
    for trust in (False, True):
        with pytest.raises(ValueError, match=r"config\.yaml is damaged, or was changed after training"):
            check_resumable(run, trust=trust)


@pytest.mark.parametrize("trust", ["no", "false", 1, None])
def test_trust_is_true_or_false(run: Path, trust: Any) -> None:
    with pytest.raises(TypeError, match="trust must be True or False"):
        load_run(run, trust=trust)


@pytest.mark.parametrize(("word", "status"), [("false", 0), ("no", 0), ("yes please", 2)])
def test_only_trust_true_looks_into_the_current_folder(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str, status: int
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for words in (["sample", str(run), "--num", "2"], ["train", "--resume", str(run), "--num_samples", "2"]):
        assert main([*words, "--trust", word]) == status
        assert str(tmp_path) not in sys.path
    assert main(["sample", str(run), "--num", "2", "--trust", "true"]) == 0
    assert str(tmp_path) in sys.path


def test_links_inside_a_run_are_strangers_and_those_to_it_are_not(run: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "big-model.safetensors").write_bytes(b"x")
    (tmp_path / "short").symlink_to(run)
    assert load_run(tmp_path / "short").pair.latent_dim == 2
    (run / "checkpoints").symlink_to(mine)
    assert main(["train", "--resume", str(run), "--epochs", "3", "--num_samples", "2"]) == 1
    assert os.listdir(mine) == ["big-model.safetensors"]


def test_a_folder_and_a_download_need_the_word_of_the_user(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def download(*args: Any, **options: Any) -> Any:
        if options.get("download"):
            raise Killed
        raise RuntimeError("not there")

    monkeypatch.setattr("torchvision.datasets.MNIST", download)
    there = tmp_path / "made" / "by" / "stranger"
    rewrite(run / "config.yaml", lambda c: c.update(data="mnist", root=str(there)))
    reseal(run)
    assert "pass it as root= (--root" in error_of(capsys, "train", "--resume", run, "--epochs", 3)
    assert not (tmp_path / "made").exists()
    there.mkdir(parents=True)
    for words in (["train", "--resume", run, "--epochs", 3], ["evaluate", run, "--num_samples", 2]):
        assert "nothing is downloaded for a run that is not trusted" in error_of(capsys, *words)
    rewrite(run / "config.yaml", lambda c: c.update(root=None))
    reseal(run)
    assert "nothing is downloaded" in error_of(capsys, "evaluate", run, "--num_samples", 2)
    with pytest.raises(Killed):  # the user has named the folder
        load_run(run).data(str(there))


class Killed(BaseException):
    """In place of SIGKILL: nothing in the library catches it."""


class Tabulated(nn.Module):
    """A part whose size depends on a value, so that it cannot be built without data; most of it is a buffer."""

    table: torch.Tensor

    def __init__(self, size: int = 10) -> None:
        super().__init__()
        counted = int(torch.tensor([size]).item())
        self.register_buffer("table", torch.zeros(counted, 1024))


@pytest.mark.parametrize(
    "part",
    [
        {"hidden": [2**31]},
        {"hidden": [1, 2**24, 1]},
        {"latent_dim": 2**40},
    ],
)
def test_parts_far_larger_than_the_weights_are_not_built(run: Path, part: Any) -> None:
    rewrite(run / "config.yaml", lambda c: c["model"]["init_args"].update(part))
    reseal(run)
    for read in (load_run, check_resumable):
        with pytest.raises(ValueError, match=r"config\.yaml describes a model that takes more than"):
            read(run)


def test_the_limit_counts_buffers_and_what_depends_on_values() -> None:
    with limited_tensors(10**6):
        Tabulated(10)
    for size in (10**3, 2**40):
        with pytest.raises(TooLarge), limited_tensors(10**6):
            Tabulated(size)
    with limited_tensors(10**6):  # neither views nor changes in place take anything
        x = torch.zeros(10**5)
        for _ in range(1000):
            x.view(10, -1).add_(1).normal_()
    with pytest.raises(TooLarge), limited_tensors(10**6):
        torch.randn(10**6, generator=torch.Generator().manual_seed(0))
    with pytest.raises(TooLarge), limited_tensors(10**6):
        torch.cat([torch.zeros(1000)] * 300)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1" + ":1" * 400_000, "a number of 800,001 characters"),
        ("seed: 1:30", "a number of base 60"),
        ("seed: !!timestamp x", "constructor for the tag"),
        ("seed: 0x" + "f" * 500_000, "a number of"),
        ("'" + "x\n" * 500_000 + "'", ""),
    ],
)
def test_yaml_that_would_take_long(tmp_path: Path, text: str, message: str) -> None:
    done = threading.Event()

    def read() -> None:
        try:
            with parsing(tmp_path / "a.yaml"):
                parse_yaml(text.encode())
        except ValueError as error:
            problems.append(str(error))
        done.set()

    problems: list[str] = []
    threading.Thread(target=read, daemon=True).start()
    assert done.wait(60)
    assert bool(problems) == bool(message)
    if message:
        with pytest.raises(ValueError, match=message):
            parse_yaml(text.encode())


def test_numbers_that_a_configuration_has_are_read(tmp_path: Path) -> None:
    values = {"a": 10, "b": -1.5e-3, "c": "1:30", "d": [1, 2.0], "e": "x" * 1000, "f": float("inf"), "g": "2020-01-01"}
    assert parse_yaml(yaml.safe_dump(values).encode()) == values


def test_no_control_characters_reach_the_terminal(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evil = "\x1b]0;owned\x07\x1b[31m"
    rewrite(run / "config.yaml", lambda c: c.update(data=f"{evil}.npz"))
    rewrite(run / "run.json", lambda r: r.update(elbo=evil, stopped=evil))
    reseal(run)
    assert main(["runs", str(run.parent)]) == 0
    assert main(["runs", "--compare", str(run), str(STORED)]) == 0
    assert main(["evaluate", str(run)]) == 1
    printed = capsys.readouterr()
    text = printed.out + printed.err + repr(list_runs(run.parent)) + repr(load_run(run).history)
    assert {c for c in text if not c.isprintable()} <= {"\n"}


def test_saving_runs_no_program_of_the_repository(tmp_path: Path) -> None:
    """Neither filters nor hooks nor a monitor; what only they could tell is not told."""
    repository = tmp_path / "theirs"
    repository.mkdir()

    def git(*words: str) -> None:
        who = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        subprocess.run(["git", "-C", str(repository), *who, *words], check=True, capture_output=True)

    git("init")
    (repository / "a.dat").write_text("one")
    git("add", ".")
    git("commit", "-m", "first")
    clean = commit(repository)
    assert clean is not None
    assert clean["dirty"] is False
    evil = f"touch {tmp_path / 'sang'}; cat"
    (repository / ".gitattributes").write_text("*.dat filter=evil=x\n")
    for key in ("filter.evil=x.clean", "filter.evil=x.smudge", "filter.evil=x.process", "core.fsmonitor"):
        git("config", key, evil)
    for hook in ("post-index-change", "reference-transaction"):
        (repository / ".git" / "hooks" / hook).write_text(f"#!/bin/sh\n{evil}\n")
        (repository / ".git" / "hooks" / hook).chmod(0o755)
    (repository / "a.dat").write_text("two")
    commit.cache_clear()
    found = commit(repository)
    assert not (tmp_path / "sang").exists()
    assert found == {"commit": clean["commit"], "dirty": None}
    commit.cache_clear()
    subprocess.run(["git", "-C", str(repository), "status"], check=True, capture_output=True)
    assert (tmp_path / "sang").exists()  # as it would have been


X = (torch.rand(40, 8, generator=torch.Generator().manual_seed(0)) < 0.5).float()
OPTIONS: dict[str, Any] = {
    "init_args": {"latent_dim": 2, "hidden": [4]},
    "batch_size": 20,
    "progress": False,
    "preflight": False,
}


def test_overwriting_keeps_the_old_run_until_the_new_one_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "a"
    old = train(pv.VAE, X, out=out, epochs=2, seed=1, **OPTIONS)
    save_json(out / "quality.json", {"a": 1})
    (out / "features.safetensors").write_bytes(b"x")
    (out / "notes.txt").write_text("mine")
    before = sorted(path.name for path in out.rglob("*"))

    def killed(*args: Any, **options: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("pyro_vae.runs.writing.save_run", killed)
        with pytest.raises(Killed):
            train(pv.VAE, X, out=out, epochs=2, seed=2, overwrite=True, **OPTIONS)
    assert load_run(out).config["seed"] == 1
    assert sorted(path.name for path in out.rglob("*")) == before
    with monkeypatch.context() as patch:  # after the first checkpoint of the new one, in its first epoch
        patch.setattr("pyro_vae.runs.writing.RunWriter.__call__", killed)
        with pytest.raises(Killed):
            train(pv.VAE, X, out=out, epochs=2, seed=2, overwrite=True, checkpoint_steps=1, **OPTIONS)
    new = load_run(out)
    assert (new.config["seed"], len(new.history)) == (2, 0)
    assert sorted(path.name for path in out.iterdir() if path.suffix in (".json", ".txt")) == ["notes.txt", "run.json"]
    assert not (out / "features.safetensors").exists()
    again = train(pv.VAE, X, out=out, epochs=2, seed=2, resume=True, **OPTIONS)
    assert len(again.history) == 2
    assert old.history[0].loss != again.history[0].loss


def test_a_reader_of_a_run_that_is_being_saved_sees_one_of_its_states(run: Path) -> None:
    loaded = load_run(run)
    stop = threading.Event()

    def save() -> None:
        while not stop.is_set():
            with torch.no_grad():
                for p in loaded.pair.parameters():
                    p.add_(1e-3)
            save_run(run, loaded.pair, loaded.config, loaded.record["data"], loaded.history)

    thread = threading.Thread(target=save)
    thread.start()
    try:
        for _ in range(60):
            found = load_run(run)
            offsets = [
                torch.cat([p.flatten() for p in pair.parameters()]).mean().item() for pair in (found.pair, loaded.pair)
            ]
            assert offsets[0] <= offsets[1] + 1e-4
    finally:
        stop.set()
        thread.join()


def test_an_evaluation_is_of_the_weights_that_it_measured(run: Path) -> None:
    (run / "evaluation-test.json").unlink()  # of an earlier version, and of more data
    assert main(["evaluate", str(run), "--num_samples", "2", "--num_data", "20"]) == 0
    assert list_runs(run.parent).rows[0].log_prob is not None
    kept = (run / "evaluation-test.json").read_bytes()
    loaded = load_run(run)
    save_run(run, loaded.pair, loaded.config, loaded.record["data"], loaded.history)
    assert (run / "evaluation-test.json").read_bytes() == kept  # the same weights
    with torch.no_grad():
        next(loaded.pair.parameters()).add_(1.0)
    save_run(run, loaded.pair, loaded.config, loaded.record["data"], loaded.history)
    assert not (run / "evaluation-test.json").exists()
    (run / "evaluation-test.json").write_bytes(kept)  # as after a kill, or by hand
    assert list_runs(run.parent).rows[0].log_prob is None


def test_the_files_of_a_private_run_stay_private(run: Path) -> None:
    for file in run.iterdir():
        file.chmod(0o600)
    loaded = load_run(run)
    with torch.no_grad():
        next(loaded.pair.parameters()).add_(1.0)
    save_run(run, loaded.pair, loaded.config, loaded.record["data"], loaded.history)
    save_json(run / "evaluation-test.json", {"log_prob": 1.0})
    assert main(["sample", str(run), "--num", "2"]) == 0
    assert {file.name: oct(file.stat().st_mode & 0o777) for file in run.iterdir() if file.stat().st_mode & 0o077} == {}


def test_a_directory_of_a_run_that_was_killed_before_it_was_saved_is_free(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    (folder / "checkpoints").mkdir(parents=True)
    for name in ("checkpoints/.lock", ".pending-config.yaml", ".partial-run.json.0123456789abcdef"):
        (folder / name).write_text("")
    assert create_run(folder) == folder
    (folder / "checkpoints" / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="holds files, but no run"):
        create_run(folder)


def test_a_file_beside_a_run_does_not_pass_for_the_standard_library(run: Path) -> None:
    """As a `python -c "import json"` in its folder would take it to; the types of torch's classes are looked up."""
    (run / "json.py").write_text(CANARY)
    rewrite(
        run / "config.yaml", lambda c: c.update(model={"class_path": "torch.nn.BatchNorm1d", "init_args": {"a": 1}})
    )
    reseal(run)
    code = "from pyro_vae.runs import load_run\ntry:\n    load_run('.')\nexcept ValueError as error:\n    print(error)"
    command = [sys.executable, "-P", "-c", code]
    done = subprocess.run(
        command, cwd=run, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": str(paths.ROOT)}
    )
    assert "cannot build the model torch.nn.BatchNorm1d" in done.stdout
    assert not (run / "sang").exists()
