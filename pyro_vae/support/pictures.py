"""Matplotlib figures: one style, shown by notebooks, and as bytes."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "COLORS",
    "as_png",
    "displayable",
    "drawable",
    "empty_figure",
    "histogram",
    "style",
    "styled",
    "without_math",
]

DPI = 150

# Okabe and Ito's, which people with any color vision tell apart, without the yellow that is too pale on white; then
# four more, for more classes than should be told apart by color alone
COLORS = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"),
    *("#7a4fb5", "#8c510a", "#5c7a1f", "#75787e"),
)

STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "lines.linewidth": 1.4,
    "errorbar.capsize": 3,
    "figure.dpi": DPI,
    "figure.facecolor": "white",
    "pdf.fonttype": 42,  # text that journals and editors can read
    "svg.fonttype": "none",
}


def style() -> dict[Any, Any]:
    """Matplotlib's settings for the one style of the library."""
    from cycler import cycler

    return {**STYLE, "axes.prop_cycle": cycler(color=COLORS)}


@contextmanager
def styled() -> Iterator[None]:
    """A context in which figures are drawn in the one style of the library; the user's settings come back after it."""
    import matplotlib

    with matplotlib.rc_context(style()):
        yield


def as_png(figure: Figure) -> bytes:
    """The figure as a PNG, on white."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, facecolor="white")
    return buffer.getvalue()


def displayable(figure: Figure) -> Figure:
    """The same figure, which a notebook shows even if pyplot was never imported; drawn within `styled`.

    Colors such as "C0" are set for good: matplotlib looks them up when a line is drawn, which is after the context.
    """
    from matplotlib.colors import to_hex
    from matplotlib.lines import Line2D
    from matplotlib.text import Text

    artists: list[Any] = figure.findobj(lambda found: isinstance(found, Line2D | Text))
    for artist in artists:
        if str(artist.get_color()).lower() not in ("none", "auto"):
            artist.set_color(to_hex(artist.get_color(), keep_alpha=True))
    figure._repr_png_ = partial(as_png, figure)  # type: ignore[attr-defined]
    return figure


def empty_figure(text: str) -> Figure:
    """A figure that holds only a text, for a result with nothing to draw."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 1.2))
    figure.text(0.5, 0.5, text, ha="center", va="center")
    return figure


def drawable(values: Iterable[float], instead: float = 0.0) -> list[float]:
    """Lengths of bars and error bars: `instead` replaces a value that is not finite (NaN draws no bar)."""
    return [value if math.isfinite(value) else instead for value in values]


def without_math(text: str) -> str:
    """Escape dollar signs, so that matplotlib does not read them as math."""
    return text.replace("$", r"\$")


def histogram(ax: Any, values: Tensor | Iterable[float], xlabel: str) -> None:
    """Draw a histogram of the finite values; the title counts those that are not finite."""
    values = torch.as_tensor(list(values) if not isinstance(values, Tensor) else values).detach().double().cpu()
    shown = values[values.isfinite()].flatten().tolist()
    ax.set(xlabel=xlabel, ylabel="data")
    if shown:
        ax.hist(shown, bins=min(40, max(5, len(shown) // 5)), edgecolor="white", lw=0.5)
        ax.locator_params(axis="y", integer=True)
    if rest := values.numel() - len(shown):
        ax.set_title(f"{rest} of {values.numel()} are not finite", fontsize=9)
