"""Pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

__all__ = ["as_images", "image_grid", "reconstructions", "save"]


def as_images(x: Tensor) -> Tensor:
    """`(N, C, H, W)` images in [0, 1] from images, or from flattened square ones with 1 or 3 channels.

    Raises
    ------
    ValueError
        If the data cannot be seen as images.
    """
    x = x.detach().float().cpu()
    if x.dim() == 2:
        for channels in (1, 3):
            side = math.isqrt(x.shape[1] // channels)
            if channels * side * side == x.shape[1]:
                x = x.reshape(-1, channels, side, side)
                break
    if x.dim() == 3:
        x = x.unsqueeze(1)
    if x.dim() != 4 or x.shape[1] not in (1, 3):
        raise ValueError(
            f"data of shape {tuple(x.shape)} are no images: expected (N, 1 or 3, H, W), or squares flattened"
        )
    return x.clamp(0, 1)


def image_grid(x: Tensor, *, columns: int | None = None, title: str = "") -> Figure:
    """Images `(N, C, H, W)` or flattened `(N, C H W)` in a grid, row by row."""
    images = as_images(x)
    columns = min(columns or math.isqrt(max(1, len(images) - 1)) + 1, len(images))
    return _tiles([images[i : i + columns] for i in range(0, len(images), columns)], title=title)


def reconstructions(x: Tensor, reconstructed: Tensor, *, columns: int = 10, title: str = "") -> Figure:
    """Inputs above their reconstructions, pair of rows by pair of rows; both `(N, ...)`."""
    a, b = as_images(x), as_images(reconstructed)
    if a.shape != b.shape:
        raise ValueError(f"inputs of shape {tuple(a.shape)} and reconstructions of shape {tuple(b.shape)} do not match")
    rows, labels = [], []
    for i in range(0, len(a), columns):
        rows += [a[i : i + columns], b[i : i + columns]]
        labels += ["input", "recon."]
    return _tiles(rows, labels, title)


def _tiles(rows: list[Tensor], labels: Sequence[str] = (), title: str = "") -> Figure:
    channels, height, width = rows[0].shape[1:]
    columns = max(len(row) for row in rows)
    # one canvas: thousands of axes would be slow; grey lines keep the tiles apart
    canvas = torch.full((channels, len(rows) * (height + 1) + 1, columns * (width + 1) + 1), 0.5)
    for r, row in enumerate(rows):
        for c, image in enumerate(row):
            top, left = r * (height + 1) + 1, c * (width + 1) + 1
            canvas[:, top : top + height, left : left + width] = image
    inches = 0.55
    figure = Figure(
        figsize=(columns * inches + 0.2 + 0.5 * bool(labels), len(rows) * inches * height / width + 0.35 * bool(title)),
        layout="constrained",
    )
    ax = figure.subplots()
    ax.imshow(canvas.permute(1, 2, 0).squeeze(-1), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    ax.set_xticks([])
    ax.set_yticks([(r + 0.5) * (height + 1) for r in range(len(labels))], labels, fontsize=7)
    ax.tick_params(length=0)
    if title:
        ax.set_title(title, fontsize=9)
    return figure


def save(figure: Any, path: str | Path) -> Path:
    """Write a figure, or the figure of some axes, as a picture; returns the path."""
    figure = figure if isinstance(figure, Figure) else figure.figure
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return path
