"""Killed at any moment, a run goes on from its last complete checkpoint and loses nothing."""

from __future__ import annotations

import multiprocessing
import os
import random
import resource
import signal
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from safetensors.torch import load_file, save_file

import pyro_vae as pv

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")

EPOCHS, KILLS = 60, 12


def train(folder: str, seconds: float = 0.0) -> None:
    """One process of the run: from the latest checkpoint, if there is one, to the end."""
    torch.set_num_threads(1)
    pyro.clear_param_store()
    torch.manual_seed(0)
    pair = pv.VAE(64, 2, hidden=(8,))
    torch.manual_seed(1)
    gray = torch.rand(60, 64)
    data = pv.data.Data("noise", pv.data.Split(gray, dynamic=True), None, None, (64,), "dynamic", 0)
    every = pv.Checkpoints(Path(folder) / "checkpoints", steps=2, keep=2)
    history = pv.fit(
        pair.model,
        pair.guide,
        data,
        epochs=EPOCHS,
        batch_size=20,
        seed=0,
        lr_schedule="cosine",
        kl_weight=pv.elbo.Warmup(30),
        checkpoints=every,
        resume=True,
        preflight=False,
    )
    if history.stopped == "finished":
        save_file(pair.state_dict(), Path(folder) / "weights.safetensors")
        history.save(Path(folder) / "metrics.csv")


def metrics(folder: Path) -> list[dict[str, Any]]:
    rows = [asdict(epoch) for epoch in pv.History.load(folder / "metrics.csv")]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def latest(folder: Path) -> str:
    """The name of the latest whole checkpoint."""
    return max((file.name for file in (folder / "checkpoints").glob("*.json")), default="")


@pytest.fixture(scope="module")
def server() -> Any:
    """A process that has imported everything and from which others are forked, so that they start at once."""
    context = multiprocessing.get_context("forkserver")
    # optimizers import the first; the library imports its own parts only when they are used
    used = ["torch._dynamo", "pyro_vae.training.fitting", "pyro_vae.models.vae", "pyro_vae.training.checkpoints"]
    context.set_forkserver_preload([*used, "tests.training.test_crashes"])
    return context


@pytest.mark.slow
def test_killed_again_and_again(tmp_path: Path, server: Any) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    once = server.Process(target=train, args=(str(whole),))
    once.start()
    once.join()
    assert once.exitcode == 0
    draw, kills, halves = random.Random(0), 0, 0
    while kills < KILLS:
        process = server.Process(target=train, args=(str(broken),))
        process.start()
        before = latest(broken)
        while process.is_alive() and latest(broken) == before:
            time.sleep(0.001)  # until it has gone further
        if kills % 2:
            while process.is_alive() and not list((broken / "checkpoints").glob(".partial-*")):
                time.sleep(0.0002)  # these kills aim at a checkpoint that is half-written
        else:
            time.sleep(draw.uniform(0, 0.02))
        if not process.is_alive():
            break
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        kills += 1
        halves += bool(list((broken / "checkpoints").glob(".partial-*")))
    assert kills == KILLS, "the run ended before it was killed often enough"
    assert halves, "no kill came while a checkpoint was written"
    last = server.Process(target=train, args=(str(broken),))
    last.start()
    last.join()
    assert last.exitcode == 0
    assert metrics(broken) == metrics(whole)
    assert [row["epoch"] for row in metrics(broken)] == list(range(1, EPOCHS + 1))
    ours, theirs = (load_file(folder / "weights.safetensors") for folder in (broken, whole))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert not list((broken / "checkpoints").glob(".partial-*"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_writes_a_checkpoint(tmp_path: Path, server: Any, number: int) -> None:
    folder = tmp_path / "checkpoints"
    process = server.Process(target=train, args=(str(tmp_path),))
    process.start()
    while not list(folder.glob("*.json")):
        time.sleep(0.005)
    os.kill(process.pid, number)
    process.join(timeout=60)
    assert process.exitcode == 0
    saved = pv.Checkpoints(folder).load()
    assert saved is not None
    assert (tmp_path / "metrics.csv").exists() == (saved.values["at"]["epoch"] > EPOCHS)


def test_a_full_disk_is_said_and_the_checkpoint_before_stays(tmp_path: Path) -> None:
    """A limit on the size of files acts as a full disk does: in the middle of a file."""
    torch.manual_seed(0)
    pair = pv.VAE(64, 2, hidden=(64,))
    x = (torch.rand(40, 64) < 0.5).float()
    pv.fit(pair.model, pair.guide, x, epochs=2, seed=0, batch_size=20, checkpoints=tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.glob("checkpoint-*")}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
        with pytest.raises(
            OSError, match=r"cannot write the checkpoint of step 6 .* the checkpoint of step 4 there is intact"
        ):
            pv.fit(pair.model, pair.guide, x, epochs=3, seed=0, batch_size=20, resume=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert {file.name: file.read_bytes() for file in tmp_path.glob("*") if file.name != ".lock"} == before
    history = pv.fit(pair.model, pair.guide, x, epochs=3, seed=0, batch_size=20, resume=tmp_path)
    assert len(history) == 3
