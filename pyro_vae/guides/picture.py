"""The graph of a model and of its guide, drawn."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_graphs"]

Graph = Mapping[str, Sequence[str]]
HIDDEN, SEEN = "white", "#c9d7e8"


def draw_graphs(model: Graph, guide: Graph, summed_out: Collection[str] = ()) -> Figure:
    """Both graphs side by side, every site at the same place.

    Args:
        model: The parents of each site of the model.
        guide: What each latent depends on in the guide, in the order of sampling.
        summed_out: Latents that the model enumerates.
    """
    from matplotlib.figure import Figure

    places = _places(model)
    width = max(2.6, 1.2 * (1 + max(x for x, _ in places.values()) - min(x for x, _ in places.values())))
    height = max(2.2, 1.1 * (1 + max(-y for _, y in places.values())))
    figure = Figure(figsize=(2 * width, height + 0.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    latents = {*guide, *summed_out}
    _draw(left, model, places, latents, "model")
    known = {*guide, *(parent for parents in guide.values() for parent in parents)}
    _draw(right, {name: guide.get(name, ()) for name in model if name in known}, places, latents, "guide")
    return figure


def _places(graph: Graph) -> dict[str, tuple[float, float]]:
    """A place for each site: one row below its lowest parent."""
    depth: dict[str, int] = {}
    for name, parents in graph.items():
        depth[name] = 1 + max((depth[parent] for parent in parents if parent in depth), default=-1)
    rows: dict[int, list[str]] = {}
    for name, row in depth.items():
        rows.setdefault(row, []).append(name)
    shift = {row: 0.18 * (row % 2) for row in rows}  # edges past a row do not run through its sites
    return {
        name: (i - (len(names) - 1) / 2 + shift[row], -float(row))
        for row, names in rows.items()
        for i, name in enumerate(names)
    }


def _draw(
    ax: Axes, graph: Graph, places: Mapping[str, tuple[float, float]], latents: Collection[str], title: str
) -> None:
    from matplotlib.patches import Ellipse

    shapes = {}
    for name in graph:
        width = max(0.52, 0.11 * len(name) + 0.2)
        color = HIDDEN if name in latents else SEEN
        shapes[name] = ax.add_patch(Ellipse(places[name], width, 0.44, facecolor=color, edgecolor="black", zorder=3))
        ax.annotate(name, places[name], ha="center", va="center", fontsize=9, zorder=4)
    for name, parents in graph.items():
        for parent in set(parents) & set(graph):
            (x, y), (end_x, end_y) = places[parent], places[name]
            steps = abs(end_y - y) if end_y != y else abs(end_x - x)
            rad = 0.12 if steps < 1.5 else 0.25  # past the sites in between
            bend = {
                "arrowstyle": "-|>",
                "color": "0.35",
                "connectionstyle": f"arc3,rad={rad}",
                "shrinkA": 0,
                "shrinkB": 1,
            }
            ends = {"patchA": shapes[parent], "patchB": shapes[name]}
            ax.annotate("", xy=places[name], xytext=places[parent], arrowprops={**bend, **ends}, zorder=2)
    xs, ys = zip(*places.values(), strict=True)
    ax.set(xlim=(min(xs) - 0.6, max(xs) + 0.6), ylim=(min(ys) - 0.4, max(ys) + 0.4), title=title)
    ax.set_aspect("equal")
    ax.set_axis_off()
