"""`pyro-vae explore`."""

from __future__ import annotations

from collections.abc import Sequence

from pyro_vae.cli.console import add_run_options, add_split_options, add_vocabulary_option, as_text, rebuilt
from pyro_vae.cli.parser import Parser
from pyro_vae.cli.signatures import add_options
from pyro_vae.reports import explore

__all__ = ["run"]

OPTIONS = ["num_data", "port", "browser"]


def _parser() -> Parser:
    parser = Parser(
        prog="pyro-vae explore",
        usage="pyro-vae explore RUN [options]",
        description="Open a page to move in the latent space of a trained run: sliders and a pad with the decoded "
        "datum at once, a map of codes, the posterior of a datum, interpolation, directions towards classes, samples. "
        "The server is reached from this machine alone, at the address that is printed. Ctrl-C ends it.",
    )
    add_run_options(parser)
    add_options(parser, explore, OPTIONS, {"num_data": "Data on the map, the first ones."})
    add_split_options(parser)
    add_vocabulary_option(parser)
    return parser


def run(name: str, argv: Sequence[str], command: str) -> None:
    """Serve the page until Ctrl-C."""
    options = _parser().read(argv)
    chosen = {key: options[key] for key in (*OPTIONS, "split", "root", "seed")}
    explore(rebuilt(options), text=as_text(options.vocabulary), **chosen)
