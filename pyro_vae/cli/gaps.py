"""`pyro-vae gaps`."""

from __future__ import annotations

from collections.abc import Sequence

from pyro_vae.cli.console import add_data_options, add_run_options, open_run, publish
from pyro_vae.cli.parser import Parser
from pyro_vae.evaluate import inference_gaps

__all__ = ["run"]


def _parser() -> Parser:
    parser = Parser(
        prog="pyro-vae gaps",
        usage="pyro-vae gaps RUN [options]",
        description="Fit a posterior to each datum by itself and split what the guide of a trained run loses against "
        "log p(x): into what its family of distributions costs, and what amortisation costs. The figures are also "
        "written to gaps.csv and gaps.json in the run directory, with a picture.",
    )
    add_run_options(parser)
    parser.add_argument(
        "--families",
        type=list[str],
        default=["diagonal_normal"],
        help="Posterior families from `pyro-vae list`; the first should be the family of the guide.",
    )
    parser.add_argument("--num_samples", type=int, default=5000, help="Draws per datum for the bounds and log p(x).")
    parser.add_argument("--ais", type=bool, default=False, help="Try annealed importance sampling for log p(x), too.")
    add_data_options(parser, num_data=100)
    return parser


def run(words: Sequence[str], command: str) -> None:
    """Rebuild a run and measure its inference gaps."""
    options = _parser().read(words)
    loaded, args = open_run(options, at_most=True)
    result = inference_gaps(
        loaded.model,
        loaded.guide,
        *args,
        families=options.families,
        num_samples=options.num_samples,
        method="ais" if options.ais else None,
        seed=options.seed,
        progress=options.progress,
    )
    publish(result, loaded, "gaps")
