"""Which estimator a comparison speaks for, what it leaves open, and in which words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from rich.console import Group
from rich.text import Text

from pyro_vae.support.pictures import without_math
from pyro_vae.support.results import PanelResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Choice", "Cost", "Recommendation", "choose"]

QUANTILE = 1.96


Row = Any  # an EstimatorRow


@dataclass(frozen=True)
class Cost:
    """The gradient's variance times its seconds: the variance that one second of averaged gradients leaves.

    `low` and `high` are the 95 % interval, from the standard errors of the variance and of the time. `ratio` and its
    interval are relative to the least cost of the same bound.
    """

    estimator: str
    num_particles: int
    value: float
    low: float
    high: float
    ratio: float
    ratio_low: float
    ratio_high: float

    def __str__(self) -> str:
        return f"{self.estimator} with K = {self.num_particles}"


@dataclass(frozen=True)
class Choice:
    """The estimator of one bound with the least variance x seconds of its gradient, among those without bias.

    `bound` is "ELBO", or "L_K" with its number K. `best` has the least cost, `undecided` are those whose interval of
    the ratio to it holds 1, `others` all that cost more. `particles` compares K of the best estimator: the cost at the
    largest K over that at the smallest with its 95 % interval, None for one K.
    """

    bound: str
    best: Cost
    undecided: tuple[Cost, ...]
    others: tuple[Cost, ...]
    particles: tuple[int, int, float, float, float] | None

    def lines(self) -> list[str]:
        """What is said of it."""
        b, count = self.best, 1 + len(self.undecided) + len(self.others)
        found = f"variance x seconds {b.value:.2g} (95 % interval {b.low:.2g} to {b.high:.2g})"
        bound = "the ELBO" if self.bound == "ELBO" else self.bound
        result = [f"For {bound}: {b}, {found}" + (f", the least of {count}." if count > 1 else ".")]
        if self.others:
            o = self.others[0]
            result.append(f"  The next, {o}, costs {_times(o.ratio, o.ratio_low, o.ratio_high)} as much.")
        if self.undecided:
            several = ", ".join(map(str, self.undecided))
            result.append(f"  Not decided against {several}: more repeats tell them apart.")
        if self.particles is not None:
            least, most, ratio, low, high = self.particles
            said = "they pay" if high < 1 else "they do not pay" if low > 1 else "whether they pay is not decided"
            result.append(
                f"  More particles of {b.estimator}: K = {most} costs {_times(ratio, low, high)} as much as "
                f"K = {least} at equal accuracy, so {said}."
            )
        return result


@dataclass(frozen=True, repr=False)
class Recommendation(PanelResult):
    """The result of `comparison.recommend()`: a choice for each bound, and what is left out or open."""

    title: ClassVar[str] = "recommendation"
    _rows_name: ClassVar[str] = "costs"
    _columns: ClassVar[list[str]] = ["bound", *Cost.__dataclass_fields__]
    _width: ClassVar[int] = 120

    choices: list[Choice]
    of: str
    biased: list[str]
    own: list[str]

    def __getitem__(self, bound: str) -> Choice:
        """The choice for a bound, "ELBO" or "L_5"."""
        found = {choice.bound: choice for choice in self.choices}
        if bound not in found:
            raise KeyError(f"no bound {bound!r}; there are {', '.join(found) or 'none'}")
        return found[bound]

    def lines(self) -> list[str]:
        """The sentences that are printed."""
        result = [f"By the error of the {self.of}'s gradient at equal time (variance x seconds):"]
        for choice in self.choices:
            result += choice.lines()
        if not self.choices:
            result.append("No estimator without bias has a bound that another one shares.")
        if self.biased:
            result.append(f"Biased for the gradient of its bound, so left out: {'; '.join(self.biased)}.")
        if self.own:
            result.append(f"With a bound of its own, which nothing here shares: {', '.join(self.own)}.")
        result.append(
            "Not decided by these data: which bound trains the better pair (pv.compare_training), and what is best at "
            "other weights than these."
        )
        return result

    def _values(self) -> dict[str, Any]:
        best = {choice.bound: str(choice.best) for choice in self.choices}
        return {"of": self.of, "best": best, "biased": self.biased, "own": self.own}

    def _rows(self) -> list[dict[str, Any]]:
        return [
            {"bound": choice.bound, **vars(cost)}
            for choice in self.choices
            for cost in (choice.best, *choice.undecided, *choice.others)
        ]

    def table(self) -> Group:
        """The sentences."""
        return Group(*(Text(line) for line in self.lines()))

    def _size(self) -> tuple[float, float]:
        return 8, 0.35 * len(self._rows()) + 1.3

    def _panel(self, ax: Axes) -> None:
        """Each estimator's cost over the least of its bound, with the 95 % interval."""
        rows = self._rows()[::-1]
        for i, row in enumerate(rows):
            if not (row["ratio"] > 0 and math.isfinite(row["ratio"])):
                continue
            color = "C0" if row["ratio"] == 1 else "C1" if row["ratio_low"] <= 1 else "gray"
            ends = [row["ratio"] - row["ratio_low"]], [row["ratio_high"] - row["ratio"]]
            ax.errorbar(row["ratio"], i, xerr=ends, marker="o", color=color, capsize=3)
        names = [f"{row['bound']}: {row['estimator']}, K = {row['num_particles']}" for row in rows]
        ax.set_yticks(range(len(rows)), [without_math(name) for name in names])
        ax.axvline(1, color="black", lw=0.8, ls=":")
        ax.set(xscale="log", xlabel="variance x seconds, over the least of its bound")


def choose(rows: Sequence[Row]) -> Recommendation:
    """Choose by bound. The gradient is the guide's, or the model's where the guide has no parameters that vary."""
    of = "guide" if any(row.guide_variance > 0 for row in rows) else "model"
    biased, own, groups = list[str](), list[str](), dict[str, list[Row]]()
    for row in rows:
        name = f"{row.estimator} with K = {row.num_particles}"
        biases = {
            program: (getattr(row, f"{program}_bias"), getattr(row, f"{program}_bias_error"))
            for program in ("model", "guide")
        }
        found = [f"{p} {b:.2g} ± {e:.1g}" for p, (b, e) in biases.items() if b > 0 or math.isnan(b)]
        if found:
            biased.append(f"{name} ({', '.join(found)} of the gradient's norm)")
        elif row.bound == "own":
            own.append(name)
        elif row.bound == "iwae" and row.num_particles > 1:
            groups.setdefault(f"L_{row.num_particles}", []).append(row)
        else:
            groups.setdefault("ELBO", []).append(row)
    choices = [_choice(bound, group, of) for bound, group in sorted(groups.items(), key=lambda g: (len(g[0]), g[0]))]
    choices.sort(key=lambda choice: choice.bound != "ELBO")
    return Recommendation(choices, of, biased, own)


def _choice(bound: str, rows: list[Row], of: str) -> Choice:
    least = min(rows, key=lambda row: _cost(row, of)[0])
    costs = sorted((_relative(row, least, of) for row in rows if row is not least), key=lambda cost: cost.ratio)
    undecided = tuple(cost for cost in costs if not cost.ratio_low > 1)
    others = tuple(cost for cost in costs if cost.ratio_low > 1)
    own = sorted((row for row in rows if row.estimator == least.estimator), key=lambda row: row.num_particles)
    particles = None
    if len(own) > 1:
        compared = _relative(own[-1], own[0], of)
        sizes = own[0].num_particles, own[-1].num_particles
        particles = (*sizes, compared.ratio, compared.ratio_low, compared.ratio_high)
    return Choice(bound, _relative(least, least, of), undecided, others, particles)


def _cost(row: Row, of: str) -> tuple[float, float]:
    """Variance x seconds, and the standard error of its logarithm."""
    variance, error = getattr(row, f"{of}_variance"), getattr(row, f"{of}_variance_error")
    value = variance * row.seconds
    if not value > 0:
        return value, 0.0
    return value, math.hypot(error / variance, row.seconds_error / row.seconds)


def _relative(row: Row, least: Row, of: str) -> Cost:
    (value, error), (base, base_error) = _cost(row, of), _cost(least, of)
    low, high = _interval(value, error)
    if row is least:
        ratio = ratio_low = ratio_high = 1.0
    else:
        ratio = value / base if base > 0 else 1.0 if value == base else math.inf
        ratio_low, ratio_high = _interval(ratio, math.hypot(error, base_error))
    return Cost(row.estimator, row.num_particles, value, low, high, ratio, ratio_low, ratio_high)


def _interval(value: float, error: float) -> tuple[float, float]:
    """A 95 % interval of a positive number, from the standard error of its logarithm."""
    if not math.isfinite(value) or value == 0:
        return value, value
    if math.isnan(error):
        return 0.0, math.inf
    return value * math.exp(-QUANTILE * error), value * math.exp(min(700.0, QUANTILE * error))


def _times(ratio: float, low: float, high: float) -> str:
    return f"{ratio:.2g} times ({low:.2g} to {high:.2g})"
