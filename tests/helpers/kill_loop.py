"""Every command that changes a run is killed at each of its changes of a file, and what is left is looked at.

`python -m tests.helpers.kill_loop` does it for all changes of all commands.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.cli import main
from pyro_vae.runs import list_runs
from pyro_vae.support.files import checksum
from tests.helpers.dying import DIED, die_at, in_a_child

__all__ = ["SCENARIOS", "Scenario", "kill_everywhere"]

QUICK = ("--num_samples", "2", "--device", "cpu", "--compile", "false", "--preflight", "false", "--batch_size", "20")
SMALL = ("--model.hidden", "[4]", "--model.latent_dim", "2")


def call(*words: Any) -> int:
    """Run a command in this process."""
    return main([*map(str, words)])


@dataclass(frozen=True)
class Scenario:
    """A command and what must hold after it was killed.

    Attributes:
        prepare: Makes what is there before, in a folder.
        command: Run in a copy of that folder.
        state: What can be read in a folder, as a value that can be compared; it raises if anything is torn.
        following: What must work after a kill, and lead to the state that the undisturbed command leaves.
    """

    prepare: Callable[[Path], Any]
    command: Callable[[Path], Any]
    state: Callable[[Path], Any]
    following: Callable[[Path], Any]


def _data(folder: Path) -> None:
    rng = np.random.default_rng(0)
    x = (rng.random((80, 1, 8, 8)) < 0.4).astype("float32")
    np.savez(folder / "data.npz", x=x, y=np.arange(80) % 2)


def _train(folder: Path, *words: Any) -> int:
    source = ("--data", folder.parent / "data.npz", "--binarize", "none")
    return call(
        "train", *source, *QUICK, *SMALL, "--epochs", 1, "--checkpoint_steps", 2, "--out", folder / "run", *words
    )


def _old_run(folder: Path) -> None:
    assert _train(folder) == 0


def _run_state(folder: Path) -> Any:
    """The run, whole: seed, number of epochs and weights; and the log p(x) that the table shows, which is of these."""
    run = folder / "run"
    if not any((run / name).exists() for name in ("run.json", "config.yaml", "weights.safetensors")):
        return None
    loaded = pv.load_run(run)
    weights = {name: value.flatten()[:50].tolist() for name, value in loaded.pair.state_dict().items()}
    row = list_runs(folder).rows[0]
    assert not row.problem, row.problem
    if row.log_prob is not None and (run / "evaluation-test.json").exists():
        written = json.loads((run / "evaluation-test.json").read_text())
        assert written["weights"] == loaded.record["files"]["weights.safetensors"]
    return loaded.config["seed"], len(loaded.history), weights


def _train_again(folder: Path) -> int:
    """What a user does after a kill: resume the run if there is one, else start it again."""
    if (folder / "run" / "run.json").exists():
        return call("train", "--resume", folder / "run", "--num_samples", 2)
    return _train(folder)


def _files_state(*names: str) -> Callable[[Path], Any]:
    """The content of files of a run, each of which is there whole or not at all; and the run."""

    def state(folder: Path) -> Any:
        found = {name: (folder / "run" / name).read_bytes() for name in names if (folder / "run" / name).exists()}
        values = {name: json.loads(content) for name, content in found.items() if name.endswith(".json")}
        return _run_state(folder)[:2], values, {name: checksum(content) for name, content in found.items()}

    return state


def _quality(folder: Path) -> int:
    return call("quality", folder / "run", "--feature_steps", 2, "--num_data", 16)


class Pair(nn.Module):
    """A pair for `save_pair`."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.net = nn.Linear(2, 2)
        with torch.no_grad():
            self.net.weight.fill_(value)

    def model(self, x: Tensor) -> None:
        pyro.module("net", self.net)

    def guide(self, x: Tensor) -> None:
        pass


def _save(value: float) -> Callable[[Path], Any]:
    def save(folder: Path) -> None:
        pyro.clear_param_store()  # of what trained before
        pair = Pair(value)
        pv.save_pair(folder / "pair", pair.model, pair.guide)

    return save


def _pair_state(folder: Path) -> Any:
    pair = Pair(0.0)
    pv.load_pair(folder / "pair", pair.model, pair.guide)
    return pair.net.weight.tolist()


SCENARIOS = {
    "train": Scenario(lambda folder: None, _train, _run_state, _train_again),
    "resume": Scenario(
        _old_run,
        lambda f: call("train", "--resume", f / "run", "--epochs", 2, "--num_samples", 2, "--checkpoint_steps", 2),
        _run_state,
        lambda f: call("train", "--resume", f / "run", "--epochs", 2, "--num_samples", 2),
    ),
    "overwrite": Scenario(
        _old_run,
        lambda f: _train(f, "--overwrite", "true", "--seed", 7),
        _run_state,
        # the old run, or the new one, is resumed; then the new one is made
        lambda f: _train_again(f) or _train(f, "--overwrite", "true", "--seed", 7),
    ),
    "evaluate": Scenario(
        _old_run,
        lambda f: call("evaluate", f / "run", "--num_samples", 3),
        _files_state("evaluation-test.json"),
        lambda f: call("evaluate", f / "run", "--num_samples", 3),
    ),
    "quality": Scenario(
        _old_run, _quality, _files_state("quality.json", "quality.csv", "features.safetensors"), _quality
    ),
    "save_pair": Scenario(_save(1.0), _save(2.0), _pair_state, _save(2.0)),
}


def kill_everywhere(name: str, folder: Path, *, start: int = 1, stride: int = 1) -> tuple[int, int]:
    """Kill the command of a scenario at each change, or at every `stride`-th from `start` on.

    Returns:
        tuple: The number of kills, and of them those after which the new state was there.

    Raises:
        AssertionError: If what was left was neither the old nor the new state, or the next command failed.
    """
    scenario = SCENARIOS[name]
    _data(folder)
    before, work, after = folder / "before", folder / "work", folder / "after"
    before.mkdir()
    scenario.prepare(before)
    shutil.copytree(before, after)
    assert in_a_child(lambda: scenario.command(after)) == 0
    old, new = scenario.state(before), scenario.state(after)
    partial = name in ("train", "overwrite", "quality")  # their new state has stages: a run is saved, then trained on
    kills = arrived = 0
    for number in range(start, 10**6, stride):
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(before, work)

        def dying(number: int = number) -> Any:
            die_at(number, work)
            return scenario.command(work)

        status = in_a_child(dying)
        if status == 0:
            break
        place = f"{name}, killed at change {number}"
        assert status == DIED, f"{place}: exit status {status}"
        kills += 1
        found = scenario.state(work)
        arrived += found == new
        if not partial:
            assert found in (old, new), f"{place}: {found}"
        elif name == "overwrite":
            assert found == old or found[0] == new[0], f"{place}: {found}"
        assert in_a_child(lambda: scenario.following(work)) == 0, f"{place}: the next command failed"
        assert scenario.state(work) == new, f"{place}: the next command led elsewhere"
        assert not list(work.rglob(".pending-*")), place
    return kills, arrived


if __name__ == "__main__":
    torch.set_num_threads(1)
    for chosen in sys.argv[1:] or SCENARIOS:
        with tempfile.TemporaryDirectory() as place:
            began = time.monotonic()
            print(chosen, *kill_everywhere(chosen, Path(place)), f"{time.monotonic() - began:.0f} s", flush=True)
