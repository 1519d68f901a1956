"""`pyro-vae evaluate`."""

from __future__ import annotations

from collections.abc import Sequence

import pyro

from pyro_vae.cli.console import add_data_options, add_run_options, head, report
from pyro_vae.cli.parser import Parser
from pyro_vae.elbo.tracing import fork_rng
from pyro_vae.runs import load_run

__all__ = ["run"]


def _parser() -> Parser:
    parser = Parser(
        prog="pyro-vae evaluate",
        usage="pyro-vae evaluate RUN [options]",
        description="Report ELBO and log p(x) of a trained run. The table is also written to evaluation-SPLIT.json in "
        "the run directory.",
    )
    add_run_options(parser)
    parser.add_argument("--num_samples", type=int, default=5000, help="Importance samples per datum for log p(x).")
    add_data_options(parser, num_data=None)
    return parser


def run(words: Sequence[str], command: str) -> None:
    """Rebuild a run and report its figures."""
    options = _parser().read(words)
    pyro.clear_param_store()
    loaded = load_run(options.run, device=options.device)
    with fork_rng(options.seed):  # training data may be binarised anew
        x = head(loaded, options.split, options.num_data, options.root)
    report(
        loaded,
        x,
        options.split,
        num_samples=options.num_samples,
        seed=options.seed,
        progress=options.progress,
    )
