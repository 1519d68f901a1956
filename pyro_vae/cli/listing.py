"""`pyro-vae list`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from rich.markup import escape
from rich.table import Table

from pyro_vae import conditionals, data, elbo, models, nets, priors
from pyro_vae.cli.console import echo
from pyro_vae.cli.parser import Parser

__all__ = ["run"]


def run(name: str, argv: Sequence[str], command: str) -> None:
    """Print the names."""
    Parser(prog="pyro-vae list", usage="pyro-vae list", description="List names for options.").read(argv)
    table = Table("option", "names", show_header=False)
    networks = [name for name in nets.__all__ if isinstance(getattr(nets, name), type)]
    for option, names in {
        "--model": [name for name in models.__all__ if name != "Pair"],
        "--data": data.NAMES,
        "--binarize": get_args(data.Binarize),
        "--elbo": elbo.names(),
        "--kl_weight": [schedule.__name__ for schedule in get_args(elbo.Schedule)],
        "--model.likelihood": conditionals.LIKELIHOODS,
        "--model.posterior": conditionals.POSTERIORS,
        "--model.posterior (shares)": conditionals.SHARE_POSTERIORS,
        "--model.prior": priors.PRIORS,
        "--model.prior (shares)": priors.SHARE_PRIORS,
        "--model.encoder, --model.decoder": networks,
    }.items():
        table.add_row(option, escape(", ".join(names)))
    echo(table)
