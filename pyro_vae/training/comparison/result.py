"""Runs paired by their seeds: the metrics of each run, and the paired differences."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from rich.table import Table
from rich.text import Text

from pyro_vae.support.pictures import without_math
from pyro_vae.support.results import Result
from pyro_vae.support.statistics import mean_and_half_width
from pyro_vae.training.history import History
from pyro_vae.training.together.result import draw_band

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["PairedDifference", "TrainingComparison", "TrainingRun"]

MEASURES = ("train_elbo", "valid_elbo", "log_prob")


@dataclass(frozen=True)
class TrainingRun:
    """One training under one estimator from one seed, in nats per datum.

    `train_elbo` and `valid_elbo` are the true ELBO of the final weights (those of the best epoch, if `fit` restored
    them); `log_prob` and `log_prob_error` are the importance-sampled log p(x) and its Monte Carlo error; `epochs` and
    `seconds` are the length of the run, validation included.
    """

    estimator: str
    seed: int
    train_elbo: float
    valid_elbo: float | None
    log_prob: float
    log_prob_error: float
    epochs: int
    seconds: float
    history: History = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """All values, without the history."""
        return {name: getattr(self, name) for name in _FIELDS}


_FIELDS = [name for name in TrainingRun.__dataclass_fields__ if name != "history"]


@dataclass(frozen=True)
class PairedDifference:
    """The mean difference between an estimator's runs and the baseline's from the same seeds, in nats per datum.

    `low` and `high` are the 95 % t-interval of the mean difference over seeds; it is infinite for one seed.
    """

    estimator: str
    baseline: str
    measure: str
    mean: float
    low: float
    high: float
    seeds: int


@dataclass(frozen=True, repr=False)
class TrainingComparison(Result):
    """The result of `compare_training`: one run per estimator and seed, in this order."""

    title: ClassVar[str] = "comparison of trainings"
    _columns: ClassVar[list[str]] = _FIELDS
    _width: ClassVar[int] = 150

    runs: list[TrainingRun]

    @property
    def estimators(self) -> list[str]:
        """The estimators' names, the baseline first."""
        return list(dict.fromkeys(run.estimator for run in self.runs))

    def runs_of(self, estimator: str) -> list[TrainingRun]:
        """The runs of one estimator, by seed."""
        found = [run for run in self.runs if run.estimator == estimator]
        if not found:
            raise ValueError(f"no run of {estimator!r}; there are {', '.join(self.estimators)}")
        return found

    def differences(self, baseline: str | None = None) -> list[PairedDifference]:
        """Paired differences of every other estimator to `baseline` (default: the first), for each measure.

        If training ended early for one of the two because it was beaten, their ELBOs are those of the last epoch that
        both of them have, and there is no difference of log p(x).
        """
        if not self.runs:
            return []
        baseline = self.estimators[0] if baseline is None else baseline
        base = self.runs_of(baseline)
        result = []
        for estimator in self.estimators:
            for measure in MEASURES if estimator != baseline else ():
                pairs = [_at_equal_length(a, b, measure) for a, b in zip(self.runs_of(estimator), base, strict=True)]
                if pairs[0][0] is not None:
                    result.append(_difference(estimator, baseline, measure, pairs))
        return result

    def at_equal_time(self, seconds: float | None = None, baseline: str | None = None) -> list[PairedDifference]:
        """Paired differences of the ELBO after equally many seconds of training in place of epochs.

        The ELBO (of the validation data, else the training data) is that of the latest epoch that had ended by then.

        Args:
            seconds: The time. Default: the latest that all runs have reached.
            baseline: The estimator that the others are compared with. Default: the first.

        Raises:
            ValueError: If a run had not ended its first epoch by then, or had ended before.
        """
        if not self.runs:
            return []
        first = max(run.history[0].seconds for run in self.runs)
        last = min(run.history[-1].seconds for run in self.runs)
        if last < first:
            raise ValueError(
                f"a run ended after {last:.3g} seconds, before the first epoch of another, at {first:.3g}: train for "
                "more epochs"
            )
        seconds = last if seconds is None else seconds
        if not first <= seconds <= last:
            raise ValueError(f"seconds must be in the training of all runs, {first:.3g} to {last:.3g}, got {seconds}")
        baseline = self.estimators[0] if baseline is None else baseline
        base = self.runs_of(baseline)
        return [
            _difference(
                estimator,
                baseline,
                "elbo",
                [
                    (_elbo_at(a, seconds), _elbo_at(b, seconds))
                    for a, b in zip(self.runs_of(estimator), base, strict=True)
                ],
            )
            for estimator in self.estimators
            if estimator != baseline
        ]

    def _values(self) -> dict[str, Any]:
        return {"estimators": self.estimators, "differences": [asdict(d) for d in self.differences()]}

    def _rows(self) -> list[dict[str, Any]]:
        return [run.to_dict() for run in self.runs]

    def _content(self) -> dict[str, Any]:
        runs = [{**run.to_dict(), "history": run.history.to_dicts()} for run in self.runs]
        return {"runs": runs, "differences": self.to_dict()["differences"]}

    def table(self) -> Table:
        """One row per estimator: means over seeds, and the differences to the first estimator with their intervals."""
        first, seeds = (self.estimators[0], len(self.runs_of(self.estimators[0]))) if self.runs else ("the first", 0)
        title = (
            f"nats per datum, means over {seeds} seed(s); differences to {first} are paired by seed, "
            "with 95 % t-intervals (±: of the means)"
        )
        table = Table(title=Text(title, style="table.title"), title_justify="left")
        table.add_column("estimator")
        for name in ("ELBO train", "valid", "difference", "log p(x)", "difference", "epochs", "seconds"):
            table.add_column(name, justify="right")
        found = {(d.estimator, d.measure): d for d in self.differences()}
        for estimator in self.estimators:
            runs = self.runs_of(estimator)
            elbo = "train_elbo" if runs[0].valid_elbo is None else "valid_elbo"
            table.add_row(
                Text(estimator),
                _interval(runs, "train_elbo"),
                "" if runs[0].valid_elbo is None else _interval(runs, "valid_elbo"),
                _format(found.get((estimator, elbo))),
                _interval(runs, "log_prob"),
                _format(found.get((estimator, "log_prob"))),
                f"{_mean(runs, 'epochs'):.0f}",
                f"{_mean(runs, 'seconds'):.1f}",
            )
        return table

    def _draw(self) -> Figure:
        """The ELBO (validation, else training) against the epoch and against seconds: runs, means and intervals."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9, 3.8), layout="constrained")
        axes = figure.subplots(1, 2, sharey=True)
        for i, estimator in enumerate(self.estimators):
            histories = [run.history for run in self.runs_of(estimator)]
            for ax, name in zip(axes, ("epoch", "seconds"), strict=True):
                label = without_math(estimator) if ax is axes[0] else ""
                # later lines are thinner, so that equal curves can all be seen
                draw_band(ax, histories, name, color=f"C{i}", label=label, width=max(0.8, 2.6 - 0.5 * i))
        # the axis leaves out the first epochs, which are far below the others
        late = [e.monitored for run in self.runs for e in run.history.epochs[len(run.history) // 10 :]]
        finite = torch.tensor([v for v in late if math.isfinite(v)])
        if len(finite) > 1 and finite.max() > finite.min():
            lower, upper = finite.double().quantile(torch.tensor([0.25, 0.75], dtype=torch.float64)).tolist()
            # and values far below the lower quartile, such as those of a diverging run
            low, high = max(float(finite.min()), lower - 3 * (upper - lower)), float(finite.max())
            axes[0].set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
        valid = self.runs[0].valid_elbo is not None
        axes[0].set(xlabel="epoch", ylabel=f"{'validation' if valid else 'training'} ELBO (nats per datum)")
        axes[1].set(xlabel="seconds")
        figure.legend(loc="outside right upper", fontsize=8)
        return figure


def _difference(estimator: str, baseline: str, measure: str, pairs: list[tuple[float, float]]) -> PairedDifference:
    mean, half = mean_and_half_width(torch.tensor([a - b for a, b in pairs], dtype=torch.float64))
    return PairedDifference(estimator, baseline, measure, mean, mean - half, mean + half, len(pairs))


def _at_equal_length(a: TrainingRun, b: TrainingRun, measure: str) -> tuple[Any, Any]:
    """A measure of two runs; of their last common epoch, if one of them was beaten."""
    if "beaten" not in (a.history.stopped, b.history.stopped) or len(a.history) == len(b.history):
        return getattr(a, measure), getattr(b, measure)
    last = min(len(a.history), len(b.history)) - 1
    return getattr(a.history[last], measure, None), getattr(b.history[last], measure, None)


def _elbo_at(run: TrainingRun, seconds: float) -> float:
    return [epoch.monitored for epoch in run.history if epoch.seconds <= seconds][-1]


def _interval(runs: list[TrainingRun], name: str) -> str:
    mean, half = mean_and_half_width(torch.tensor([getattr(run, name) for run in runs], dtype=torch.float64))
    return f"{mean:.3f} ± {half:.3f}" if len(runs) > 1 else f"{mean:.3f}"


def _mean(runs: list[TrainingRun], name: str) -> float:
    return sum(getattr(run, name) for run in runs) / len(runs)


def _format(difference: PairedDifference | None) -> str:
    if difference is None:
        return ""
    return f"{difference.mean:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]"
