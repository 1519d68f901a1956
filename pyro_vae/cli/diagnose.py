"""`pyro-vae diagnose`."""

from __future__ import annotations

from collections.abc import Sequence

from pyro_vae.cli.console import add_data_options, add_run_options, open_run, publish
from pyro_vae.cli.parser import Parser
from pyro_vae.evaluate import latent_report

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
    loaded, args = open_run(options, at_most=True)
    report = latent_report(
        loaded.model,
        loaded.guide,
        *args,
        num_samples=options.num_samples,
        seed=options.seed,
        progress=options.progress,
    )
    publish(report, loaded, "latent")
