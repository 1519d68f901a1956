"""What a program of the collection is: a pair, its data, the exact answers, and which questions refuse it, and why."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor

__all__ = ["QUESTIONS", "Entry", "Pair", "collection", "program"]

QUESTIONS = {
    "compiled": "`compile=True`",
    "fit": "`fit`",
    "preflight": "`preflight`",
    "bound": "`bound`",
    "log_marginal": "`log_marginal`",
    "compare_elbos": "`compare_elbos`",
    "latent_report": "`latent_report`",
    "fit_local": "`fit_local`",
    "posterior_samples": "`posterior_samples`",
}


@dataclass
class Pair:
    """A model, a guide and their arguments.

    `exact` is log p(x), `(N,)`, or `(1,)` for all data together; None leaves it to importance sampling.
    `plain` is the same pair without what only a handler of Pyro does, to take densities from by hand.
    """

    model: Callable[..., Any]
    guide: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    exact: Tensor | None = None
    plain: Pair | None = None

    @property
    def call(self) -> tuple[Any, ...]:
        return (self.model, self.guide, *self.args)


@dataclass(frozen=True)
class Entry:
    """A program of the collection.

    Attributes:
        name: The function that builds it.
        subject: The file that it stands in.
        text: What it is, in a line.
        make: Builds the pair.
        refuses: A part of the message by question that is refused.
        warns: The codes of preflight's warnings.
        estimators: The estimators that `compare_elbos` compares and `fit` trains with.
        elbos: The names of Pyro's ELBOs that take it; of those that are left out, ours must refuse it, too.
        per_datum: Whether it has numbers per datum.
    """

    name: str
    subject: str
    text: str
    make: Callable[[], Pair]
    refuses: Mapping[str, str]
    warns: tuple[str, ...]
    estimator: str
    elbos: tuple[str, ...]
    per_datum: bool

    def build(self) -> Pair:
        """The pair anew, with the parameters of a fixed seed."""
        pyro.clear_param_store()
        torch.manual_seed(0)
        return self.make()


_found: list[Entry] = []
SCORE = ("Trace_ELBO", "TraceEnum_ELBO", "TraceGraph_ELBO", "RenyiELBO", "ReweightedWakeSleep")
PATHWISE = (*SCORE, "TraceMeanField_ELBO")


def program(
    refuses: Mapping[str, str] | None = None,
    *,
    warns: tuple[str, ...] = (),
    estimator: str = "trace",
    elbos: tuple[str, ...] = PATHWISE,
    without: tuple[str, ...] = (),
    per_datum: bool = True,
) -> Callable[[Callable[[], Pair]], Callable[[], Pair]]:
    """A decorator that adds a program to the collection."""

    def add(make: Callable[[], Pair]) -> Callable[[], Pair]:
        subject = make.__module__.rpartition(".")[2]
        text = (make.__doc__ or "").strip()
        legal = tuple(name for name in elbos if name not in without)
        _found.append(Entry(make.__name__, subject, text, make, refuses or {}, warns, estimator, legal, per_datum))
        return make

    return add


@cache
def collection() -> list[Entry]:
    """All programs, by the files that they stand in."""
    here = Path(__file__).parent
    for path in sorted(here.glob("of_*.py")):
        importlib.import_module(f"{__package__}.{path.stem}")
    return sorted(_found, key=lambda entry: entry.subject)
