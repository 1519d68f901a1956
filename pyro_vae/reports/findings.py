"""What to know before reading on: the problems of a run, in words."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from pyro_vae.reports.gathering import RunFacts
from pyro_vae.support.statistics import standard_error

__all__ = ["Finding", "findings_of"]

CLEAR = 3.0  # standard errors
RELEVANT = 0.01  # of the ELBO: smaller gaps are named nowhere


@dataclass(frozen=True)
class Finding:
    """One finding: an "error" makes numbers of the page wrong, a "warning" should be looked at, a "note" explains."""

    level: Literal["error", "warning", "note"]
    text: str


def findings_of(facts: RunFacts) -> list[Finding]:
    """The findings of a run, the gravest first."""
    found = [*_of_training(facts), *_of_pair(facts), *_of_latents(facts), *_of_likelihood(facts), *_of_fit(facts)]
    found += _of_calibration(facts)
    order = ("error", "warning", "note")
    return sorted(found, key=lambda finding: order.index(finding.level))


def _of_training(facts: RunFacts) -> list[Finding]:
    history = facts.files.history
    found = []
    if history.stopped == "non-finite loss":
        text = "Training ended with a loss that is not finite. The weights are the last good ones."
        found.append(Finding("error", text))
    elif history.stopped == "interrupted":
        found.append(Finding("warning", f"Training was interrupted after {len(history)} epochs. It can be resumed."))
    epochs = history.epochs
    halved = sum(0 < b.lr < 0.51 * a.lr for a, b in pairwise(epochs))
    if halved and facts.files.config.get("lr_schedule") in (None, "constant"):
        text = f"The learning rate fell by half {halved} time{'s' * (halved > 1)} without a schedule."
        found.append(
            Finding("warning", f"{text} A rollback does that: the loss was not finite, and earlier weights came back.")
        )
    if len(epochs) >= 2 and all(e.valid_elbo is not None for e in epochs):
        best = max(e.monitored for e in epochs)
        lost = best - epochs[-1].monitored
        gap = epochs[-1].train_elbo - epochs[-1].monitored
        if lost > RELEVANT * abs(best):
            text = f"The validation ELBO fell by {lost:.2f} nats after its best epoch, and the ELBO of the training "
            text += f"data ended {gap:.2f} nats above it: the pair overfits. "
            text += (
                f"The weights are those of epoch {history.best}, the best one."
                if history.best
                else "The weights are those of the last epoch: train with early stopping."
            )
            found.append(Finding("warning", text))
        elif epochs[-1].monitored >= best and len(epochs) >= 5:
            rise = epochs[-1].monitored - epochs[-1 - len(epochs) // 5].monitored
            if rise > RELEVANT * abs(best):
                text = f"The validation ELBO still rose by {rise:.2f} nats in the last fifth of the training: "
                found.append(Finding("note", f"{text}train for more epochs."))
    return found


def _of_pair(facts: RunFacts) -> list[Finding]:
    found = []
    if why := facts.refusals.get("pair"):
        text = f"The pair could not be rebuilt, so that the page shows what is recorded and no more: {why}"
        found.append(Finding("warning", text))
    if why := facts.refusals.get("data"):
        text = f"The data could not be loaded, so that no question could be put to the pair: {why}"
        found.append(Finding("warning", text))
    if (report := facts["preflight"]) is not None:
        found += [Finding(issue.level, f"Preflight, {issue.code}: {issue.message}") for issue in report.issues]
    elif why := facts.refusals.get("preflight"):
        found.append(Finding("error", f"Preflight failed: {why}"))
    return found


def _of_latents(facts: RunFacts) -> list[Finding]:
    report = facts["latent"]
    if report is None:
        return []
    found = [Finding("warning", f"Latent space: {report.warning}.")] if report.warning else []
    unused = report.count("collapsed") + report.count("idle")
    total = len(report.dimensions) - report.count("auxiliary")
    if unused and not report.warning:
        text = f"{unused} of {total} latent dimensions hold no information about the data. That costs nothing, unless "
        found.append(Finding("note", f"{text}they were pruned too early in training."))
    return found


def _of_likelihood(facts: RunFacts) -> list[Finding]:
    found = []
    if (estimate := facts["log_marginal"]) is not None:
        found += [Finding("warning", f"log p(x): {text}.") for text in estimate.caveats]
    if (value := facts["bound"]) is not None:
        if value.point_masses:
            sites = ", ".join(value.point_masses)
            found.append(Finding("warning", f"The guide is a point at {sites}: its ELBO is no bound on log p(x)."))
        if value.is_joint:
            text = "A latent stands outside the plate over the data: the numbers are of all data together."
            found.append(Finding("note", text))
    return found


def _of_fit(facts: RunFacts) -> list[Finding]:
    test, train = facts["bound"], facts["train_bound"]
    if test is None or train is None or test.is_joint or facts.split == "train":
        return []
    gap = train.mean - test.mean
    error = math.hypot(standard_error(test.elbo), standard_error(train.elbo))
    if not (gap > CLEAR * error and gap > 3 * RELEVANT * abs(test.mean)):
        return []
    text = f"The ELBO of training data is {gap:.2f} ± {error:.2f} nats above that of {facts.split} data: "
    return [Finding("warning", f"{text}part of what was learned holds for the training data alone.")]


def _of_calibration(facts: RunFacts) -> list[Finding]:
    found = facts["calibration"]
    if found is None or found.calibrated:
        return []
    text = found.verdict[:1].upper() + found.verdict[1:]
    return [Finding("note", f"Calibration: {text}.")]
