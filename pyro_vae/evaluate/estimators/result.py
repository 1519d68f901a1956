"""The result of `compare_elbos`: one row per estimator and number of particles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from rich.console import Group

from pyro_vae.evaluate.marginal.result import LogMarginal
from pyro_vae.support.pictures import drawable, without_math
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
    `seconds` and `memory` (peak bytes) are for one gradient.
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


@dataclass(frozen=True, repr=False)
class ElboComparison(Result):
    """The result of `compare_elbos`: rows by estimator and particles, and the reference log p(x)."""

    title: ClassVar[str] = "comparison of estimators"
    _rows_name: ClassVar[str] = "rows"
    _columns: ClassVar[list[str]] = list(EstimatorRow.__dataclass_fields__)

    rows: list[EstimatorRow]
    reference: LogMarginal
    repeats: int

    def _values(self) -> dict[str, Any]:
        return {"reference": self.reference.to_dict(), "repeats": self.repeats}

    def _rows(self) -> list[EstimatorRow]:
        return self.rows

    def table(self) -> Group:
        """Two rich tables that fit a terminal: the bounds with their cost, and the gradients.

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
        return Group(bounds, gradients)

    def _draw(self) -> Figure:
        """Bound against particles, the guide's SNR against particles, its variance against time."""
        from matplotlib.figure import Figure
        from matplotlib.ticker import FixedLocator, LogLocator, NullLocator, StrMethodFormatter

        figure = Figure(figsize=(13, 4), layout="constrained")
        bounds, signal, cost = figure.subplots(1, 3)
        grouped: dict[str, list[EstimatorRow]] = {}
        for row in self.rows:
            grouped.setdefault(row.estimator, []).append(row)
        ks = sorted({r.num_particles for r in self.rows})
        for i, (name, rows) in enumerate(grouped.items()):
            k = [r.num_particles for r in rows]
            # estimators may have equal bounds or gradients: hollow markers of falling size keep all visible
            style: dict[str, Any] = {
                "color": f"C{i}",
                "marker": "osD^v<>ph*"[i % 10],
                "mfc": "none",
                "lw": 1.2,
                "alpha": 0.9,
                "ls": (0, (4 + i, i)) if i else "-",
                "ms": max(4.0, 10 - 1.5 * i),
            }
            # shifted, so that error bars do not overlap
            apart = [x * 1.06 ** (i - (len(grouped) - 1) / 2) for x in k]
            bounds.errorbar(
                apart, [r.value for r in rows], drawable(r.value_error for r in rows), label=without_math(name), **style
            )
            signal.plot(k, [r.guide_snr for r in rows], **style)
            cost.plot([1e3 * r.seconds for r in rows], [r.guide_variance for r in rows], **style)
            for r in rows:
                label, point = str(r.num_particles), (1e3 * r.seconds, r.guide_variance)
                cost.annotate(label, point, (5, 5), textcoords="offset points", fontsize=6, color=f"C{i}")
        bounds.axhline(self.reference.mean, color="black", lw=0.8, ls=":", label="log p(x)")
        positive = [r.guide_snr for r in self.rows if r.guide_snr > 0 and r.num_particles == ks[0]]
        if positive and len(ks) > 1:
            for power, label in ((0.5, "√K"), (-0.5, "1/√K")):
                line = [max(positive) * (k / ks[0]) ** power for k in ks]
                signal.plot(ks, line, color="gray", lw=0.8, ls=":")
                signal.annotate(
                    label, (ks[-1], line[-1]), (-8, 6), textcoords="offset points", ha="right", color="gray"
                )
        bounds.set(xscale="log", xlabel="particles K", ylabel="bound (nats per datum)")
        signal.set(xscale="log", yscale="log", xlabel="particles K", ylabel="SNR of the guide's gradient")
        cost.set(
            xscale="log", yscale="log", xlabel="milliseconds per gradient", ylabel="variance of the guide's gradient"
        )
        signal.margins(y=0.1)
        for ax in (bounds, signal):
            ax.xaxis.set_major_locator(FixedLocator(ks))
        cost.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        for ax in (bounds, signal, cost):
            ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            ax.xaxis.set_minor_locator(NullLocator())
        figure.legend(*bounds.get_legend_handles_labels(), loc="outside right upper", fontsize=8)
        return figure
