"""`pyro-vae evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from jsonargparse import Namespace
from torch import Tensor

from pyro_vae.cli.console import add_data_options, add_run_options, echo, only_main_prints, open_run, put, report
from pyro_vae.cli.parser import Parser
from pyro_vae.distributed.ranks import Devices, Ranks, launch
from pyro_vae.evaluate import Importance, log_marginal
from pyro_vae.evaluate.marginal.methods import METHODS, Method
from pyro_vae.runs import LoadedRun

__all__ = ["run"]

_METHOD_OPTIONS = (
    *("target_error", "defensive", "num_chains", "num_temperatures", "leapfrog_steps", "start"),
    *("num_particles", "num_runs", "every"),
)


def _parser() -> Parser:
    parser = Parser(
        prog="pyro-vae evaluate",
        usage="pyro-vae evaluate RUN [options]",
        description="Report ELBO and log p(x) of a trained run. The table is also written to evaluation-SPLIT.json in "
        "the run directory. With one of the options below --num_samples, log p(x) is also estimated with that method, "
        "and written per datum to log-marginal-SPLIT-METHOD.json.",
    )
    add_run_options(parser)
    parser.add_argument("--num_samples", type=int, default=5000, help="Importance samples per datum for log p(x).")
    parser.add_argument(
        "--method",
        type=Literal["importance", "prior", "ais", "bdmc", "smc"],
        default="importance",
        help="Another estimator: the prior as proposal, annealed importance sampling, bidirectional Monte Carlo on "
        "simulated data, or sequential Monte Carlo for time series.",
    )
    parser.add_argument(
        "--target_error",
        type=float | None,
        default=None,
        help="Sample until each error is this small, nats (importance, prior).",
    )
    parser.add_argument("--defensive", type=float, default=0.0, help="Fraction of samples from the prior (importance).")
    parser.add_argument("--num_chains", type=int, default=16, help="Chains per datum (ais, bdmc).")
    parser.add_argument("--num_temperatures", type=int, default=500, help="Temperatures of a chain (ais, bdmc).")
    parser.add_argument(
        "--leapfrog_steps", type=int, default=10, help="Leapfrog steps at each temperature (ais, bdmc)."
    )
    parser.add_argument("--num_particles", type=int, default=500, help="Particles of a filter (smc).")
    parser.add_argument("--num_runs", type=int, default=10, help="Independent filters (smc).")
    parser.add_argument("--every", type=int, default=1, help="Steps of time between two stages (smc).")
    parser.add_argument(
        "--start", type=Literal["prior", "guide"], default="prior", help="Where chains begin (ais, bdmc)."
    )
    parser.add_argument(
        "--devices",
        type=Devices,
        default="auto",
        help="Number of processes to start on each machine, one per device, which share the data. auto: those that "
        "torchrun has started, or a single one.",
    )
    parser.add_argument("--num_nodes", type=int, default=1, help="Number of machines that share the data.")
    add_data_options(parser, num_data=None)
    return parser


def run(name: str, argv: Sequence[str], command: str) -> None:
    """Rebuild a run and report its metrics."""
    parser = _parser()
    options = parser.read(argv)
    method = _method(parser, options)
    ranks = launch(options.devices, options.num_nodes, device=options.device)
    if ranks.device is not None:
        options.device = str(ranks.device)
    with only_main_prints(ranks):
        _evaluate(*open_run(options), method, options, ranks)


def _method(parser: Parser, options: Namespace) -> Method:
    """The estimation method that the options describe.

    Raises:
        ValueError: If an option belongs to another method.
    """
    given = {name: options[name] for name in _METHOD_OPTIONS if options[name] != parser.get_default(name)}
    method = METHODS[options.method]
    for name in given:
        if not hasattr(method, name):
            others = ", ".join(other for other, kind in METHODS.items() if hasattr(kind, name))
            raise ValueError(f"--{name} is not an option of --method {options.method}, but of {others}")
    return replace(method, **given)


def _evaluate(loaded: LoadedRun, args: tuple[Tensor, ...], method: Method, options: Namespace, ranks: Ranks) -> None:
    report(
        loaded,
        args,
        options.split,
        num_samples=options.num_samples,
        seed=options.seed,
        progress=options.progress,
        ranks=ranks,
    )
    if method == METHODS["importance"]:
        return
    result = log_marginal(
        loaded.model,
        loaded.guide,
        *args,
        method=method,
        num_samples=options.num_samples if isinstance(method, Importance) else None,
        seed=options.seed,
        progress=options.progress,
        ranks=ranks,
    )
    if not ranks.is_main:
        return
    echo(f"\n{result.method}: {result!r}")
    put(loaded.path / f"log-marginal-{options.split}-{result.method}.json", result.encoded(".json"))
