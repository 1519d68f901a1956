"""The head of a report: findings, numbers, differences between runs, and the protocol."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from pyro_vae.reports.differences import difference
from pyro_vae.reports.findings import findings_of
from pyro_vae.reports.gathering import RunFacts
from pyro_vae.reports.markup import Markup, join, table, tag
from pyro_vae.runs.programs import name_of_pair
from pyro_vae.support.statistics import standard_error

__all__ = ["comparison", "findings", "is_joint", "number", "numbers", "protocol", "unit_of", "value_of"]

WORDS = {"error": "Error", "warning": "Warning", "note": "Note"}


def number(value: float | None, error: float | None = None, digits: int = 2) -> str:
    """A value with its error as text; a dash for none."""
    if value is None or not math.isfinite(value):
        return "–"
    if error is None or not math.isfinite(error):
        return f"{value:.{digits}f}"
    more = digits if error == 0 else min(6, max(digits, -math.floor(math.log10(error))))
    return f"{value:.{more}f} ± {error:.{more}f}"


def findings(runs: Sequence[RunFacts]) -> Markup:
    """The findings of all runs, each with the name of its run if there are several."""
    items = []
    for facts in runs:
        for finding in findings_of(facts):
            name = [tag("b", facts.name), ": "] if len(runs) > 1 else []
            level = tag("span", WORDS[finding.level], class_="level")
            items.append(tag("li", level, tag("span", *name, finding.text), class_=finding.level))
    if not items:
        return tag("p", "Nothing to warn of was found.", class_="fine")
    return tag("ul", *items, class_="findings")


def value_of(facts: RunFacts, name: str) -> tuple[float | None, float | None]:
    """A number of a run and its error: "elbo", "log_prob", "kl", "bits"; None where it is not known."""
    estimate, terms = facts["log_marginal"], facts["bound"]
    if name == "log_prob":
        return (None, None) if estimate is None else (estimate.mean, estimate.mean_error)
    if name == "elbo":
        return (None, None) if terms is None else (terms.mean, standard_error(terms.elbo))
    if name == "kl":
        return (None, None) if terms is None else (float(terms.kl.double().mean()), standard_error(terms.kl))
    seen = facts["observation"]
    if estimate is None or estimate.is_joint or seen is None or not seen.num_dims:
        return None, None
    unit = seen.num_dims * math.log(2)
    return -estimate.mean / unit, estimate.mean_error / unit


def is_joint(facts: RunFacts) -> bool:
    """Whether the numbers of a run are of all data together, since a latent stands outside the plate over the data."""
    return any(facts[question] is not None and facts[question].is_joint for question in ("bound", "log_marginal"))


def unit_of(facts: RunFacts) -> str:
    """The unit of a run's ELBO and log p(x)."""
    return "nats for all data together" if is_joint(facts) else "nats per datum"


def numbers(facts: RunFacts) -> Markup:
    """The few numbers that sum a run up."""
    latent, history = facts["latent"], facts.files.history
    terms, seen = facts["bound"], facts["observation"]
    bounds = "log p(x, z)" if terms is not None and terms.point_masses else "ELBO"
    nats = unit_of(facts)
    cards = [
        ("log p(x)", number(*value_of(facts, "log_prob")), f"{nats} ± Monte Carlo error"),
        (bounds, number(*value_of(facts, "elbo")), nats if is_joint(facts) else f"{nats} ± error for the population"),
        ("KL", number(*value_of(facts, "kl")), nats),
    ]
    if facts.kind == "images" and seen is not None and not seen.is_density:
        cards.append(("bits/dim", number(*value_of(facts, "bits"), digits=4), "from log p(x)"))
    if latent is not None:
        total = len(latent.dimensions) - latent.count("auxiliary")
        cards.append(("active latents", f"{latent.count('active')} of {total}", "dimensions"))
    if len(history):
        cards.append(("training", _duration(history[-1].seconds), f"{len(history)} epochs"))
    return tag("dl", *(_card(*card) for card in cards), class_="cards")


def _card(name: str, value: str, unit: str) -> Markup:
    big, *rest = value.split(" ± ")
    error = tag("small", f"± {rest[0]}") if rest else None
    return tag("div", tag("dt", name), tag("dd", tag("strong", big), error, tag("span", unit)))


def comparison(runs: Sequence[RunFacts]) -> Markup:
    """The numbers of several runs side by side, and their paired differences from the first."""
    rows: list[list[Any]] = []
    measures = {"log p(x)": "log_prob", "ELBO": "elbo", "KL": "kl"}
    for label, name in measures.items():
        cells: list[Any] = [number(*value_of(facts, name)) for facts in runs]
        if any(map(is_joint, runs)):
            cells = [f"{cell} ({unit_of(facts)})" for cell, facts in zip(cells, runs, strict=True)]
        rows.append([label if any(map(is_joint, runs)) else f"{label}, nats per datum", *cells])
        if name == "kl":
            continue
        cells = ["–"]
        for other in runs[1:]:
            found = difference(runs[0], other, [_per_datum(facts, name) for facts in (runs[0], other)])
            if found.reason:
                cells.append(tag("span", f"not compared: {found.reason}", class_="reason"))
            else:
                clear = abs(found.mean) > 2 * found.error
                cells.append(tag("b" if clear else "span", f"{found.mean:+.3f} ± {found.error:.3f}"))
        rows.append([f"  {label}, paired difference", *cells])
    times = [facts.files.history[-1].seconds if len(facts.files.history) else None for facts in runs]
    rows.append(["training", *("–" if t is None else _duration(t) for t in times)])
    rows.append(["objective", *(facts.files.record["elbo"] for facts in runs)])
    note = (
        f"Differences from {runs[0].name}, datum by datum, with the standard error of their mean. Bold: more than two "
        "standard errors from 0. Both runs saw the same data, with the same binary draws. They are two trainings: how "
        "much other seeds would change the difference, only more trainings tell."
    )
    return join([table(["", *(facts.name for facts in runs)], rows), tag("p", note, class_="note")])


def _per_datum(facts: RunFacts, name: str) -> Any:
    found = facts["log_marginal" if name == "log_prob" else "bound"]
    if found is None or found.is_joint:
        return None
    return found.log_prob if name == "log_prob" else found.elbo


def protocol(runs: Sequence[RunFacts], asked: Sequence[tuple[str, str]]) -> Markup:
    """What was trained on what, and how the numbers of the page were made."""
    cards = [_protocol(facts) for facts in runs]
    names = dict.fromkeys(name for card in cards for name in card)
    rows = [[name, *(card.get(name, "–") for card in cards)] for name in names]
    parts = [table(["", *(f.name for f in runs)] if len(runs) > 1 else ["", ""], rows, numbers=False)]
    parts.append(tag("h3", "How this page was made"))
    parts.append(table(["", ""], asked, numbers=False))
    return join(parts)


def _protocol(facts: RunFacts) -> dict[str, str]:
    record, config, history = facts.files.record, facts.files.config, facts.files.history
    data, hardware, git = record["data"], record.get("hardware") or {}, record.get("git") or {}
    counts, shape = data.get("counts", {}), "×".join(map(str, data["shape"]))
    settings = ("lr", "lr_schedule", "batch_size", "num_particles", "kl_weight", "precision", "compile")
    model = config["model"]
    found = {
        "pair": name_of_pair(model) if isinstance(model, dict) else str(model),
        "arguments": _flat(model.get("init_args") or {}) if isinstance(model, dict) else "",
        "data": f"{data.get('name', config.get('data'))}, shape {shape}",
        "split": ", ".join(f"{count:,} {name}" for name, count in counts.items()),
        "binarization": str(data.get("binarize", config.get("binarize"))),
        "fingerprint of the training data": str(data["fingerprint"]),
        "seed of the run": str(config.get("seed")),
        "seed of the data": str(data.get("seed", "–")),
        "objective": str(record["elbo"]),
        "settings": ", ".join(f"{name} {_short(config[name])}" for name in settings if config.get(name) is not None),
        "epochs": f"{record['epochs']}, {record['stopped']}"
        + (f"; the weights are those of epoch {record['best']}" if record["best"] else ""),
        "started": str(record.get("started") or "–"),
        "time": _duration(history[-1].seconds) if len(history) else "–",
        "machine": ", ".join(
            str(v)
            for v in (
                hardware.get("gpu"),
                hardware.get("cpu"),
                f"{hardware.get('cores')} cores, {hardware.get('threads')} threads" if hardware.get("cores") else None,
                record.get("platform"),
            )
            if v
        ),
        "versions": ", ".join(f"{name} {version}" for name, version in (record.get("versions") or {}).items()),
        "commit": f"{git.get('commit')}{' with changes' * bool(git.get('dirty'))}" if git.get("commit") else "–",
        "command": str(record.get("command") or "–"),
    }
    if stored := facts["evaluation"]:
        error = stored.get("log_prob_error")
        found["evaluation in the run"] = (
            f"log p(x) {number(stored.get('log_prob'), error, 3)} nats of {stored.get('num_data')} test data with "
            f"{stored.get('num_samples')} samples"
        )
    return {name: value for name, value in found.items() if value}


def _flat(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {_short(value)}" for name, value in values.items() if value is not None)


def _short(value: Any) -> str:
    shown = str(value.get("class_path", value)).rpartition(".")[2] if isinstance(value, dict) else str(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes = seconds / 60
    return f"{minutes:.1f} min" if minutes < 100 else f"{minutes / 60:.1f} h"
