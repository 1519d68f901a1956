"""The plot of a latent report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from pyro_vae.evaluate.latent.dimensions import ACTIVE, LatentDimension, sort_by_kl
from pyro_vae.support.pictures import drawable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw"]

COLORS = {"active": "C0", "collapsed": "C3", "idle": "C1", "unknown": "C7", "auxiliary": "C8"}
FLOOR = 1e-6  # smallest value on a logarithmic axis


def draw(
    dimensions: Sequence[LatentDimension], draws: Mapping[str, Tensor], prior_draws: Mapping[str, Tensor], title: str
) -> Figure:
    """KL and activity of the dimensions, by falling KL, and q(z) against p(z) in the (up to) four most active ones.

    Args:
        dimensions: The dimensions; those of one site in their order.
        draws, prior_draws: For each site, draws from q(z|x) and from p(z), `(N, num_dims)`.
        title: Title of the left half.
    """
    from matplotlib.figure import Figure

    ordered = sort_by_kl(dimensions)
    best = sorted(dimensions, key=lambda d: -math.inf if math.isnan(d.activity) else d.activity)[:-5:-1]
    figure = Figure(figsize=(13, 4), layout="constrained")
    parts: Any = figure.subfigures(1, 2, width_ratios=(1.6, 1))
    left, right = parts
    kl, activity = left.subplots(1, 2)
    for status, color in COLORS.items():
        ranks = [i for i, d in enumerate(ordered, start=1) if d.status == status]
        if ranks:
            label = f"{len(ranks)} {status}"
            kl.bar(ranks, drawable((ordered[i - 1].kl for i in ranks), math.nan), color=color, label=label)
            heights = drawable((max(ordered[i - 1].activity, FLOOR) for i in ranks), math.nan)
            activity.scatter(ranks, heights, color=color, s=16, label=label)
    kl.set(ylabel="KL (nats per datum)")
    activity.axhline(ACTIVE, color="gray", lw=0.8, ls=":")
    activity.set(yscale="log", ylabel="activity Var_x E_q[z|x]")
    activity.set_ylim(top=2 * max([0.05, *(d.activity for d in ordered if math.isfinite(d.activity))]))
    for ax in (kl, activity):
        ax.set(xlabel="latent dimension, by falling KL", xlim=(0.2, len(ordered) + 0.8))
        ax.locator_params(axis="x", integer=True)
    kl.legend(fontsize=8)
    left.suptitle(title, fontsize=10)
    if best:
        grid = right.subplots(1 if len(best) < 3 else 2, 1 if len(best) == 1 else 2, squeeze=False)
        for ax, d in zip(grid.flat, best, strict=False):
            index = [other.name for other in dimensions if other.site == d.site].index(d.name)
            _histogram(ax, *(part[d.site][:, index : index + 1] for part in (draws, prior_draws) if d.site in part))
            ax.set_title(d.name, fontsize=8)
        for ax in right.axes[len(best) :]:
            ax.remove()
        right.suptitle("aggregate posterior (filled) and prior (line)", fontsize=10)
    return figure


def _histogram(ax: Any, *draws: Tensor) -> None:
    """Draws from q(z), filled, and those from p(z), if there are any, as a line."""
    found = [part.flatten().numpy() for part in draws if part.numel()]
    edges = np.histogram_bin_edges(np.concatenate(found), bins=20)
    ax.hist(found[0], edges, density=True, color="C0", alpha=0.5)
    for prior in found[1:]:
        ax.hist(prior, edges, density=True, histtype="step", color="black", lw=1)
    ax.set_yticks([])
    ax.tick_params(labelsize=7)
