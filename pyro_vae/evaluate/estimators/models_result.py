"""The result of `compare_models`: differences per datum, and their means."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from rich.console import Group
from rich.text import Text
from torch import Tensor

from pyro_vae.evaluate.bounds import Bound
from pyro_vae.evaluate.marginal.result import LogMarginal
from pyro_vae.support.pictures import without_math
from pyro_vae.support.results import Result
from pyro_vae.support.statistics import mean_and_half_width, standard_error
from pyro_vae.support.tables import indexed_rows, new_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["ModelComparison"]


@dataclass(frozen=True, repr=False)
class ModelComparison(Result):
    """Two pairs on the same data, in nats per datum; differences are the second minus the first.

    Attributes:
        names: What the two are called.
        log_marginals: Of the first and of the second.
        bounds: Their ELBO, None without a guide.
    """

    title: ClassVar[str] = "comparison of models"
    _rows_name: ClassVar[str] = "data"
    _columns: ClassVar[tuple[str, ...]] = ("index", "log_prob_first", "log_prob_second", "difference", "error")

    names: tuple[str, ...]
    log_marginals: tuple[LogMarginal, LogMarginal]
    bounds: tuple[Bound | None, Bound | None]

    @property
    def difference(self) -> Tensor:
        """The difference of log p(x) of each datum, `(N,)`."""
        first, second = self.log_marginals
        return second.log_prob.double() - first.log_prob.double()

    @property
    def error(self) -> Tensor:
        """The Monte Carlo standard error of each difference, `(N,)`."""
        first, second = self.log_marginals
        return (first.std_error.double().square() + second.std_error.double().square()).sqrt()

    @property
    def elbo_difference(self) -> Tensor | None:
        """The difference of the ELBO of each datum, `(N,)`, from 100 draws of each; None without a guide."""
        first, second = self.bounds
        return None if first is None or second is None else second.elbo.double() - first.elbo.double()

    @property
    def mean(self) -> float:
        """The mean difference of log p(x)."""
        return float(self.difference.mean())

    @property
    def mean_error(self) -> float:
        """The Monte Carlo standard error of `mean` for these data, which more samples reduce."""
        return float(self.error.square().sum().sqrt() / len(self))

    @property
    def sampling_error(self) -> float:
        """The standard error of `mean` as an estimate for other data of the kind; Monte Carlo noise is in it."""
        return standard_error(self.difference)

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % t-interval of the mean difference on other data of the kind; of one number, of its noise."""
        if len(self) < 2:
            return self.mean - 1.96 * self.mean_error, self.mean + 1.96 * self.mean_error
        return _interval(self.difference)

    @property
    def better(self) -> str | None:
        """The name of the pair with the higher log p(x), None if the interval does not decide."""
        low, high = self.interval
        return self.names[1] if low > 0 else self.names[0] if high < 0 else None

    def __len__(self) -> int:
        return len(self.log_marginals[0])

    def lines(self) -> list[str]:
        """The answer in words."""
        first, second = self.names
        low, high = self.interval
        said = f"log p(x) of {second} minus that of {first}: {self.mean:+.3f} nats"
        said += " for all data together" if self.log_marginals[0].is_joint else " per datum"
        result = [f"{said}, 95 % interval {low:+.3f} to {high:+.3f}."]
        if self.better is None:
            result.append("These data do not decide which of the two has the higher log p(x).")
        else:
            share = float((self.difference > 0).double().mean())
            share = share if self.better == second else 1 - share
            result.append(f"{self.better} has the higher log p(x); it is ahead on {share:.0%} of the data.")
        if len(self) > 1 and self.mean_error > 0.5 * self.sampling_error:
            result.append("Much of the error is Monte Carlo noise: more samples per datum reduce it.")
        for name, found in zip(self.names, self.log_marginals, strict=True):
            result += [f"{name}: {caveat}." for caveat in found.caveats]
        return result

    def _values(self) -> dict[str, Any]:
        low, high = self.interval
        elbo = self.elbo_difference
        return {
            "names": list(self.names),
            "log_prob": [found.mean for found in self.log_marginals],
            "difference": self.mean,
            "mean_error": self.mean_error,
            "sampling_error": self.sampling_error,
            "low": low,
            "high": high,
            "elbo_difference": None if elbo is None else float(elbo.mean()),
            "better": self.better,
            "num_data": len(self),
        }

    def _rows(self) -> list[dict[str, Any]]:
        first, second = self.log_marginals
        columns = {"log_prob_first": first.log_prob, "log_prob_second": second.log_prob}
        columns |= {"difference": self.difference, "error": self.error}
        if self.elbo_difference is not None:
            columns["elbo_difference"] = self.elbo_difference
        return indexed_rows(columns)

    def table(self) -> Group:
        """Means of the two, and their paired differences with 95 % intervals."""
        table = new_table(f"nats per datum, {len(self)} data", "", *self.names, "difference", "95 % interval")
        table.add_row("log p(x)", *(f"{m.mean:.3f}" for m in self.log_marginals), *_cells(self.mean, self.interval))
        first, second, elbo = *self.bounds, self.elbo_difference
        if first is not None and second is not None and elbo is not None:
            cells = _cells(float(elbo.mean()), _interval(elbo))
            table.add_row("ELBO", f"{first.mean:.3f}", f"{second.mean:.3f}", *cells)
        return Group(table, *map(Text, self.lines()))

    def _draw(self) -> Figure:
        """Each datum's two values against each other, and the differences in order with their Monte Carlo errors."""
        from matplotlib.figure import Figure

        first, second = self.log_marginals
        figure = Figure(figsize=(10, 4.2), layout="constrained")
        both, ordered = figure.subplots(1, 2)
        names = [without_math(name) for name in self.names]
        both.plot(first.log_prob.cpu(), second.log_prob.cpu(), ".", ms=4, color="#0072B2", alpha=0.6)
        both.axline((0, 0), slope=1, color="black", lw=0.8, ls=":")
        values = [v for found in self.log_marginals for v in found.log_prob.tolist() if math.isfinite(v)]
        if values:
            pad = 0.03 * (max(values) - min(values)) or 1.0
            both.set(xlim=(min(values) - pad, max(values) + pad), ylim=(min(values) - pad, max(values) + pad))
        both.set(xlabel=f"log p(x), {names[0]} (nats)", ylabel=f"log p(x), {names[1]} (nats)", title="each datum")
        order = self.difference.argsort().cpu()
        found, error = self.difference.cpu()[order], self.error.cpu()[order]
        index = list(range(len(order)))
        ordered.fill_between(index, found - 1.96 * error, found + 1.96 * error, color="#56B4E9", alpha=0.4, lw=0)
        ordered.plot(index, found, color="#0072B2", lw=1.5)
        ordered.axhline(0, color="black", lw=0.8, ls=":")
        ordered.axhspan(*self.interval, color="#D55E00", alpha=0.25, lw=0, label="mean, 95 % interval")
        ordered.axhline(self.mean, color="#D55E00", lw=1)
        ordered.legend()
        ordered.set(xlabel="data in order", ylabel="nats", title=f"{names[1]} minus {names[0]}")
        return figure


def _interval(values: Tensor) -> tuple[float, float]:
    """The 95 % t-interval of a mean."""
    mean, half = mean_and_half_width(values)
    return mean - half, mean + half


def _cells(mean: float, interval: tuple[float, float]) -> tuple[str, str]:
    return f"{mean:+.3f}", f"{interval[0]:+.3f} to {interval[1]:+.3f}"
