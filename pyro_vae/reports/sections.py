"""The sections of a report, each of one run: what its pair has answered, or why it did not."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_vae.evaluate.marginal.khat import khat_threshold
from pyro_vae.evaluate.quality.result import ROWS
from pyro_vae.plots import as_images
from pyro_vae.reports.charts import NUM_COLORS, bars, curves, histograms, legend, scatter
from pyro_vae.reports.gathering import PICTURES, RunFacts
from pyro_vae.reports.likeness import VALUES, columns_of, mean_variance
from pyro_vae.reports.markup import Markup, join, table, tag
from pyro_vae.reports.overview import number, unit_of
from pyro_vae.reports.pictures import sheet
from pyro_vae.support.statistics import standard_error

__all__ = ["SECTIONS"]

TEXTS = 12  # samples of text
BARS = 30  # latent dimensions that are drawn
CURVES = 6  # of quantities in the chart of coverage
CODES = 600  # data in a map


def _note(text: str) -> Markup:
    return tag("p", text, class_="note")


def _figure(picture: Markup, caption: str) -> Markup:
    return tag("figure", picture, tag("figcaption", caption))


def _side_by_side(*parts: Any) -> Markup:
    """Parts beside each other where the page is wide enough."""
    return tag("div", *(tag("div", part) for part in parts if part), class_="flow")


def _image(x: Tensor, columns: int, what: str) -> Markup:
    return tag("img", src=sheet(x, columns), alt=what, class_="pixels")


def likelihood(facts: RunFacts) -> Markup:
    """ELBO, its terms, log p(x), and how far the estimate of log p(x) can be trusted."""
    terms, estimate = facts["bound"], facts["log_marginal"]
    rows: list[list[str]] = []
    if terms is not None:
        rows.append(["ELBO", number(terms.mean), _error(terms.elbo)])
        rows.append(
            ["  reconstruction E[log p(x|z)]", number(_mean(terms.log_likelihood)), _error(terms.log_likelihood)]
        )
        rows.append(["  KL(q(z|x) ‖ p(z))", number(_mean(terms.kl)), _error(terms.kl)])
        if len(terms.kl_sites) > 1:
            rows += [[f"    of {name}", number(_mean(v)), _error(v)] for name, v in terms.kl_sites.items()]
    parts: list[Any] = []
    chart: Any = None
    if estimate is not None:
        rows.append(["log p(x)", number(estimate.mean, estimate.mean_error, 3), number(estimate.sampling_error)])
    parts.append(table([unit_of(facts), "", "± for the population"], rows))
    if terms is not None and estimate is not None and not terms.is_joint:
        gap = estimate.mean - terms.mean
        text = f"log p(x) − ELBO = {gap:.2f} nats is the mean KL from the guide to the exact posterior"
        caution = ", or less than it: see k-hat" if len(estimate.unreliable) else ""
        parts.append(_note(f"{text}{caution}."))
    if estimate is not None and estimate.khat is not None and len(estimate) > 1:
        limit = khat_threshold(int(estimate.counts.max()))
        ess = float(estimate.ess.double().median())
        chart = _figure(
            histograms([estimate.khat], "Pareto k-hat", "k-hat of the data", mark=limit),
            f"k-hat of each datum's importance weights. {len(estimate.unreliable)} of {len(estimate)} are above "
            f"{limit:.2f} (dashed), and unreliable. Median effective sample size: {ess:.0f} of "
            f"{int(estimate.counts.max())}.",
        )
    return _side_by_side(join(parts), chart)


def _mean(values: Tensor) -> float:
    return float(values.double().mean())


def _error(values: Tensor) -> str:
    return number(standard_error(values))


def reconstructions(facts: RunFacts) -> Markup:
    """Data and their reconstructions."""
    made = facts["reconstructions"]
    if made is None:
        return join([])
    if facts.kind == "images":
        x, again = as_images(facts.x[: len(made)]), as_images(made)
        columns = min(10, len(x))
        rows = [
            torch.cat([x[i : i + columns], again[i : i + columns]]) for i in range(0, len(x) - columns + 1, columns)
        ]
        what = "Test data above their reconstructions" if facts.split == "test" else "Data above their reconstructions"
        return _figure(
            _image(torch.cat(rows[: PICTURES // columns]), columns, what), f"{what}, at one draw of the latents."
        )
    if facts.kind == "text":
        return join([])
    x, again = (values.double().cpu().reshape(len(made), -1) for values in (facts.x[: len(made)], made))
    if x.shape != again.shape:
        raise ValueError(f"data of shape {tuple(x.shape)} and reconstructions {tuple(again.shape)} do not match")
    points = torch.stack([x.flatten(), again.flatten()], 1)
    points = points[points.isfinite().all(1)][:2000]  # missing values are NaN
    chart = scatter(
        points, [0] * len(points), ["values"], ("datum", "reconstruction"), "reconstructions", diagonal=True
    )
    return _figure(chart, f"All values of {len(made)} data against their reconstructions; the dashed line is equality.")


def samples(facts: RunFacts, text: Callable[[Tensor], list[str]] | None) -> Markup:
    """Data that the pair generates, beside given ones where they are not images."""
    if facts.kind == "images":
        made = facts["samples"]
        if made is None:
            return join([])
        means = _image(made, min(10, len(made)), "Samples")
        return _figure(means, "Samples: means of p(x|z) at draws of z from the prior.")
    draws = facts["draws"]
    if draws is None:
        return join([])
    if facts.kind == "text" and text is not None:
        lists = [tag("ul", *(tag("li", s) for s in text(x[:TEXTS].cpu())), class_="texts") for x in (facts.x, draws)]
        return join([tag("h4", "Data"), lists[0], tag("h4", "Samples"), lists[1]])
    parts: list[Markup] = []
    if facts.kind == "counts" and facts.x[0].numel() > 1:
        points = [mean_variance(x) for x in (facts.x, draws)]
        kinds = [i for i, p in enumerate(points) for _ in range(len(p))]
        chart = scatter(
            torch.cat(points),
            kinds,
            ["data", "samples"],
            ("mean", "variance"),
            "mean and variance",
            log=True,
            diagonal=True,
        )
        parts.append(legend(["data", "samples"]))
        parts.append(_figure(chart, "Mean and variance of each column; on the dashed line they are equal (Poisson)."))
    parts.append(legend(["data", "samples"]))
    found = columns_of(facts.x, draws, facts.names)
    charts = [
        _figure(histograms([c.data, c.draws], c.name, f"distribution of {c.name}"), f"distance {c.distance:.3f}")
        for c in found
    ]
    parts.append(tag("div", *charts, class_="small-charts"))
    total = facts.x[0].numel()
    parts.append(
        _note(
            f"{len(found)} of {total} columns, those where samples and data differ most. The distance is that of "
            "Kolmogorov and Smirnov: 0 for equal distributions, 1 for disjoint ones."
        )
    )
    return join(parts)


def traversals(facts: RunFacts, text: Callable[[Tensor], list[str]] | None) -> Markup:
    """What each of the first latent dimensions does to a datum."""
    found = facts["traversal"]
    if found is None:
        return join([])
    if facts.kind == "images":
        picture = _image(found.decoded, VALUES, "Traversals")
        names = tag("ol", *(tag("li", name) for name in found.rows), class_="rows")
        return _figure(tag("div", names, picture, class_="traversal"), found.note)
    if facts.kind == "text":
        return join([])
    decoded = found.decoded.double().flatten(1).cpu().reshape(len(found.rows), VALUES, -1)
    spread = decoded.std(1)  # (dims, D)
    rows = []
    for name, change in zip(found.rows, spread, strict=True):
        top = change.argsort(descending=True)[:3].tolist()
        rows.append(
            [
                name,
                ", ".join(f"{facts.names[i] if facts.names else f'column {i}'} ({float(change[i]):.3g})" for i in top),
            ]
        )
    head = ["latent", "columns that it changes most (standard deviation of their means along it)"]
    return join([table(head, rows, numbers=False), _note(found.note)])


def codes(facts: RunFacts) -> Markup:
    """The map of codes."""
    found = facts["map"]
    if found is None:
        return join([])
    points, labels = found.points[:CODES], facts.labels
    classes = sorted(set(labels[:CODES].tolist())) if labels is not None else []
    if not 1 < len(classes) <= 2 * NUM_COLORS:
        chart = scatter(points, [0] * len(points), ["data"], found.axes, "map of codes")
        return _figure(chart, f"Codes of {len(points)} data. {found.note}")
    assert labels is not None
    place = {label: i for i, label in enumerate(classes)}
    kinds = [place[label] for label in labels[:CODES].tolist()]
    names = [str(label) for label in classes]
    chart = scatter(points, kinds, names, found.axes, "map of codes by label", titles=True)
    return join([legend(names), _figure(chart, f"Codes of {len(points)} data, colored by label. {found.note}")])


def latent(facts: RunFacts) -> Markup:
    """KL by dimension, and the parts of the KL."""
    report = facts["latent"]
    if report is None:
        return join([])
    ordered = [d for d in report.ordered if not math.isnan(d.kl)]
    kinds = {"active": "b0", "collapsed": "b1", "idle": "b4"}
    values = [(d.name, d.kl, d.kl_error, kinds.get(d.status, "b9")) for d in ordered[:BARS]]
    parts: list[Markup] = []
    if values:
        statuses = {d.status for d in ordered[:BARS]}
        keys = [tag("span", tag("i", class_=f"key {kinds.get(s, 'b9')}"), s, class_="item") for s in sorted(statuses)]
        parts.append(tag("div", *keys, class_="legend"))
        rest = f" The first {BARS} of {len(ordered)}." if len(ordered) > BARS else ""
        chart = bars(values, "KL (nats per datum)", "KL by latent dimension")
        parts.append(_figure(chart, f"KL of each latent dimension, with the standard error over the data.{rest}"))
    rows = [
        ["KL(q(z|x) ‖ p(z))", number(report.kl, report.kl_error)],
        ["= information I(n; z)", number(report.mutual_information, report.mutual_information_error)],
        ["+ KL(q(z) ‖ p(z)), aggregate posterior", number(report.marginal_kl, report.marginal_kl_error)],
    ]
    right: list[Markup] = [table(["nats per datum", ""], rows)]
    cap = math.log(report.num_data)
    if report.mutual_information > 0.8 * cap:
        right.append(_note(f"I(n; z) is near its largest value for {report.num_data} data, log N = {cap:.2f} nats."))
    return _side_by_side(join(parts), join(right))


def calibration(facts: RunFacts) -> Markup:
    """Coverage of the guide's intervals on data that the model simulates."""
    found = facts["calibration"]
    if found is None:
        return join([])
    names = list(found.ranks)
    worst = sorted(names, key=lambda name: (math.isnan(found[name].p_value), found[name].p_value))[:CURVES]
    levels = [i / 20 for i in range(21)]
    series = [(name, [found.coverage(level)[name] for level in levels]) for name in worst]
    verdict = tag("p", found.verdict[:1].upper() + found.verdict[1:] + ".")
    parts: list[Markup] = []
    if series:
        chart = curves(series, ("nominal coverage", "how often it holds the truth"), "coverage", diagonal=True)
        parts += [legend(worst)]
        caption = (
            f"Coverage of the guide's intervals in {found.num_simulations} simulations from the model, for the "
            "quantities with the least p-values. On the dashed line the guide is right; below it, it is too sure."
        )
        parts.append(_figure(chart, caption))
    checks = [row for row in found.rows if row.test == "predictive"]
    if checks:
        rows = [[c.quantity, f"{c.statistic:.4g}", f"{c.expected:.4g}", f"{c.p_value:.3g}", c.verdict] for c in checks]
        head = ["posterior predictive check", "data", "replications", "p-value", ""]
        return join([verdict, _side_by_side(join(parts), table(head, rows))])
    return join([verdict, *parts])


def quality(facts: RunFacts) -> Markup:
    """Quality of the samples by their pixels."""
    found = facts["quality"]
    if found is None:
        return join([])
    rows = []
    for name, label in ROWS.items():
        cells = [getattr(metrics, name) for metrics in (found.samples, found.data)]
        if any(math.isfinite(cell) for cell in cells):
            rows.append([label, *("–" if not math.isfinite(cell) else f"{cell:.3g}" for cell in cells)])
    note = (
        f"{found.num_samples} means of p(x|z) against {found.num_data} data, by pixels. The second column is what "
        "perfect samples would have. Features of a classifier tell more: pyro-vae quality RUN."
    )
    parts = [table(["", "samples", "unseen data"], rows), _note(note)]
    if found.warning:
        parts.insert(0, tag("p", found.warning[:1].upper() + found.warning[1:] + ".", class_="caution"))
    return join(parts)


def sites(facts: RunFacts) -> Markup:
    """The sites of the pair as preflight lists them."""
    found = facts["preflight"]
    if found is None or not found.sites:
        return join([])
    head = ["site", "model", "guide", "batch", "event", "plates"]
    return table(head, [list(map(str, row)) for row in found.sites], numbers=False)


# the title of each section, what it draws, and the questions whose refusals it explains
SECTIONS: list[tuple[str, str, Callable[..., Markup], tuple[str, ...]]] = [
    ("likelihood", "ELBO and log p(x)", likelihood, ("bound", "log_marginal")),
    ("reconstructions", "Reconstructions", reconstructions, ("reconstructions",)),
    ("samples", "Samples", samples, ("samples", "draws")),
    ("traversals", "Traversals", traversals, ("traversal",)),
    ("codes", "Map of codes", codes, ("codes", "map")),
    ("latent", "KL by dimension", latent, ("latent",)),
    ("calibration", "Calibration", calibration, ("calibration",)),
    ("quality", "Quality of samples", quality, ("quality",)),
    ("sites", "Sites of the pair", sites, ("preflight",)),
]
