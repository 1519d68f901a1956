"""`pyro-vae sample` and `reconstruct`: arrays of a run, and their picture if they are images."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse import Namespace
from torch import Tensor

from pyro_vae import plots
from pyro_vae.cli.console import add_run_options, add_split_options, draw, echo, first_data, put, rebuilt
from pyro_vae.cli.parser import Parser
from pyro_vae.evaluate import reconstruct, sample
from pyro_vae.runs import LoadedRun
from pyro_vae.support.columns import as_columns, decode_rows
from pyro_vae.support.random import fork_rng
from pyro_vae.support.tables import as_csv

__all__ = ["run"]


def run(name: str, argv: Sequence[str], command: str) -> None:
    """Rebuild a run, and sample from its model or reconstruct some of its data."""
    make, figure, files, options = _samples(argv) if name == "sample" else _reconstructions(argv)
    loaded = rebuilt(options)
    with fork_rng(options.seed):
        arrays = make(loaded, options)
    out = loaded.path / files if options.out is None else Path(options.out.removesuffix(".png").removesuffix(".npz"))
    is_table = "columns" in loaded.record["data"]
    _show(out, None if is_table else figure, **arrays)
    if name == "sample" and is_table:
        rows = decode_rows(as_columns(loaded.record["data"]["columns"]), arrays["x"])
        put(out.with_name(out.name + ".csv"), as_csv(list(rows), _by_row(rows)))


Command = tuple[Callable[[LoadedRun, Namespace], dict[str, Tensor]], Callable[..., Any], str, Namespace]


def _by_row(columns: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    return [dict(zip(columns, row, strict=True)) for row in zip(*(c.tolist() for c in columns.values()), strict=True)]


def _samples(argv: Sequence[str]) -> Command:
    parser = _parser("sample", "Sample data from the model of a trained run")
    parser.add_argument("--num", type=int, default=64, help="Number of data.")
    options = _read(parser, argv, "samples")
    if options.num < 1:
        raise ValueError(f"--num must be at least 1, got {options.num}")
    return _sampled, plots.image_grid, "samples", options


def _sampled(loaded: LoadedRun, options: Namespace) -> dict[str, Tensor]:
    if "columns" in loaded.record["data"]:  # a mean is no value of a column with levels
        return {"x": sample(loaded.model, options.num)}
    template = torch.zeros(options.num, *loaded.shape, device=loaded.device)
    # a conditional pair samples data of the classes of the first training data
    labels = first_data(loaded, "train", options.num, None)[1:] if loaded.config.get("labels") == "all" else ()
    return {"x": sample(loaded.model, template, *labels, mean=options.mean)}


def _reconstructions(argv: Sequence[str]) -> Command:
    parser = _parser("reconstruct", "Reconstruct data with a trained run")
    parser.add_argument("--num", type=int, default=20, help="Number of data: the first ones of the split.")
    add_split_options(parser)
    return _reconstructed, plots.reconstructions, "reconstructions", _read(parser, argv, "reconstructions")


def _reconstructed(loaded: LoadedRun, options: Namespace) -> dict[str, Tensor]:
    args = first_data(loaded, options.split, options.num, options.root)
    return {"x": args[0], "reconstructed": reconstruct(loaded.model, loaded.guide, *args, mean=options.mean)}


def _parser(name: str, summary: str) -> Parser:
    description = f"{summary}: an .npz file and, if they are images, a .png; of a table a .csv."
    parser = Parser(prog=f"pyro-vae {name}", usage=f"pyro-vae {name} RUN [options]", description=description)
    add_run_options(parser)
    return parser


def _read(parser: Parser, argv: Sequence[str], files: str) -> Namespace:
    parser.add_argument("--mean", type=bool, default=True, help="The means of p(x|z), or else samples from it.")
    parser.add_argument(
        "--out", type=str | None, default=None, help=f"Path to write to, without an ending. Default: RUN/{files}."
    )
    return parser.read(argv)


def _show(out: Path, figure: Callable[..., Any] | None, **arrays: Tensor) -> None:
    """Write arrays to `OUT.npz` and, if they are images, draw them to `OUT.png`; print the paths."""
    path = out.with_name(out.name + ".npz")
    path.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    np.savez(content, **{name: array.cpu().numpy() for name, array in arrays.items()})  # type: ignore[arg-type]
    put(path, content.getvalue())
    if figure is None:
        return
    try:
        drawn = figure(*arrays.values())
    except ValueError as error:
        echo(f"no picture: {error}")
    else:
        draw(drawn, out)
