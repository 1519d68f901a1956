"""The plot of a calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import numpy as np

from pyro_vae.evaluate.calibration.bands import band, grid
from pyro_vae.evaluate.calibration.classes import Reliability
from pyro_vae.evaluate.calibration.ranking import JOINT
from pyro_vae.evaluate.calibration.verdicts import ball_coverage, central_coverage
from pyro_vae.support.pictures import without_math

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw"]

NAMED = 6  # curves with a color and a name


def draw(
    ranks: Mapping[str, np.ndarray],
    verdicts: Mapping[str, str],
    num_samples: int,
    alpha: float,
    reliability: Sequence[Reliability],
    title: str,
) -> Figure:
    """ECDF differences of the ranks with their band, coverage of central intervals, and reliability.

    Args:
        ranks: Ranks by quantity, those to be named first.
        verdicts: Their verdicts.
        num_samples: The draws among which the truth was ranked.
        alpha: One minus the probability that a right curve stays in the band.
        reliability: Discrete sites.
        title: Title of the figure.
    """
    from matplotlib.figure import Figure

    panels = 2 * bool(ranks) + bool(reliability) or 1
    figure = Figure(figsize=(4.4 * panels, 4.2), layout="constrained")
    axes = list(figure.subplots(1, panels, squeeze=False)[0])
    if ranks:
        _differences(axes[0], ranks, verdicts, num_samples, alpha)
        _coverage(axes[1], ranks, num_samples)
    if reliability:
        _reliability(axes[-1], reliability)
    if not ranks and not reliability:
        axes[0].text(0.5, 0.5, "no ranks", ha="center", va="center")
        axes[0].axis("off")
    figure.suptitle(without_math(shorten(title, 120, placeholder=" ...")), fontsize=9)
    return figure


def _differences(
    ax: Any, ranks: Mapping[str, np.ndarray], verdicts: Mapping[str, str], num_samples: int, alpha: float
) -> None:
    points = grid(num_samples)
    share = (points + 1) / (num_samples + 1)
    size = max((int((rank >= 0).sum()) for rank in ranks.values()), default=0)
    if size:
        lower, upper = band(size, num_samples, alpha)
        ax.fill_between(share, lower - share, upper - share, color="0.85", lw=0, label=f"{1 - alpha:.0%} band")
    for i, (name, rank) in reversed(list(enumerate(ranks.items()))):
        known = np.sort(rank[rank >= 0])
        if not len(known):
            continue
        difference = np.searchsorted(known, points, side="right") / len(known) - share
        label = without_math(f"{name}: {verdicts.get(name, '')}") if i < NAMED else None
        ax.plot(share, difference, lw=1.3 if i < NAMED else 0.6, label=label, color=_color(i), zorder=3 - (i >= NAMED))
    ax.axhline(0, color="black", lw=0.6, ls=":")
    ax.set(xlabel="rank of the truth among the draws", ylabel="ECDF - uniform")
    handles, labels = ax.get_legend_handles_labels()
    ax.figure.legend(handles[::-1], labels[::-1], fontsize=7, loc="outside lower center", ncols=3, frameon=False)


def _coverage(ax: Any, ranks: Mapping[str, np.ndarray], num_samples: int) -> None:
    levels = np.linspace(0, 1, 51)
    for i, (name, rank) in reversed(list(enumerate(ranks.items()))):
        if len(known := rank[rank >= 0]):
            coverage = ball_coverage if name == JOINT else central_coverage
            nominal, held = np.array([coverage(known, num_samples, level) for level in levels]).T
            ax.plot(nominal, held, lw=1.3 if i < NAMED else 0.6, color=_color(i), zorder=3 - (i >= NAMED))
    ax.plot([0, 1], [0, 1], color="black", lw=0.6, ls=":")
    ax.set(xlabel="nominal coverage of intervals or balls", ylabel="how often they hold the truth")


def _reliability(ax: Any, sites: Sequence[Reliability]) -> None:
    for i, site in enumerate(sites):
        error = [2 * np.sqrt(max(p * (1 - p), 1e-9) / n) for p, n in zip(site.predicted, site.count, strict=True)]
        label = without_math(f"{site.site}: {site.verdict}")
        ax.errorbar(site.predicted, site.observed, error, marker=".", lw=1, capsize=2, color=_color(i), label=label)
    ax.plot([0, 1], [0, 1], color="black", lw=0.6, ls=":")
    ax.set(xlabel="probability under the guide", ylabel="frequency of the truth")
    ax.legend(fontsize=7)


def _color(index: int) -> str:
    return f"C{index}" if index < NAMED else "0.6"
