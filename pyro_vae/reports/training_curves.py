"""The curves of trainings as data for the script of a page, and as a picture where no script runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from pyro_vae.reports.charts import curves, legend
from pyro_vae.reports.gathering import RunFacts
from pyro_vae.reports.markup import Markup, join, tag
from pyro_vae.training.history import Epoch

__all__ = ["charts_of", "training"]

MOST = 1000  # points of a curve: a page with more would be large, and look the same

Chart = dict[str, Any]


def charts_of(runs: Sequence[RunFacts]) -> list[Chart]:
    """What the script draws: a title, a unit, epochs, and series by name; null where a run has no value."""
    one = runs[0].files.history.epochs if len(runs) == 1 else None
    validated = any(e.valid_elbo is not None for facts in runs for e in facts.files.history)
    measures: list[tuple[str, str, Callable[[Epoch], float | None]]] = [
        ("reconstruction E[log p(x|z)]", "nats per datum", lambda e: e.log_likelihood),
        ("KL(q(z|x) ‖ p(z))", "nats per datum", lambda e: e.kl),
        ("loss", "nats per datum", lambda e: e.loss),
        ("learning rate", "", lambda e: e.lr),
        ("KL weight", "", lambda e: e.kl_weight),
    ]
    found = []
    if one is not None:
        series = {"training": [e.train_elbo for e in one]}
        if validated:
            series["validation"] = [e.valid_elbo for e in one]  # type: ignore[misc]
        best = runs[0].files.history.best
        found.append(_chart("ELBO", "nats per datum", [e.epoch for e in one], series) | {"mark": best})
    else:
        measures.insert(
            0, ("ELBO of validation data" if validated else "ELBO", "nats per datum", lambda e: e.monitored)
        )
    for title, unit, value in measures:
        by_run = {facts.name: {e.epoch: value(e) for e in facts.files.history} for facts in runs}
        varies = any(len(set(values.values())) > 1 for values in by_run.values())
        if not varies and title in ("learning rate", "KL weight"):
            continue
        epochs = sorted({epoch for values in by_run.values() for epoch in values})
        name = (lambda run: "value") if one is not None else (lambda run: run)
        lines = {name(run): [values.get(epoch) for epoch in epochs] for run, values in by_run.items()}
        found.append(_chart(title, unit, epochs, lines))
    return found


def _chart(title: str, unit: str, epochs: list[int], series: dict[str, Any]) -> Chart:
    step = -(-len(epochs) // MOST) or 1
    keep = sorted({*range(0, len(epochs), step), *([len(epochs) - 1] if epochs else [])})
    names = [{"label": label, "values": [_finite(values[i]) for i in keep]} for label, values in series.items()]
    return {"title": title, "unit": unit, "x": [epochs[i] for i in keep], "series": names}


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")


def training(runs: Sequence[RunFacts]) -> Markup:
    """The places of the interactive curves, and a picture of the ELBO for browsers that run no script."""
    if not any(len(facts.files.history) for facts in runs):
        return tag("p", "No epoch was completed.", class_="note")
    charts = charts_of(runs)
    boxes = [
        tag("div", tag("h3", c["title"]), tag("div", class_="plot", data_chart=i), class_="curve")
        for i, c in enumerate(charts)
    ]
    first = charts[0]
    lines = [
        (s["label"], [(x, y) for x, y in zip(first["x"], s["values"], strict=True) if y is not None])
        for s in first["series"]
    ]
    names = [name for name, _ in lines]
    still = tag("noscript", legend(names), curves(lines, ("epoch", first["unit"]), first["title"]))
    hint = "Drag across a curve to enlarge a part, double-click to go back; a click on a name hides its curve."
    return join([tag("div", *boxes, class_="curves"), still, tag("p", hint, class_="note")])
