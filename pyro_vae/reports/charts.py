"""Charts as SVG in a page: they scale, follow a dark scheme, and need no script."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from pyro_vae.reports.markup import Markup, join, tag

__all__ = ["NUM_COLORS", "bars", "curves", "histograms", "legend", "scatter"]

WIDTH, HEIGHT = 420.0, 260.0
LEFT, RIGHT, TOP, BOTTOM = 56.0, 10.0, 10.0, 40.0
NUM_COLORS = 10  # classes s0, s1, ... of the style
BAR = 18.0  # from one bar to the next
MOST_WHOLE = 60  # whole numbers that get a bin each
LABEL = 84.0  # room for the names of bars


class _Frame:
    """Axes of a chart: from values to places in the picture."""

    def __init__(self, x: tuple[float, float], y: tuple[float, float], *, log: bool = False) -> None:
        self.log = log
        self.x, self.y = (_widened(*map(self._scaled, limits)) for limits in (x, y))

    def at(self, x: float, y: float) -> tuple[float, float]:
        """The place of a point."""
        a, b = self._scaled(x), self._scaled(y)
        across = LEFT + (a - self.x[0]) / (self.x[1] - self.x[0]) * (WIDTH - LEFT - RIGHT)
        down = HEIGHT - BOTTOM - (b - self.y[0]) / (self.y[1] - self.y[0]) * (HEIGHT - TOP - BOTTOM)
        return round(across, 1), round(down, 1)

    def path(self, points: Iterable[tuple[float, float]]) -> str:
        """Points as the points of a polyline."""
        return " ".join("{},{}".format(*self.at(*point)) for point in points)

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self.log else value

    def axes(self, xlabel: str, ylabel: str) -> Markup:
        """Grid lines with their values, and the names of the axes."""
        parts: list[Markup] = []
        for tick in self._ticks(*self.x):
            place, _ = self.at(self._value(tick), self._value(self.y[0]))
            parts.append(tag("line", x1=place, x2=place, y1=TOP, y2=HEIGHT - BOTTOM, class_="grid"))
            parts.append(tag("text", self._name(tick), x=place, y=HEIGHT - BOTTOM + 14, class_="tick middle"))
        for tick in self._ticks(*self.y):
            _, place = self.at(self._value(self.x[0]), self._value(tick))
            parts.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=place, y2=place, class_="grid"))
            parts.append(tag("text", self._name(tick), x=LEFT - 5, y=place + 4, class_="tick end"))
        middle = LEFT + (WIDTH - LEFT - RIGHT) / 2
        parts.append(tag("text", xlabel, x=middle, y=HEIGHT - 6, class_="axis middle"))
        turned = f"rotate(-90 12 {HEIGHT / 2 - 15})"
        parts.append(tag("text", ylabel, x=12, y=HEIGHT / 2 - 15, transform=turned, class_="axis middle"))
        return join(parts)

    def _ticks(self, low: float, high: float) -> list[float]:
        if not self.log:
            return _ticks(low, high)
        powers = range(math.floor(low), math.ceil(high) + 1)
        found = [math.log10(digit * 10.0**power) for power in powers for digit in (1, 2, 5)]
        found = [tick for tick in found if low <= tick <= high]
        return found if len(found) > 1 else _ticks(low, high)

    def _value(self, scaled: float) -> float:
        return 10**scaled if self.log else scaled

    def _name(self, scaled: float) -> str:
        return f"{self._value(scaled):.3g}"


def _widened(low: float, high: float) -> tuple[float, float]:
    margin = 0.04 * (high - low) or max(abs(low), 1.0) * 0.1
    return low - margin, high + margin


def _ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers within limits."""
    rough = (high - low) / most
    power = 10 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    first = math.ceil(low / step)
    return [round(i * step, 12) for i in range(first, math.floor(high / step) + 1)]


def _svg(content: Markup, what: str, height: float = HEIGHT) -> Markup:
    box = f"0 0 {WIDTH:g} {height:g}"
    return tag("svg", tag("title", what), content, viewBox=box, role="img", aria_label=what, class_="chart")


def legend(names: Iterable[str], *, first: int = 0) -> Markup:
    """Names with the colors of their series."""
    items = (
        tag("span", tag("i", class_=f"key b{(i + first) % NUM_COLORS}"), name, class_="item")
        for i, name in enumerate(names)
    )
    return tag("div", *items, class_="legend")


def bars(values: Sequence[tuple[str, float, float, str]], xlabel: str, what: str) -> Markup:
    """Horizontal bars with error bars.

    Args:
        values: For each bar its name, length, error and class of the style.
        xlabel: What the length is, with its unit.
        what: A description of the chart.
    """
    known = [v for v in values if math.isfinite(v[1])]
    most = max((length + (error if math.isfinite(error) else 0) for _, length, error, _ in known), default=1.0)
    least = min((length for _, length, _, _ in known), default=0.0)
    low, high = min(0.0, least), max(most, 1e-9)
    height = BAR * len(values) + 36
    ticks = _ticks(low, high * 1.02, 5)

    def across(value: float) -> float:
        return round(LABEL + (value - low) / (high * 1.02 - low) * (WIDTH - LABEL - RIGHT), 1)

    parts = [tag("line", x1=across(t), x2=across(t), y1=0, y2=height - 34, class_="grid") for t in ticks]
    parts += [tag("text", f"{t:.3g}", x=across(t), y=height - 20, class_="tick middle") for t in ticks]
    for i, (name, length, error, kind) in enumerate(values):
        top = i * BAR + 3
        label = name if len(name) <= 14 else f"{name[:13]}…"
        parts.append(tag("text", label, x=LABEL - 5, y=top + BAR / 2 + 1, class_="tick end"))
        if not math.isfinite(length):
            continue
        start, end = sorted((across(0.0), across(length)))
        note = tag("title", f"{name}: {length:.3f}" + (f" ± {error:.3f}" if math.isfinite(error) else ""))
        size = max(round(end - start, 1), 0.5)
        parts.append(tag("rect", note, x=start, y=top, width=size, height=BAR - 6, class_=kind))
        if math.isfinite(error) and error > 0:
            a, b, y = across(max(low, length - error)), across(length + error), top + BAR / 2 - 3
            parts.append(tag("path", d=f"M{a} {y}H{b}M{a} {y - 3}v6M{b} {y - 3}v6", class_="error"))
    middle = LABEL + (WIDTH - LABEL - RIGHT) / 2
    parts.append(tag("text", xlabel, x=middle, y=height - 4, class_="axis middle"))
    return _svg(join(parts), what, height)


def histograms(
    series: Sequence[Tensor], xlabel: str, what: str, *, bins: int = 30, mark: float | None = None, ylabel: str = "data"
) -> Markup:
    """Histograms of one or more sets of numbers as steps, over common bins; `mark` is a vertical line.

    Several are scaled to shares, so that their sizes do not matter.
    """
    known = [s.flatten().double() for s in series]
    known = [s[s.isfinite()] for s in known]
    whole = torch.cat(known)
    if not len(whole):
        return tag("p", "no finite value", class_="note")
    low, high = float(whole.min()), float(whole.max())
    if bool((whole == whole.round()).all()) and high - low <= MOST_WHOLE:
        low, high = low - 0.5, high + 0.5
        bins = round(high - low)  # one for each whole number
    if low == high:
        low, high = low - 0.5, high + 0.5
    counts = [torch.histc(s, bins, low, high) / (max(len(s), 1) if len(known) > 1 else 1) for s in known]
    extent = (min(low, mark), max(high, mark)) if mark is not None else (low, high)
    frame = _Frame(extent, (0.0, max(float(c.max()) for c in counts)))
    parts = [frame.axes(xlabel, ylabel if len(known) == 1 else "share")]
    edges = torch.linspace(low, high, bins + 1).tolist()
    for i, count in enumerate(counts):
        corners = [(edges[0], 0.0)]
        for left, right, value in zip(edges, edges[1:], count.tolist(), strict=False):
            corners += [(left, value), (right, value)]
        kind = f"s{i} " + ("filled" if i == 0 else "line")
        parts.append(tag("polyline", points=frame.path([*corners, (edges[-1], 0.0)]), class_=kind))
    if mark is not None:
        place, _ = frame.at(mark, 0.0)
        parts.append(tag("line", x1=place, x2=place, y1=TOP, y2=HEIGHT - BOTTOM, class_="mark"))
    return _svg(join(parts), what)


def scatter(
    points: Tensor,
    classes: Sequence[int],
    names: Sequence[str],
    labels: tuple[str, str],
    what: str,
    *,
    log: bool = False,
    diagonal: bool = False,
    titles: bool = False,
) -> Markup:
    """Points `(N, 2)` in the colors of their classes.

    Args:
        points: `(N, 2)`; those that are not finite (or, with `log`, not positive) are left out.
        classes: Of each point, an index of `names`.
        names: The names of the classes.
        labels: The names of the axes.
        what: A description of the chart.
        log: Logarithmic axes.
        diagonal: Draw the line y = x.
        titles: Write the name of each class at its middle.
    """
    points = points.double().cpu()
    good = points.isfinite().all(1) & ((points > 0).all(1) if log else True)
    kept = points[good]
    if not len(kept):
        return tag("p", "no point to show", class_="note")
    kinds = [c for c, ok in zip(classes, good.tolist(), strict=True) if ok]
    low, high = kept.min(0).values.tolist(), kept.max(0).values.tolist()
    frame = _Frame((low[0], high[0]), (low[1], high[1]), log=log)
    parts = [frame.axes(*labels)]
    if diagonal:
        a, b = max(low), min(high)
        parts.append(tag("polyline", points=frame.path([(a, a), (b, b)]) if a < b else "", class_="mark"))
    for kind in sorted(set(kinds)):
        chosen = kept[torch.tensor([k == kind for k in kinds])].tolist()
        # one path for a class: a dot is a line of no length with round ends
        d = "".join("M{} {}h0".format(*frame.at(*point)) for point in chosen)
        parts.append(tag("path", d=d, class_=f"dots s{kind % NUM_COLORS}"))
    if titles:
        for kind in sorted(set(kinds)):
            middle = kept[torch.tensor([k == kind for k in kinds])].median(0).values.tolist()
            x, y = frame.at(*middle)
            parts.append(tag("text", names[kind], x=x, y=y + 5, class_="name middle"))
    return _svg(join(parts), what)


def curves(
    series: Sequence[tuple[str, Sequence[tuple[float, float]]]],
    labels: tuple[str, str],
    what: str,
    *,
    diagonal: bool = False,
) -> Markup:
    """Lines by name, in the order of their colors; `diagonal` draws the line y = x."""
    every = [point for _, points in series for point in points]
    if not every:
        return tag("p", "no curve to show", class_="note")
    xs, ys = zip(*every, strict=True)
    frame = _Frame((min(xs), max(xs)), (min(ys), max(ys)))
    parts = [frame.axes(*labels)]
    if diagonal:
        parts.append(tag("polyline", points=frame.path([(min(xs), min(xs)), (max(xs), max(xs))]), class_="mark"))
    for i, (name, points) in reversed(list(enumerate(series))):
        kind = f"line s{i % NUM_COLORS}"
        parts.append(tag("polyline", tag("title", name), points=frame.path(points), class_=kind))
    return _svg(join(parts), what)
