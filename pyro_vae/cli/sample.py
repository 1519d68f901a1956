"""`pyro-vae sample`."""

from __future__ import annotations

from collections.abc import Sequence

import pyro
import torch

from pyro_vae import plots
from pyro_vae.cli.console import add_picture_options, add_run_options, head, outlet, show
from pyro_vae.cli.parser import Parser
from pyro_vae.evaluate import sample
from pyro_vae.runs import load_run
from pyro_vae.support.random import fork_rng

__all__ = ["run"]


def _parser() -> Parser:
    parser = Parser(
        prog="pyro-vae sample",
        usage="pyro-vae sample RUN [options]",
        description="Draw data from the prior of a trained run: an .npz file and, if they are images, a .png.",
    )
    add_run_options(parser)
    parser.add_argument("--num", type=int, default=64, help="How many.")
    add_picture_options(parser, "samples")
    return parser


def run(words: Sequence[str], command: str) -> None:
    """Rebuild a run and draw from its model."""
    options = _parser().read(words)
    if options.num < 1:
        raise ValueError(f"--num must be at least 1, got {options.num}")
    pyro.clear_param_store()
    loaded = load_run(options.run, device=options.device, trust=options.trust)
    with fork_rng(options.seed):
        template = torch.zeros(options.num, *loaded.shape, device=loaded.device)
        # a conditional pair draws data of the classes of the first training data
        given = head(loaded, "train", options.num, None)[1:] if loaded.config.get("labels") == "all" else ()
        x = sample(loaded.model, template, *given, mean=options.mean)
    show(outlet(options.out, loaded, "samples"), plots.image_grid, x=x)
