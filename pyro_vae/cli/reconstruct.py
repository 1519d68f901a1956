"""`pyro-vae reconstruct`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import pyro

from pyro_vae import plots
from pyro_vae.cli.console import add_picture_options, add_run_options, head, outlet, show
from pyro_vae.cli.parser import Parser
from pyro_vae.evaluate import reconstruct
from pyro_vae.runs import load_run
from pyro_vae.support.random import fork_rng

__all__ = ["run"]


def _parser() -> Parser:
    parser = Parser(
        prog="pyro-vae reconstruct",
        usage="pyro-vae reconstruct RUN [options]",
        description="Reconstruct data with a trained run: an .npz file and, if they are images, a .png.",
    )
    add_run_options(parser)
    parser.add_argument("--num", type=int, default=20, help="How many: the first data of the split.")
    parser.add_argument("--split", type=Literal["train", "valid", "test"], default="test", help="Which data.")
    parser.add_argument(
        "--root", type=str | None, default=None, metavar="DIR", help="Folder of the data, if they have moved."
    )
    add_picture_options(parser, "reconstructions")
    return parser


def run(words: Sequence[str], command: str) -> None:
    """Rebuild a run and reconstruct some of its data."""
    options = _parser().read(words)
    pyro.clear_param_store()
    loaded = load_run(options.run, device=options.device, trust=options.trust)
    with fork_rng(options.seed):
        args = head(loaded, options.split, options.num, options.root)
        again = reconstruct(loaded.model, loaded.guide, *args, mean=options.mean)
    show(outlet(options.out, loaded, "reconstructions"), plots.reconstructions, x=args[0], reconstructed=again)
