"""`pyro-vae runs`."""

from __future__ import annotations

from collections.abc import Sequence

from pyro_vae.cli.console import echo
from pyro_vae.cli.parser import Parser
from pyro_vae.runs import compare_runs, list_runs

__all__ = ["run"]


def _parser() -> Parser:
    parser = Parser(
        prog="pyro-vae runs",
        usage="pyro-vae runs [DIR] [options]",
        description="List the runs in a folder as a table, or show the differences between two runs: settings, "
        "versions, machine, data and results. No code of a run is executed.",
    )
    parser.add_argument("folder", nargs="?", type=str, default="runs", help="The folder of the runs.")
    parser.add_argument(
        "--sort",
        type=str,
        default="started",
        help="Column to sort by: started, elbo, log_prob, loss, seconds, epochs, name, model, data or objective.",
    )
    parser.add_argument("--compare", nargs=2, type=str, metavar=("A", "B"), help="Two run directories to compare.")
    return parser


def run(name: str, argv: Sequence[str], command: str) -> None:
    """List runs, or compare two."""
    options = _parser().read(argv)
    if options.compare:
        echo(compare_runs(*options.compare).table())
        return
    table = list_runs(options.folder, sort=options.sort)
    echo(table.table() if table.rows else f"no runs in {options.folder}")
