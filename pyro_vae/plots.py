"""Pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["as_images", "image_grid", "reconstructions", "save"]

_DPI = 150
_TILE = 84  # dots that a tile takes, about


def as_images(x: Tensor) -> Tensor:
    """`(N, C, H, W)` images, clipped to [0, 1], from images `(N, H, W)` or `(N, C, H, W)` with 1 or 3 channels.

    Data flattened to `(N, D)` count as square images if D is a square number or three times one.

    Raises
    ------
    ValueError
        If the data cannot be seen as images.
    """
    images = x.detach().float().cpu()
    if x.dim() == 2:
        for channels in (1, 3):
            side = math.isqrt(x.shape[1] // channels)
            if channels * side * side == x.shape[1]:
                images = images.reshape(-1, channels, side, side)
                break
    if x.dim() == 3:
        images = images.unsqueeze(1)
    if images.dim() != 4 or images.shape[1] not in (1, 3) or not images.numel():
        raise ValueError(
            f"data of shape {tuple(x.shape)} are no images: expected (N, 1 or 3, H, W), (N, H, W), or square images "
            "flattened to (N, D); reshape them first"
        )
    if images.isnan().any():
        raise ValueError(f"{int(images.isnan().flatten(1).any(1).sum())} of {len(images)} images hold NaN")
    return images.clamp(0, 1)


def image_grid(x: Tensor, *, columns: int | None = None, title: str = "") -> Figure:
    """Images in a grid, row by row, in any shape that `as_images` takes; by default about as many rows as columns."""
    images = as_images(x)
    columns = _check_columns(columns or math.isqrt(len(images) - 1) + 1, len(images))
    return _tiles([images[i : i + columns] for i in range(0, len(images), columns)], title=title)


def reconstructions(x: Tensor, reconstructed: Tensor, *, columns: int = 10, title: str = "") -> Figure:
    """Inputs above their reconstructions, two rows at a time; both of one shape that `as_images` takes."""
    a, b = as_images(x), as_images(reconstructed)
    if a.shape != b.shape:
        raise ValueError(f"inputs of shape {tuple(a.shape)} and reconstructions of shape {tuple(b.shape)} do not match")
    columns = _check_columns(columns, len(a))
    rows, labels = [], []
    for i in range(0, len(a), columns):
        rows += [a[i : i + columns], b[i : i + columns]]
        labels += ["input", "reconstruction"]
    return _tiles(rows, labels, title)


def _check_columns(columns: int, total: int) -> int:
    if columns < 1:
        raise ValueError(f"columns must be at least 1, got {columns}")
    return min(columns, total)


def _tiles(rows: list[Tensor], labels: Sequence[str] = (), title: str = "") -> Figure:
    from matplotlib.figure import Figure

    channels, height, width = rows[0].shape[1:]
    columns = max(len(row) for row in rows)
    # one canvas: thousands of axes would be slow; grey lines around the tiles, white where there is none
    canvas = torch.ones(channels, len(rows) * (height + 1) + 1, columns * (width + 1) + 1)
    for r, row in enumerate(rows):
        for c, image in enumerate(row):
            top, left = r * (height + 1), c * (width + 1)
            canvas[:, top : top + height + 2, left : left + width + 2] = 0.5
            canvas[:, top + 1 : top + height + 1, left + 1 : left + width + 1] = image
    # a whole number of dots for each pixel keeps all pixels equal
    dots = max(1, round(_TILE / max(height, width)))
    high, wide = (size * dots / _DPI for size in canvas.shape[1:])
    beside, above = 0.8 * bool(labels), 0.25 * bool(title)
    figure = Figure(figsize=(beside + wide, above + high), dpi=_DPI)
    ax = figure.add_axes((beside / (beside + wide), 0, wide / (beside + wide), high / (above + high)))
    ax.imshow(canvas.permute(1, 2, 0).squeeze(-1), cmap="gray", vmin=0, vmax=1, interpolation="nearest", aspect="auto")
    ax.axis("off")
    for r, label in enumerate(labels):
        ax.annotate(
            label,
            (0, 1 - (r + 0.5) / len(rows)),
            (-4, 0),
            xycoords="axes fraction",
            textcoords="offset points",
            ha="right",
            va="center",
            fontsize=7,
        )
    if title:
        figure.text(0.5, 1, title, ha="center", va="top", fontsize=9)
    return figure


def save(figure: Any, path: str | Path) -> Path:
    """Write a figure, or the figure of some axes, in the format of the path's ending; returns the path."""
    figure = getattr(figure, "figure", None) or figure
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=_DPI, facecolor="white")
    return path
