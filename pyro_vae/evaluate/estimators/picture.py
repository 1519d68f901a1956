"""The picture of a comparison of estimators."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pyro_vae.evaluate.estimators.recommendation import Recommendation
from pyro_vae.support.pictures import COLORS, drawable, without_math

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_comparison"]

MARKERS = "osD^v<>ph*"


def draw_comparison(rows: Sequence[Any], log_prob: float, advice: Recommendation) -> Figure:
    """Bound and the guide's SNR against particles, and variance against time, one color an estimator.

    Bars are 95 % intervals. In the last panel, points on one gray line have equal variance x seconds, the lower left
    being better; rings are around what is recommended.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, LogLocator, NullLocator, StrMethodFormatter

    figure = Figure(figsize=(14, 4.4), layout="constrained")
    bounds, signal, cost = figure.subplots(1, 3)
    grouped: dict[str, list[Any]] = {}
    for row in rows:
        grouped.setdefault(row.estimator, []).append(row)
    ks = sorted({r.num_particles for r in rows})
    for i, (name, own) in enumerate(grouped.items()):
        style: dict[str, Any] = {"color": COLORS[i % 10], "marker": MARKERS[i % 10], "mfc": "none", "lw": 1.3, "ms": 7}
        # shifted, so that error bars do not overlap
        apart = [r.num_particles * 1.07 ** (i - (len(grouped) - 1) / 2) for r in own]
        errors = drawable(1.96 * r.value_error for r in own)
        bounds.errorbar(apart, [r.value for r in own], errors, label=without_math(name), capsize=2, **style)
        signal.plot(apart, [r.guide_snr for r in own], **style)
        _draw_cost(cost, own, advice.of, style)
    bounds.axhline(log_prob, color="black", lw=0.8, ls=":", label="log p(x)")
    _draw_laws(signal, rows, ks)
    _draw_advice(cost, rows, advice)
    bounds.set(xscale="log", xlabel="particles K", ylabel="nats per datum", title="bound")
    signal.set(xscale="log", yscale="log", xlabel="particles K", title="signal to noise of the guide's gradient")
    cost.set(xscale="log", yscale="log", xlabel="milliseconds per gradient")
    cost.set_title(f"variance of the {advice.of}'s gradient (numbers: K)")
    for ax in (bounds, signal):
        ax.xaxis.set_major_locator(FixedLocator(ks))
    cost.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    for ax in (bounds, signal, cost):
        ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        ax.xaxis.set_minor_locator(NullLocator())
    signal.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    signal.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    signal.yaxis.set_minor_locator(NullLocator())
    for ax in (bounds, signal, cost):
        ax.grid(alpha=0.25, lw=0.6)
        ax.spines[["top", "right"]].set_visible(False)
    figure.legend(*bounds.get_legend_handles_labels(), loc="outside lower center", ncols=min(6, len(grouped) + 1))
    return figure


def _draw_cost(ax: Axes, rows: Sequence[Any], of: str, style: dict[str, Any]) -> None:
    x, y = [1e3 * r.seconds for r in rows], [getattr(r, f"{of}_variance") for r in rows]
    # bars that stay above zero on a logarithmic axis
    across = [min(1960 * r.seconds_error, 0.9 * at) for r, at in zip(rows, x, strict=True)]
    along = [min(1.96 * getattr(r, f"{of}_variance_error"), 0.9 * at) for r, at in zip(rows, y, strict=True)]
    ax.errorbar(x, y, drawable(along), drawable(across), capsize=2, **style)
    for r, at, v in zip(rows, x, y, strict=True):
        ax.annotate(str(r.num_particles), (at, v), (6, 5), textcoords="offset points", color=style["color"], fontsize=8)


def _draw_laws(ax: Axes, rows: Sequence[Any], ks: list[int]) -> None:
    """How the SNR of averages grows, and how that of the importance-weighted bound falls."""
    positive = [r.guide_snr for r in rows if 0 < r.guide_snr < math.inf and r.num_particles == ks[0]]
    if not positive or len(ks) < 2:
        return
    for power, label in ((0.5, "√K"), (-0.5, "1/√K")):
        line = [max(positive) * (k / ks[0]) ** power for k in ks]
        ax.plot(ks, line, color="gray", lw=0.8, ls=":")
        ax.annotate(label, (ks[-1], line[-1]), (-6, -14), textcoords="offset points", ha="right", color="gray")


def _draw_advice(ax: Axes, rows: Sequence[Any], advice: Recommendation) -> None:
    """A ring around the best of each bound, and the line of those as good as the best of the first."""
    at = {(r.estimator, r.num_particles): r for r in rows}
    times = [1e3 * r.seconds for r in rows if r.seconds > 0]
    for i, choice in enumerate(advice.choices):
        row = at[choice.best.estimator, choice.best.num_particles]
        variance = getattr(row, f"{advice.of}_variance")
        if not (variance > 0 and row.seconds > 0):
            continue
        ax.plot(1e3 * row.seconds, variance, "o", ms=17, mfc="none", color="black", lw=1.2)
        if i == 0:
            ends = [0.8 * min(times), 1.25 * max(times)]
            ax.plot(ends, [1e3 * choice.best.value / t for t in ends], color="gray", lw=0.9, ls="--", zorder=0)
