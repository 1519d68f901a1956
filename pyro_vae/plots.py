"""Pictures of images and of codes as matplotlib figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyro_vae.support.arguments import checked
from pyro_vae.support.pictures import COLORS, displayable, style, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["as_images", "embeddings", "image_grid", "image_rows", "reconstructions", "save", "use_style"]

_DPI = 150
_TILE = 84  # dots of the longer side of an image, about
_GAP = 5  # dots between images


def use_style() -> None:
    """Draw all figures of this process as this library draws its own: sizes, fonts, colors for every color vision.

    The figures of results have this style without it. `matplotlib.rcdefaults()` takes it back.
    """
    import matplotlib

    matplotlib.rcParams.update(style())


@checked
def as_images(x: Tensor) -> Tensor:
    """`(N, C, H, W)` images, clipped to [0, 1], from images `(N, H, W)` or `(N, C, H, W)` with 1 or 3 channels.

    Data flattened to `(N, D)` count as square images if D is a square number or three times one.

    Raises:
        ValueError: If the data do not have the shape of images, or hold NaN.
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
            f"data of shape {tuple(x.shape)} are not images: expected (N, 1 or 3, H, W), (N, H, W), or square images "
            "flattened to (N, D); reshape them first"
        )
    if images.isnan().any():
        raise ValueError(f"{int(images.isnan().flatten(1).any(1).sum())} of {len(images)} images hold NaN")
    return images.clamp(0, 1)


@checked
def image_grid(x: Tensor, *, columns: int | None = None, title: str = "", ax: Any = None) -> Figure:
    """Images in a grid, row by row, of any shape that `as_images` accepts; by default about as many rows as columns.

    Drawn into the axes `ax`, if given, else into a new figure, in which a pixel is a whole number of dots.
    """
    images = as_images(x)
    columns = _check_columns(columns or math.isqrt(len(images) - 1) + 1, len(images))
    return _tiles([images[i : i + columns] for i in range(0, len(images), columns)], title=title, ax=ax)


@checked
def image_rows(rows: Mapping[str, Tensor], *, title: str = "", ax: Any = None) -> Figure:
    """Named rows of images, one below the other, all of one shape that `as_images` accepts; `ax` as in `image_grid`."""
    images = [as_images(row) for row in rows.values()]
    shapes = {tuple(row.shape[1:]) for row in images}
    if len(shapes) != 1:
        raise ValueError(f"expected rows of images of one shape, got images of different shapes, {shapes or 'no rows'}")
    return _tiles(images, list(rows), title, ax)


@checked
def embeddings(points: Mapping[str, Tensor], labels: Tensor, *, title: str = "", ax: Any = None) -> Figure:
    """Scatter plots of named sets of codes `(N, 2)`, colored by `labels` `(N,)` with at most 20 classes.

    The name of each class stands at its middle, too, so that color is not all that tells them apart. One set is drawn
    into the axes `ax`, if given.

    Raises:
        ValueError: For points or labels of another shape, more than 20 classes, or several sets for one `ax`.
    """
    classes = labels.unique().tolist()
    if len(classes) > 20:
        raise ValueError(f"{len(classes)} classes cannot be told apart by color: give labels with at most 20")
    if ax is not None and len(points) != 1:
        raise ValueError(f"ax has room for one set of points, got {len(points)}: leave it out")
    for name, xy in points.items():
        if xy.shape != (len(labels), 2):
            raise ValueError(f"points {name!r} have shape {tuple(xy.shape)}, expected ({len(labels)}, 2)")
    with styled():
        if ax is not None:
            _scatter(ax, *next(iter(points.items())), labels)
            return ax.figure
        from matplotlib.figure import Figure

        figure = Figure(figsize=(3.6 * len(points) + 0.7, 3.8), dpi=_DPI, layout="constrained")
        for panel, (name, xy) in zip(figure.subplots(1, len(points), squeeze=False).flat, points.items(), strict=True):
            _scatter(panel, name, xy, labels)
        handles, names = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside right center", markerscale=3)
        if title:
            figure.suptitle(title)
        return displayable(figure)


def _scatter(ax: Any, name: str, xy: Tensor, labels: Tensor) -> None:
    """One set of points, with the name of each class at its middle."""
    from matplotlib.patheffects import withStroke

    for i, label in enumerate(labels.unique().tolist()):
        chosen = xy[labels == label].detach().cpu()
        marker = "o" if i < len(COLORS) else "^"
        ax.scatter(
            *chosen.T.numpy(), s=5, marker=marker, color=COLORS[i % len(COLORS)], lw=0, alpha=0.6, label=str(label)
        )
        x, y = chosen.median(0).values.tolist()
        around = [withStroke(linewidth=2.5, foreground="white")]
        ax.text(x, y, str(label), ha="center", va="center", weight="bold", path_effects=around)
    ax.set_title(name)
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    ax.set_aspect("equal", adjustable="datalim")


@checked
def reconstructions(x: Tensor, reconstructed: Tensor, *, columns: int = 10, title: str = "", ax: Any = None) -> Figure:
    """Inputs above their reconstructions, two rows at a time; both of one shape that `as_images` accepts.

    `ax` as in `image_grid`.
    """
    a, b = as_images(x), as_images(reconstructed)
    if a.shape != b.shape:
        raise ValueError(f"inputs of shape {tuple(a.shape)} and reconstructions of shape {tuple(b.shape)} do not match")
    columns = _check_columns(columns, len(a))
    rows, labels = [], []
    for i in range(0, len(a), columns):
        rows += [a[i : i + columns], b[i : i + columns]]
        labels += ["input", "reconstruction"]
    return _tiles(rows, labels, title, ax)


def _check_columns(columns: int, total: int) -> int:
    if columns < 1:
        raise ValueError(f"columns must be at least 1, got {columns}")
    return min(columns, total)


def _tiles(rows: list[Tensor], labels: Sequence[str] = (), title: str = "", ax: Any = None) -> Figure:
    canvas = _canvas(rows)
    with styled():
        if ax is not None:
            _draw_canvas(ax, canvas, labels)
            ax.set_title(title)
            return ax.figure
        return displayable(_figure_of(canvas, labels, title))


def _canvas(rows: list[Tensor]) -> Tensor:
    """Rows of images on one canvas `(C, H, W)` with a line around each: thousands of axes would be slow."""
    # a pixel is a whole number of dots, so that all are of one size
    dots = max(1, round(_TILE / max(rows[0].shape[2:])))
    tiles = [row.repeat_interleave(dots, 2).repeat_interleave(dots, 3) for row in rows]
    channels, height, width = tiles[0].shape[1:]
    down, right = height + _GAP, width + _GAP  # from one tile to the next
    canvas = torch.ones(channels, len(rows) * down + _GAP, max(map(len, rows)) * right + _GAP)
    for r, row in enumerate(tiles):
        for c, tile in enumerate(row):
            canvas[:, r * down : (r + 1) * down + _GAP, c * right : (c + 1) * right + _GAP] = 0.5  # a line around it
            canvas[:, r * down + _GAP : (r + 1) * down, c * right + _GAP : (c + 1) * right] = tile
    return canvas


def _figure_of(canvas: Tensor, labels: Sequence[str], title: str) -> Figure:
    """A figure as large as the canvas and what is written beside it."""
    from matplotlib.figure import Figure

    image_height, image_width = (size / _DPI for size in canvas.shape[1:])  # inches
    left = max([0.8, *(0.057 * len(label) for label in labels)]) if labels else 0.0
    top = 0.25 * bool(title)
    figure = Figure(figsize=(left + image_width, top + image_height), dpi=_DPI)
    total_width, total_height = left + image_width, top + image_height
    ax = figure.add_axes((left / total_width, 0, image_width / total_width, image_height / total_height))
    _draw_canvas(ax, canvas, labels, aspect="auto")
    if title:
        figure.text(0.5, 1 - top / 4 / total_height, title, ha="center", va="top", fontsize=9)
    return figure


def _draw_canvas(ax: Any, canvas: Tensor, labels: Sequence[str], aspect: str = "equal") -> None:
    pixels = canvas.permute(1, 2, 0).squeeze(-1).numpy()
    ax.imshow(pixels, cmap="gray", vmin=0, vmax=1, interpolation="nearest", aspect=aspect)
    ax.axis("off")
    for r, label in enumerate(labels):
        ax.annotate(
            label,
            (0, 1 - (r + 0.5) / len(labels)),
            (-4, 0),
            xycoords="axes fraction",
            textcoords="offset points",
            ha="right",
            va="center",
            fontsize=7,
        )


@checked
def save(figure: Any, path: str | Path) -> Path:
    """Write a figure, or the figure of some axes, in the format of the path's suffix; returns the path."""
    figure = getattr(figure, "figure", None) or figure
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=_DPI, facecolor="white")
    return path
