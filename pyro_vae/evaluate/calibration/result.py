"""The result of `calibration`: a row and a verdict for each test, and what is drawn of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from rich.console import Group
from rich.markup import escape
from rich.text import Text
from torch import Tensor

from pyro_vae.evaluate.calibration.classes import Reliability
from pyro_vae.evaluate.calibration.picture import draw
from pyro_vae.evaluate.calibration.ranking import JOINT
from pyro_vae.evaluate.calibration.verdicts import ball_coverage, central_coverage
from pyro_vae.support.results import Result
from pyro_vae.support.serialization import finite
from pyro_vae.support.tables import new_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Calibration", "CalibrationRow"]

SHOWN = 20  # quantities in the printed table
GUIDE_TESTS = ("ranks", "tarp", "reliability", "classifier")


@dataclass(frozen=True)
class CalibrationRow:
    """One test; NaN where a value does not exist for it.

    Attributes:
        quantity: What was tested: an element of a latent, a function of the latents, `log p(x|z)`, a statistic.
        test: "ranks", "tarp" (ranks of distances), "reliability", "classifier", or "predictive".
        num: Simulated data, or replications, behind it.
        p_value: Of the hypothesis that the guide is right, or for "predictive" that the data are as those generated.
        p_adjusted: The same by Holm's adjustment for all tests of the guide; those of the data are a family of their
            own.
        verdict: "fine", or what is wrong where `p_adjusted` is below `alpha`.
        shift: How far the guide lies above the truth, about in its standard deviations ("ranks").
        scale: Its width over the right one, about ("ranks").
        coverage_50, coverage_90: How often the central intervals that should hold the truth in 50 and 90 % of the
            simulations do so ("ranks"), or balls around a random point ("tarp").
        statistic: The expected calibration error, the accuracy of the classifier, or the statistic of the data.
        expected: The same for a right guide, or in the mean of the replications.
    """

    quantity: str
    test: str
    num: int
    p_value: float
    p_adjusted: float
    verdict: str
    shift: float = math.nan
    scale: float = math.nan
    coverage_50: float = math.nan
    coverage_90: float = math.nan
    statistic: float = math.nan
    expected: float = math.nan


@dataclass(frozen=True, repr=False)
class Calibration(Result):
    """Whether a guide is right, test by test.

    Attributes:
        rows: The tests.
        reliability: The discrete sites.
        ranks: The ranks of the truth by quantity, `(S,)` each, from 0 to `num_samples`; -1 where a mask left it out.
        num_simulations, num_samples: S, and the draws L among which the truth is ranked.
        unit: What one simulation is: "datum" or "data set".
        alpha: The probability that some verdict on a right guide is not "fine", about.
        ess: Median effective sample size of the importance weights, of ten times as many draws; NaN without
            re-weighting.
        notes: What else to know.
    """

    title: ClassVar[str] = "calibration"
    _columns: ClassVar[list[str]] = list(CalibrationRow.__dataclass_fields__)

    rows: list[CalibrationRow]
    reliability: list[Reliability]
    ranks: dict[str, Tensor] = field(compare=False)
    num_simulations: int
    num_samples: int
    unit: str
    alpha: float
    ess: float
    notes: list[str]

    def __getitem__(self, quantity: str) -> CalibrationRow:
        """The row of a quantity."""
        for row in self.rows:
            if row.quantity == quantity:
                return row
        raise KeyError(f"no quantity {quantity!r}: there are {', '.join(row.quantity for row in self.rows)}")

    def coverage(self, level: float) -> dict[str, tuple[float, float]]:
        """How often intervals that should hold the truth with probability `level` do so, by quantity.

        Central intervals of each quantity, and for all latents jointly balls around a random point (TARP).

        Returns:
            The nominal level, the nearest that `num_samples` draws allow, and the coverage that was found.

        Raises:
            ValueError: For a level outside 0 to 1.
        """
        if not 0 <= level <= 1:
            raise ValueError(f"level must be between 0 and 1, got {level}")
        found = {}
        for name, ranks in self.ranks.items():
            coverage = ball_coverage if name == JOINT else central_coverage
            found[name] = coverage(ranks[ranks >= 0].numpy(), self.num_samples, level)
        return found

    @property
    def p_value(self) -> float:
        """The least adjusted p-value of the tests of the guide; NaN if none was made."""
        found = [row.p_adjusted for row in self.rows if row.test in GUIDE_TESTS and not math.isnan(row.p_adjusted)]
        return min(found, default=math.nan)

    @property
    def calibrated(self) -> bool:
        """Whether no test of the guide found a fault."""
        return not self.faults

    @property
    def faults(self) -> list[CalibrationRow]:
        """The tests of the guide whose verdict is not "fine", the clearest first."""
        found = [row for row in self.rows if row.test in GUIDE_TESTS and row.p_adjusted <= self.alpha]
        return sorted(found, key=lambda row: row.p_adjusted)

    @property
    def misfits(self) -> list[CalibrationRow]:
        """The statistics in which the given data differ from those that the pair generates, the clearest first."""
        found = [row for row in self.rows if row.test == "predictive" and row.p_adjusted <= self.alpha]
        return sorted(found, key=lambda row: row.p_adjusted)

    @property
    def verdict(self) -> str:
        """All verdicts in a sentence or two."""
        made = sum(row.test in GUIDE_TESTS and not math.isnan(row.p_value) for row in self.rows)
        if not made:
            text = "the guide was not tested"
        elif not self.faults:
            text = f"no fault found in the guide by {made} tests (least adjusted p-value {self.p_value:.2g})"
        else:
            worst = "; ".join(f"{row.quantity} {row.verdict}" for row in self.faults[:3])
            more = f"; and {len(self.faults) - 3} more" if len(self.faults) > 3 else ""
            text = f"the guide is not right, by {len(self.faults)} of {made} tests: {worst}{more}"
        if self.misfits:
            names = ", ".join(f"{row.quantity} {row.verdict}" for row in self.misfits[:3])
            text += f". The given data are not as the pair generates them: {names}"
        return text

    def _rows(self) -> Sequence[Any]:
        return [finite(asdict(row)) for row in self.rows]

    def _values(self) -> dict[str, Any]:
        keys = ("num_simulations", "num_samples", "unit", "alpha", "ess", "p_value", "calibrated", "verdict", "notes")
        return {
            **finite({key: getattr(self, key) for key in keys}),
            "rows": self._rows(),
            "reliability": [finite(asdict(each)) for each in self.reliability],
        }

    def table(self) -> Group:
        """Rich tables: the quantities, the worst first, then the statistics of the data, and the verdict."""
        title = (
            f"calibration: {self.num_simulations} simulations of a {self.unit}, ranks among {self.num_samples} draws"
        )
        columns = ("p-value", "adjusted", "shift", "scale", "in 50 %", "in 90 %")
        tests = new_table(title, "", *columns)
        tests.add_column("")
        guide = sorted((row for row in self.rows if row.test in GUIDE_TESTS), key=lambda row: _last(row.p_value))
        for row in guide[:SHOWN]:
            cells = (_cell(v) for v in (row.shift, row.scale, row.coverage_50, row.coverage_90))
            name = row.quantity if row.test in ("ranks", "tarp") else f"{row.quantity} ({row.test})"
            tests.add_row(escape(name), _p(row.p_value), _p(row.p_adjusted), *cells, escape(row.verdict))
        parts: list[Any] = [tests]
        if len(guide) > SHOWN:
            parts.append(Text(f"... and {len(guide) - SHOWN} more with greater p-values"))
        if self.reliability:
            classes = new_table("probabilities of discrete latents", "", "ECE", "of a right guide", "p-value")
            for each in self.reliability:
                error = f"{each.ece:.4f} ± {each.ece_error:.4f}"
                classes.add_row(escape(each.site), error, f"{each.ece_of_right:.4f}", _p(each.p_value))
            parts.append(classes)
        if data := [row for row in self.rows if row.test == "predictive"]:
            checks = new_table("posterior predictive checks", "", "data", "replications", "p-value", "adjusted")
            checks.add_column("")
            for row in data:
                numbers = (f"{row.statistic:.4g}", f"{row.expected:.4g}", _p(row.p_value), _p(row.p_adjusted))
                checks.add_row(escape(row.quantity), *numbers, escape(row.verdict))
            parts.append(checks)
        parts += [Text(f"note: {note}") for note in self.notes]
        return Group(*parts, Text(f"verdict: {self.verdict}"))

    def _draw(self) -> Figure:
        """The distribution functions of the ranks with their band, coverage, and reliability."""
        kinds = {row.quantity: row.p_adjusted <= self.alpha for row in self.rows if row.test in ("ranks", "tarp")}
        order = sorted(kinds, key=lambda name: _last(self[name].p_value))
        ranks = {name: self.ranks[name].numpy() for name in order if name in self.ranks}
        verdicts = {name: self[name].verdict for name in order}
        return draw(ranks, verdicts, self.num_samples, self.alpha, self.reliability, self.verdict)


def _last(p: float) -> float:
    return math.inf if math.isnan(p) else p


def _cell(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"


def _p(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2g}" if value >= 1e-4 or value == 0 else f"{value:.0e}"
