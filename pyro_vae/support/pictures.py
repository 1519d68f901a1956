"""Matplotlib figures: shown by notebooks, and as bytes."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["as_png", "displayable", "drawable", "empty_figure", "histogram", "without_math"]

DPI = 150


def as_png(figure: Figure) -> bytes:
    """The figure as a PNG, on white."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, facecolor="white")
    return buffer.getvalue()


def displayable(figure: Figure) -> Figure:
    """The same figure, which a notebook shows even if pyplot was never imported."""
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
