"""`pyro-vae compare-elbos`."""

from __future__ import annotations

from collections.abc import Sequence

from pyro_vae.cli.console import add_data_options, add_run_options, open_run, publish
from pyro_vae.cli.parser import Parser
from pyro_vae.evaluate import compare_elbos

__all__ = ["run"]


def _parser() -> Parser:
    parser = Parser(
        prog="pyro-vae compare-elbos",
        usage="pyro-vae compare-elbos RUN [options]",
        description="Compare ELBO estimators on a trained run: bound, gradient bias, variance and signal, time, "
        "memory. The table is also written to estimators.csv and estimators.json in the run directory, with a picture.",
    )
    add_run_options(parser)
    parser.add_argument(
        "--estimators",
        type=list[str],
        default=["trace", "mean_field", "stl", "iwae", "dreg"],
        help="Names from `pyro-vae list`.",
    )
    parser.add_argument("--num_particles", type=list[int], default=[1, 5, 50], help="Particles for each of them.")
    parser.add_argument("--repeats", type=int, default=100, help="Gradients per estimator and number of particles.")
    add_data_options(parser, num_data=256)
    return parser


def run(words: Sequence[str], command: str) -> None:
    """Rebuild a run and compare estimators on it."""
    options = _parser().read(words)
    loaded, args = open_run(options, at_most=True)
    result = compare_elbos(
        loaded.model,
        loaded.guide,
        *args,
        estimators=options.estimators,
        num_particles=options.num_particles,
        repeats=options.repeats,
        seed=options.seed,
        progress=options.progress,
    )
    publish(result, loaded, "estimators")
