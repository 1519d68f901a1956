"""What is lost when training is killed? Nothing: the run goes on with the same bits.

    python examples/resume.py
    python examples/resume.py --epochs 4          # a glance

A VAE is trained on the built-in digits in one go. Then it is trained again in processes that are killed (SIGKILL) at
random moments, each of which goes on from the latest checkpoint that the one before had written. At the end weights and
figures are compared: they are equal to the last bit. The picture shows the ELBO after each epoch, and who computed it.

On a 2-core CPU, one thread: 46 seconds, most of them for starting processes; it was killed five times before it ended.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyro
import torch
from matplotlib.figure import Figure
from rich.console import Console
from safetensors.torch import load_file, save_file

import pyro_vae as pv
from pyro_vae.training.fitting import State


def train(folder: str, epochs: int) -> None:
    """The same script each time: it goes on where there is something to go on with."""
    torch.set_num_threads(1)
    pyro.clear_param_store()
    torch.manual_seed(0)
    data = pv.data.load("digits", flatten=True, binarize="dynamic", valid=0.1)
    vae = pv.VAE(64, 5, hidden=(64,)).start_at_mean(data.mean)

    def note(state: State) -> None:
        with open(Path(folder) / "who.jsonl", "a") as file:
            file.write(json.dumps([state.epoch.epoch, os.getpid()]) + "\n")

    history = pv.fit(
        vae.model,
        vae.guide,
        data,
        epochs=epochs,
        seed=0,
        lr=3e-3,
        lr_schedule="cosine",
        checkpoints=pv.Checkpoints(Path(folder) / "checkpoints", steps=5),
        resume=True,
        callbacks=[note],
        preflight=False,
    )
    save_file(vae.state_dict(), Path(folder) / "weights.safetensors")
    history.save(Path(folder) / "metrics.csv")


def rows(folder: Path) -> list[dict[str, Any]]:
    return [
        {k: v for k, v in row.items() if k != "seconds"} for row in pv.History.load(folder / "metrics.csv").to_dicts()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--kills", type=int, default=6)
    parser.add_argument("--folder", type=str, default=None, help="Train there, and do nothing else.")
    options = parser.parse_args()
    if options.folder is not None:
        return train(options.folder, options.epochs)
    console, draw = Console(), random.Random(0)
    base = Path(tempfile.mkdtemp())
    whole, broken = base / "whole", base / "broken"
    for folder in (whole, broken):
        folder.mkdir()

    def start(folder: Path) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, __file__, "--folder", str(folder), "--epochs", str(options.epochs)])

    start(whole).wait()
    kills = 0
    for _ in range(options.kills):
        process = start(broken)
        written = set((broken / "checkpoints").glob("*.json"))
        while process.poll() is None and set((broken / "checkpoints").glob("*.json")) <= written:
            time.sleep(0.01)  # until it has gone further than the one before
        time.sleep(draw.uniform(0, 1.0))
        if process.poll() is not None:
            break
        process.kill()
        process.wait()
        kills += 1
        console.print(f"killed process {kills}")
    start(broken).wait()

    ours, theirs = (load_file(folder / "weights.safetensors") for folder in (broken, whole))
    equal = all(torch.equal(value, theirs[name]) for name, value in ours.items())
    console.print(
        f"after {kills} kills: weights equal to the bit: {equal}; figures equal: {rows(broken) == rows(whole)}"
    )

    who = dict(map(json.loads, (broken / "who.jsonl").read_text().splitlines()))
    figure = Figure(figsize=(7, 4), layout="constrained")
    ax = figure.subplots()
    history = rows(whole)
    ax.plot([r["epoch"] for r in history], [r["valid_elbo"] for r in history], color="0.75", lw=5, label="in one go")
    for number, pid in enumerate(dict.fromkeys(who.values()), 1):
        mine = [r for r in rows(broken) if who[r["epoch"]] == pid]
        ax.plot([r["epoch"] for r in mine], [r["valid_elbo"] for r in mine], ".-", ms=5, lw=1, color=f"C{number}")
    ax.plot([], [], ".-", color="C1", label=f"in {kills + 1} processes, one color each")
    ax.set(xlabel="epoch", ylabel="validation ELBO, nats per datum", title="Killed and resumed: the same run")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False)
    Path("pictures").mkdir(exist_ok=True)
    figure.savefig("pictures/resume.png", dpi=150)
    console.print("pictures/resume.png")


if __name__ == "__main__":
    main()
