"""The result of `compare_elbos`: one row per estimator and number of particles."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from rich.console import Group
from rich.table import Table
from rich.text import Text

from pyro_vae.evaluate.estimators.picture import draw_comparison
from pyro_vae.evaluate.estimators.recommendation import Recommendation, choose
from pyro_vae.evaluate.marginal.result import LogMarginal
from pyro_vae.support.results import Result
from pyro_vae.support.tables import new_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["ElboComparison", "EstimatorRow"]


@dataclass(frozen=True)
class EstimatorRow:
    """One estimator with one number of particles.

    `value` is the bound in nats per datum, `gap` the reference log p(x) minus the bound. Gradients are those of the
    mean loss over the data, for the model's and the guide's parameters. `variance` is the trace of the covariance of
    one gradient. `snr` is the norm of the expected gradient over the root of the variance. `bias` is the norm of the
    expected gradient's difference from an unbiased gradient of the same bound, relative to the norm of the latter and
    corrected for the noise of both (0 where noise explains the difference), and `bias_error` its standard error.
    `seconds` (the median) and `memory` (peak bytes) are for one gradient, taken alone. `bound` says what the value is
    of: "elbo", "iwae" (the importance-weighted bound of K particles) or "own". The variances by site are those that
    are left when one site's noise alone is drawn anew, E[Var(gradient | all other noise)]; together they are at least
    the variance.
    """

    estimator: str
    num_particles: int
    value: float
    value_error: float
    gap: float
    model_bias: float
    guide_bias: float
    model_variance: float
    guide_variance: float
    model_snr: float
    guide_snr: float
    seconds: float
    memory: int
    model_bias_error: float = 0.0
    guide_bias_error: float = 0.0
    model_variance_error: float = math.nan
    guide_variance_error: float = math.nan
    seconds_error: float = math.nan
    bound: str = "elbo"
    model_variance_by_site: dict[str, float] = field(default_factory=dict)
    guide_variance_by_site: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """All values, with one for each site: `guide_variance_of_z`."""
        result = {name: getattr(self, name) for name in _FIELDS}
        for program in ("model", "guide"):
            by_site = getattr(self, f"{program}_variance_by_site")
            result |= {f"{program}_variance_of_{site}": value for site, value in by_site.items()}
        return result


_FIELDS = [name for name in EstimatorRow.__dataclass_fields__ if not name.endswith("by_site")]


@dataclass(frozen=True, repr=False)
class ElboComparison(Result):
    """The result of `compare_elbos`: rows by estimator and particles, and the reference log p(x)."""

    title: ClassVar[str] = "comparison of estimators"
    _rows_name: ClassVar[str] = "rows"
    _columns: ClassVar[list[str]] = _FIELDS

    rows: list[EstimatorRow]
    reference: LogMarginal
    repeats: int

    def _values(self) -> dict[str, Any]:
        return {"reference": self.reference.to_dict(), "repeats": self.repeats}

    def _rows(self) -> list[dict[str, Any]]:
        return [row.to_dict() for row in self.rows]

    def table(self) -> Group:
        """Rich tables that fit a terminal, the bounds with their cost and the gradients, and what they recommend.

        `var x s`, the guide's gradient variance times the seconds of one gradient, is the cost at equal accuracy.
        """
        title = (
            f"reference log p(x) {self.reference.mean:.2f} ± {self.reference.mean_error:.3f} nats per datum; "
            f"{len(self.reference)} data, {self.repeats} repeats"
        )
        notes = self.reference.caveats
        title += f"; {'; '.join(notes)}. So it is with every gap" if notes else ""
        bounds = new_table(title, "estimator", "K", "bound", "gap", "ms", "MB", "var x s")
        both = ("bias", "bias", "variance", "variance", "SNR", "SNR")
        gradients = new_table("gradients: model | guide", "estimator", "K", *both)
        for r in self.rows:
            name = (r.estimator, str(r.num_particles))
            cost = (f"{1e3 * r.seconds:.1f}", f"{r.memory / 2**20:.1f}", f"{r.guide_variance * r.seconds:.2g}")
            bounds.add_row(*name, f"{r.value:.3f} ± {r.value_error:.3f}", f"{r.gap:.3f}", *cost)
            bias = ((r.model_bias, r.model_bias_error), (r.guide_bias, r.guide_bias_error))
            wide = (*(f"{b:.2g} ± {e:.1g}" for b, e in bias), f"{r.model_variance:.2g}", f"{r.guide_variance:.2g}")
            gradients.add_row(*name, *wide, f"{r.model_snr:.2f}", f"{r.guide_snr:.2f}")
        parts = [
            bounds,
            gradients,
            *([_sites_table(self.rows)] if any(r.guide_variance_by_site for r in self.rows) else []),
        ]
        return Group(*parts, *(Text(line) for line in self.recommend().lines()) if self.rows else ())

    def recommend(self) -> Recommendation:
        """Which estimator has the least error of the gradient at equal time, by bound, with what is not decided.

        The error is variance x seconds of the guide's gradient (of the model's where the guide's does not vary): the
        variance that a second of averaged gradients leaves. Biased estimators are left out, see `EstimatorRow`.
        """
        return choose(self.rows)

    def _draw(self) -> Figure:
        """Bound and guide's SNR against particles; variance against time, with what is recommended."""
        return draw_comparison(self.rows, self.reference.mean, self.recommend())


def _sites_table(rows: list[EstimatorRow]) -> Table:
    """The guide's variance that is left when one site alone is drawn anew, as a share of all."""
    sites = list(dict.fromkeys(site for row in rows for site in row.guide_variance_by_site))
    title = "share of the guide's variance that is left when one site alone is redrawn; together at least 1"
    table = new_table(title, "estimator", "K", *sites)
    for r in rows:
        variance, by_site = r.guide_variance, r.guide_variance_by_site
        cells = [f"{by_site.get(site, math.nan) / variance:.2f}" if variance > 0 else "" for site in sites]
        table.add_row(r.estimator, str(r.num_particles), *cells)
    return table
