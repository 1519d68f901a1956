"""Runs from many seeds: their histories, their trained pairs, and intervals over the seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from rich.table import Table

from pyro_vae.pair.protocol import Program
from pyro_vae.support.results import Result
from pyro_vae.support.statistics import mean_and_half_width
from pyro_vae.support.tables import new_table
from pyro_vae.training.history import Epoch, History
from pyro_vae.training.together.jobs import Fitted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["SeedInterval", "SeedRuns", "draw_band", "final_epoch"]

MEASURES = ("train_elbo", "valid_elbo", "log_likelihood", "kl", "loss")


@dataclass(frozen=True)
class SeedInterval:
    """The mean of a measure over seeds, with its 95 % t-interval, in nats per datum; it is infinite for one seed."""

    measure: str
    mean: float
    low: float
    high: float
    seeds: int


@dataclass(frozen=True, repr=False)
class SeedRuns(Result):
    """The result of `fit_many`: one run per seed, in the order of the seeds.

    Attributes:
        seeds: The seeds.
        histories: The history of each run.
        trained: The trained pairs.
        why_not: Why the steps were not stacked; "" if they were.
    """

    title: ClassVar[str] = "runs from seeds"
    _rows_name: ClassVar[str] = "runs"
    _columns: ClassVar[list[str]] = ["seed", *MEASURES, "best", "epochs", "seconds"]

    seeds: list[int]
    histories: list[History]
    trained: list[Fitted] = field(repr=False, compare=False)
    why_not: str = ""

    @property
    def stacked(self) -> bool:
        """Whether the steps of the runs were stacked in one graph."""
        return not self.why_not

    def pair(self, seed: int) -> tuple[Program, Program]:
        """The model and the guide that were trained from a seed, with their weights.

        Their parameters are put into Pyro's parameter store, in place of others of the same names.
        """
        if seed not in self.seeds:
            raise ValueError(f"no run from seed {seed}; there are {', '.join(map(str, self.seeds))}")
        return self.trained[self.seeds.index(seed)].load()

    def intervals(self) -> list[SeedInterval]:
        """Mean and 95 % t-interval over the seeds of each measure, at the epochs whose weights the pairs have."""
        result = []
        finals = [final_epoch(history) for history in self.histories if len(history)]
        for measure in MEASURES if finals else ():
            values = [getattr(epoch, measure) for epoch in finals]
            if None not in values:
                mean, half = mean_and_half_width(torch.tensor(values, dtype=torch.float64))
                result.append(SeedInterval(measure, mean, mean - half, mean + half, len(values)))
        return result

    def _values(self) -> dict[str, Any]:
        found = {i.measure: {"mean": i.mean, "low": i.low, "high": i.high} for i in self.intervals()}
        return {"seeds": self.seeds, "stacked": self.stacked, "why_not": self.why_not, **found}

    def _rows(self) -> list[dict[str, Any]]:
        rows = []
        for seed, history in zip(self.seeds, self.histories, strict=True):
            if not len(history):
                continue
            epoch = final_epoch(history)
            measured = {name: getattr(epoch, name) for name in MEASURES}
            rows.append(
                {"seed": seed, **measured, "best": history.best, "epochs": len(history), "seconds": history[-1].seconds}
            )
        return rows

    def table(self) -> Table:
        """One row per seed, and the means over the seeds with their intervals."""
        how = "stacked in one graph" if self.stacked else f"not stacked: {self.why_not}"
        found = {i.measure: i for i in self.intervals()}
        names = [name for name in ("train_elbo", "valid_elbo", "kl") if name in found]
        title = f"{len(self.seeds)} seeds, nats per datum; {how}"
        table = new_table(title, "seed", *names, "epoch", "seconds")
        for row in self._rows():
            epoch = row["best"] or row["epochs"]
            table.add_row(str(row["seed"]), *(f"{row[n]:.3f}" for n in names), str(epoch), f"{row['seconds']:.2f}")
        if found:
            table.add_section()
            means = (f"{found[n].mean:.3f} ± {found[n].high - found[n].mean:.3f}" for n in names)
            table.add_row("mean", *means, "", "")
        return table

    def _draw(self) -> Figure:
        """The ELBO against the epoch and against seconds: every run, their mean and its interval."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9, 3.8), layout="constrained")
        axes = figure.subplots(1, 2, sharey=True)
        for ax, name in zip(axes, ("epoch", "seconds"), strict=True):
            draw_band(ax, self.histories, name, color="C0", label=f"mean of {len(self.seeds)} seeds, 95 % interval")
            ax.set(xlabel=name)
        kind = "training" if None in self.histories[0].valid_elbo else "validation"
        axes[0].set(ylabel=f"{kind} ELBO (nats per datum)")
        axes[0].xaxis.get_major_locator().set_params(integer=True)
        axes[0].legend(loc="lower right")
        return figure


def final_epoch(history: History) -> Epoch:
    """The epoch whose weights the pair has after training."""
    return history[-1] if history.best is None else history[history.best - 1]


def draw_band(
    ax: Any, histories: Sequence[History], against: str, *, color: str, label: str, width: float = 2.0
) -> None:
    """Draw the ELBO of each run, their mean at each epoch that all of them have, and its 95 % t-interval."""
    for history in histories:
        ax.plot([getattr(e, against) for e in history], [e.monitored for e in history], color=color, lw=0.6, alpha=0.4)
    shortest = min(map(len, histories))
    columns = [[history[i] for history in histories] for i in range(shortest)]
    at = [sum(getattr(epoch, against) for epoch in column) / len(column) for column in columns]
    found = [mean_and_half_width(torch.tensor([e.monitored for e in c], dtype=torch.float64)) for c in columns]
    means = [mean for mean, _ in found]
    ax.plot(at, means, color=color, lw=width, label=label)
    if len(histories) > 1:
        ax.fill_between(at, [m - h for m, h in found], [m + h for m, h in found], color=color, alpha=0.2, lw=0)
