"""The picture of a latent report."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

__all__ = ["draw"]

COLOURS = {"active": "C0", "collapsed": "C3", "idle": "C1", "unknown": "C7", "auxiliary": "C8"}
FLOOR = 1e-6  # of what a logarithmic axis shows


def draw(report: Any) -> Any:
    """KL and activity of the dimensions, by falling KL, and q(z) against p(z) in the (up to) four most active ones."""
    from matplotlib.figure import Figure

    ordered = report.ordered
    best = sorted(report.dimensions, key=lambda d: -math.inf if math.isnan(d.activity) else d.activity)[:-5:-1]
    figure = Figure(figsize=(13, 4), layout="constrained")
    parts: Any = figure.subfigures(1, 2, width_ratios=(1.6, 1))
    left, right = parts
    kl, activity = left.subplots(1, 2)
    for status, colour in COLOURS.items():
        at = [i for i, d in enumerate(ordered, start=1) if d.status == status]
        if at:
            label = f"{len(at)} {status}"
            kl.bar(at, [ordered[i - 1].kl for i in at], color=colour, label=label)
            heights = [max(ordered[i - 1].activity, FLOOR) for i in at]
            activity.scatter(at, heights, color=colour, s=16, label=label)
    kl.set(ylabel="KL (nats per datum)")
    activity.axhline(0.01, color="grey", lw=0.8, ls=":")
    activity.set(yscale="log", ylabel="activity Var_x E_q[z|x]")
    activity.set_ylim(top=2 * max([0.05, *(d.activity for d in ordered if not math.isnan(d.activity))]))
    for ax in (kl, activity):
        ax.set(xlabel="latent dimension, by falling KL", xlim=(0.2, len(ordered) + 0.8))
        ax.locator_params(axis="x", integer=True)
    kl.legend(fontsize=8)
    left.suptitle(
        f"KL {report.kl:.2f} = I(n; z) {report.mutual_information:.2f} + KL(q(z) || p(z)) {report.marginal_kl:.2f}",
        fontsize=10,
    )
    if best:
        grid = right.subplots(1 if len(best) < 3 else 2, 1 if len(best) == 1 else 2, squeeze=False)
        for ax, d in zip(grid.flat, best, strict=False):
            _histogram(ax, d, report)
        for ax in right.axes[len(best) :]:
            ax.remove()
        right.suptitle("aggregate posterior (filled) and prior (line)", fontsize=10)
    return figure


def _histogram(ax: Any, d: Any, report: Any) -> None:
    index = [other.name for other in report.dimensions if other.site == d.site].index(d.name)
    q = report.draws[d.site][:, index].numpy()
    both = [q]
    if d.site in report.prior_draws and report.prior_draws[d.site].shape[1] > index:
        both.append(report.prior_draws[d.site][:, index].numpy())
    edges = np.histogram_bin_edges(np.concatenate(both), bins=20)
    ax.hist(q, edges, density=True, color="C0", alpha=0.5)
    for p in both[1:]:
        ax.hist(p, edges, density=True, histtype="step", color="black", lw=1)
    ax.set_title(d.name, fontsize=8)
    ax.set_yticks([])
    ax.tick_params(labelsize=7)
