"""What a check of an estimator found, line by line."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from pyro_vae.support.tables import as_text, save_result

__all__ = ["CheckLine", "EstimatorCheck"]


@dataclass(frozen=True)
class CheckLine:
    """One question: what was found, what is exact, and how many standard errors lie between.

    Values are in nats per datum. For a gradient `found` and `exact` are norms of the expected gradient, `error` that of
    its standard errors, and `z` is the largest among its elements. Of a line that bounds the value from one side, z
    counts what is beyond. The line passed if `z` is at most `limit`, Student's quantile at a level of 1e-4 divided by
    the number of elements; `passed` is None for what is only reported.
    """

    check: str
    found: float
    exact: float | None = None
    error: float | None = None
    z: float | None = None
    limit: float | None = None
    passed: bool | None = None


@dataclass(frozen=True, repr=False)
class EstimatorCheck:
    """What `check_estimator` found, line by line."""

    estimator: str
    oracle: str
    lines: list[CheckLine]

    @property
    def passed(self) -> bool:
        """Whether no line failed."""
        return all(line.passed is not False for line in self.lines)

    def __getitem__(self, check: str) -> CheckLine:
        """The line of that name."""
        found = {line.check: line for line in self.lines}
        if check not in found:
            raise KeyError(f"no line {check!r}; there are {', '.join(map(repr, found))}")
        return found[check]

    def to_dicts(self) -> list[dict[str, Any]]:
        """One dictionary a line."""
        return [asdict(line) for line in self.lines]

    def table(self) -> Table:
        """A rich table that fits a terminal."""
        title = f"{self.estimator} on {self.oracle}: {'passed' if self.passed else 'FAILED'}"
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
        table.add_column("nats per datum", no_wrap=True)
        for column in ("found", "exact", "s.e.", "z", "limit", ""):
            table.add_column(column, justify="right", no_wrap=True)
        for r in self.lines:
            cells = (_cell(r.found), _cell(r.exact), _cell(r.error), _cell(r.z, ".1f"), _cell(r.limit, ".1f"))
            table.add_row(r.check, *cells, "" if r.passed is None else "passed" if r.passed else "FAILED")
        return table

    def __repr__(self) -> str:
        return as_text(self.table())

    def save(self, path: str | Path) -> Path:
        """Write the lines as CSV or JSON, by the ending of `path`."""
        columns = list(CheckLine.__dataclass_fields__)
        return save_result(path, "a check is", self.to_dicts(), asdict(self), columns)

    def plot(self) -> Any:
        """A matplotlib figure: each line's z over its limit, so that what is right of 1 failed."""
        from matplotlib.figure import Figure

        ratios = {
            r.check: r.z / r.limit for r in self.lines[::-1] if r.z is not None and r.limit and r.passed is not None
        }
        figure = Figure(figsize=(7, 0.4 * len(ratios) + 1.2), layout="constrained")
        ax = figure.add_subplot()
        ax.barh(list(ratios), list(ratios.values()), color=["C0" if self[check].passed else "C3" for check in ratios])
        ax.axvline(1, color="black", lw=0.8, ls=":")
        ax.set(xlabel="z / limit", title=f"{self.estimator} on {self.oracle}")
        ax.set_xlim(0, max(1.2, *(1.05 * ratio for ratio in ratios.values())))
        return figure


def _cell(number: float | None, form: str = ".4f") -> str:
    return "" if number is None else f"{number:{form}}"
