"""`pyro-vae diagnose`."""

from __future__ import annotations

from collections.abc import Sequence

import pyro

from pyro_vae.cli.console import add_data_options, add_run_options, draw, head, say
from pyro_vae.cli.parser import Parser
from pyro_vae.elbo.tracing import fork_rng
from pyro_vae.evaluate import latent_report
from pyro_vae.runs import load_run, replacing

__all__ = ["run"]


def _parser() -> Parser:
    parser = Parser(
        prog="pyro-vae diagnose",
        usage="pyro-vae diagnose RUN [options]",
        description="Report the health of a trained run's latent space: KL and activity by dimension, mutual "
        "information, the aggregate posterior against the prior, posterior collapse. The figures are also written to "
        "latent.csv and latent.json in the run directory, with a picture.",
    )
    add_run_options(parser)
    parser.add_argument("--num_samples", type=int, default=4, help="Draws per datum.")
    add_data_options(parser, num_data=1000)
    return parser


def run(words: Sequence[str], command: str) -> None:
    """Rebuild a run and report on its latents."""
    options = _parser().read(words)
    pyro.clear_param_store()
    loaded = load_run(options.run, device=options.device)
    with fork_rng(options.seed):  # training data may be binarised anew
        x = head(loaded, options.split, options.num_data, options.root, at_most=True)
    report = latent_report(
        loaded.model,
        loaded.guide,
        x,
        num_samples=options.num_samples,
        seed=options.seed,
        progress=options.progress,
    )
    say(report.table())
    for ending in ("csv", "json"):
        path = loaded.path / f"latent.{ending}"
        with replacing(path) as temporary:
            report.save(temporary)
        say(str(path))
    draw(report.plot(), loaded.path / "latent")
