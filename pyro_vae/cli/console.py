"""What several commands do: print, load a run, report its figures, draw its pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from torch import Tensor

from pyro_vae import plots
from pyro_vae.cli.parser import Parser
from pyro_vae.data import Split
from pyro_vae.evaluate import summarize
from pyro_vae.runs import LoadedRun, replacing, save_json

__all__ = ["add_run_options", "draw", "head", "report", "say", "save_arrays"]


def say(what: Any) -> None:
    """Print a line, never wrapped, or a table."""
    if isinstance(what, str):
        print(what)
    else:
        Console().print(what)


def add_run_options(parser: Parser) -> None:
    """The options of a command that looks at a run."""
    parser.add_argument("run", type=str, help="The run directory, as `pyro-vae train` printed it.")
    parser.add_argument("--device", type=str, default="auto", help='"auto" (a GPU if there is one), cpu or cuda.')
    parser.add_argument("--seed", type=int, default=0, help="Seed of all noise.")


def head(run: LoadedRun, split: str, n: int | None, root: str | None) -> Tensor:
    """The first `n` data of a split of the run's data, or all of them, on the run's device."""
    data = run.data(root)
    chosen: Split | None = getattr(data, split)
    if chosen is None:
        there = [name for name in ("train", "valid", "test") if getattr(data, name) is not None]
        raise ValueError(f"the run's data have no {split} split; --split can be {' or '.join(there)}")
    n = len(chosen) if n is None else n
    if not 1 <= n <= len(chosen):
        raise ValueError(f"asked for {n} data: the {split} split has {len(chosen)}; give a number from 1 to that")
    return chosen.head(n).to(run.device)


def report(run: LoadedRun, x: Tensor, split: str, *, num_samples: int, seed: int, progress: bool | None) -> None:
    """Write the figures of a run on some data to its directory, and print them."""
    summary = summarize(
        run.model,
        run.guide,
        x,
        num_samples=num_samples,
        seed=seed,
        progress=progress,
        data=f"{run.config['data']} ({split})",
        binarize=run.config["binarize"],
    )
    path = save_json(run.path / f"evaluation-{split}.json", summary.to_dict())
    say(summary.table())
    say(str(path))


def save_arrays(out: Path, **arrays: Tensor) -> None:
    """Write `OUT.npz` and print its path."""
    path = out.with_name(out.name + ".npz")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        np.savez(temporary, **{name: array.cpu().numpy() for name, array in arrays.items()})  # type: ignore[arg-type]
    say(str(path))


def draw(figure: Any, out: Path) -> None:
    """Write `OUT.png` and print its path."""
    path = out.with_name(out.name + ".png")
    with replacing(path) as temporary:
        plots.save(figure, temporary)
    say(str(path))
