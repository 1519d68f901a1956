"""`pyro-vae report`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyro

from pyro_vae.cli.console import (
    add_loading_options,
    add_split_options,
    add_vocabulary_option,
    as_text,
    echo,
    look_here,
    put,
)
from pyro_vae.cli.parser import Parser
from pyro_vae.cli.signatures import add_options
from pyro_vae.reports import report

__all__ = ["run"]

OPTIONS = ["num_data", "num_samples", "num_simulations"]


def _parser() -> Parser:
    parser = Parser(
        prog="pyro-vae report",
        usage="pyro-vae report RUN [RUN ...] [options]",
        description="Make one page of a trained run, to open in any browser and to send to anybody: protocol, findings "
        "in words, training, ELBO and log p(x) with errors, reconstructions, samples, traversals, a map of the codes, "
        "KL by dimension, calibration. Several runs stand side by side, with paired differences. The page loads "
        "nothing from elsewhere.",
    )
    parser.add_argument("runs", nargs="+", type=str, help="Run directories, as `pyro-vae train` printed them.")
    parser.add_argument("--out", type=str, default="report.html", help="The page to write.")
    add_options(parser, report, OPTIONS, {"num_data": "Data that the questions are put to, the first ones."})
    add_split_options(parser)
    add_vocabulary_option(parser)
    add_loading_options(parser, "the runs")
    return parser


def run(name: str, argv: Sequence[str], command: str) -> None:
    """Write the page of some runs."""
    options = _parser().read(argv)
    out = Path(options.out)
    if out.suffix != ".html":
        raise ValueError(f"a report is a page, so that --out must end in .html, got {options.out!r}")
    pyro.clear_param_store()
    if options.trust:
        look_here()
    made = report(
        options.runs,
        split=options.split,
        text=as_text(options.vocabulary),
        root=options.root,
        device=options.device,
        trust=options.trust,
        seed=options.seed,
        **{key: options[key] for key in OPTIONS},
    )
    echo(made.table())
    out.parent.mkdir(parents=True, exist_ok=True)
    put(out, made.page)
