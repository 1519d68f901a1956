"""The result of `check_estimator`, line by line."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from rich.table import Table

from pyro_vae.support.pictures import drawable, without_math
from pyro_vae.support.results import PanelResult
from pyro_vae.support.tables import new_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["CheckLine", "EstimatorCheck"]


@dataclass(frozen=True)
class CheckLine:
    """One check: the estimate, the exact value, and their distance in standard errors.

    Values are in nats per datum. For a gradient, `found` and `exact` are norms of the expected gradient, `error` is the
    norm of its standard errors, and `z` is the largest among its elements. For a one-sided bound, `z` measures only the
    violation. The line passed if `z` is at most `limit`, Student's quantile at a level of 1e-4 divided by the number of
    elements; `passed` is None for a value that is only reported.
    """

    check: str
    found: float
    exact: float | None = None
    error: float | None = None
    z: float | None = None
    limit: float | None = None
    passed: bool | None = None


@dataclass(frozen=True, repr=False)
class EstimatorCheck(PanelResult):
    """The result of `check_estimator`, line by line."""

    title: ClassVar[str] = "check of an estimator"
    _rows_name: ClassVar[str] = "lines"
    _columns: ClassVar[list[str]] = list(CheckLine.__dataclass_fields__)

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

    def _values(self) -> dict[str, Any]:
        return {"estimator": self.estimator, "oracle": self.oracle, "passed": self.passed}

    def _rows(self) -> list[CheckLine]:
        return self.lines

    def table(self) -> Table:
        """A rich table that fits a terminal."""
        title = f"{self.estimator} on {self.oracle}: {'passed' if self.passed else 'FAILED'}"
        table = new_table(title, "nats per datum", "found", "exact", "s.e.", "z", "limit", "")
        for r in self.lines:
            cells = (_cell(r.found), _cell(r.exact), _cell(r.error), _cell(r.z, ".1f"), _cell(r.limit, ".1f"))
            table.add_row(r.check, *cells, "" if r.passed is None else "passed" if r.passed else "FAILED")
        return table

    def _ratios(self) -> dict[str, float]:
        """Each line's z over its limit, from the last to the first."""
        tested = [r for r in self.lines[::-1] if r.passed is not None]
        return {r.check: r.z / r.limit for r in tested if r.z is not None and r.limit}

    def _size(self) -> tuple[float, float]:
        return 7, 0.4 * len(self._ratios()) + 1.2

    def _panel(self, ax: Axes) -> None:
        """Each line's z over its limit: bars beyond 1 failed."""
        ratios = self._ratios()
        # an infinite or NaN z fills the whole width
        limit = max([1.2, *(1.05 * ratio for ratio in ratios.values() if math.isfinite(ratio))])
        ax.barh(
            list(ratios),
            drawable(ratios.values(), limit),
            color=["C0" if self[check].passed else "C3" for check in ratios],
        )
        ax.axvline(1, color="black", lw=0.8, ls=":")
        ax.set(xlabel="z / limit", title=without_math(f"{self.estimator} on {self.oracle}"))
        ax.set_xlim(0, limit)


def _cell(number: float | None, form: str = ".4f") -> str:
    return "" if number is None else f"{number:{form}}"
