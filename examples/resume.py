"""What is lost when training is killed? Nothing: the resumed run is equal to the last bit.

    python examples/resume.py
    python examples/resume.py --epochs 4          # a short run

A VAE is trained on the built-in digits in one go. Then it is trained again in processes that are killed (SIGKILL) at
random moments; each resumes from the latest checkpoint of the one before. At the end weights and metrics are compared:
they are equal to the last bit. The picture shows the ELBO after each epoch, and the process that computed it.

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
    """Train, or resume from the latest checkpoint in the folder if there is one."""
    torch.set_num_threads(1)
    pyro.clear_param_store()
    torch.manual_seed(0)
    data = pv.data.load("digits", flatten=True, binarize="dynamic", valid=0.1)
    vae = pv.VAE(64, 5, hidden=(64,)).start_at_mean(data.mean)

    def record_process(state: State) -> None:
        with open(Path(folder) / "processes.jsonl", "a") as file:
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
        callbacks=[record_process],
        preflight=False,
    )
    save_file(vae.state_dict(), Path(folder) / "weights.safetensors")
    history.save(Path(folder) / "metrics.csv")


def metrics(folder: Path) -> list[dict[str, Any]]:
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
    uninterrupted, killed = base / "uninterrupted", base / "killed"
    for folder in (uninterrupted, killed):
        folder.mkdir()

    def start(folder: Path) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, __file__, "--folder", str(folder), "--epochs", str(options.epochs)])

    start(uninterrupted).wait()
    kills = 0
    for _ in range(options.kills):
        process = start(killed)
        written = set((killed / "checkpoints").glob("*.json"))
        while process.poll() is None and set((killed / "checkpoints").glob("*.json")) <= written:
            time.sleep(0.01)  # until it has written a new checkpoint
        time.sleep(draw.uniform(0, 1.0))
        if process.poll() is not None:
            break
        process.kill()
        process.wait()
        kills += 1
        console.print(f"killed process {kills}")
    start(killed).wait()

    resumed, expected = (load_file(folder / "weights.safetensors") for folder in (killed, uninterrupted))
    equal = all(torch.equal(value, expected[name]) for name, value in resumed.items())
    console.print(
        f"after {kills} kills: weights equal to the bit: {equal}; "
        f"metrics equal: {metrics(killed) == metrics(uninterrupted)}"
    )

    processes = dict(map(json.loads, (killed / "processes.jsonl").read_text().splitlines()))
    pv.plots.use_style()
    figure = Figure(figsize=(7, 4), layout="constrained")
    ax = figure.subplots()
    history = metrics(uninterrupted)
    ax.plot(
        [r["epoch"] for r in history], [r["valid_elbo"] for r in history], color="0.75", lw=5, label="uninterrupted"
    )
    for number, pid in enumerate(dict.fromkeys(processes.values()), 1):
        part = [r for r in metrics(killed) if processes[r["epoch"]] == pid]
        ax.plot([r["epoch"] for r in part], [r["valid_elbo"] for r in part], ".-", ms=5, lw=1, color=f"C{number}")
    ax.plot([], [], ".-", color="C1", label=f"{kills + 1} processes, one color each")
    ax.set(xlabel="epoch", ylabel="validation ELBO (nats per datum)", title="Killed and resumed: the same run")
    ax.legend()
    Path("pictures").mkdir(exist_ok=True)
    figure.savefig("pictures/resume.png", dpi=150)
    console.print("pictures/resume.png")


if __name__ == "__main__":
    main()
