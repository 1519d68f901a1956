"""ELBO estimators compared on one pair: bound, gradient bias, variance and signal, time and memory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyro.infer
import torch
from rich import box
from rich.console import Group
from rich.table import Table
from torch import Tensor

from pyro_vae import elbo as elbos
from pyro_vae.evaluate.estimators.gradients import Gradients, Moments
from pyro_vae.evaluate.marginal.likelihood import LogMarginal, log_marginal
from pyro_vae.pair.arguments import check_data, check_keywords
from pyro_vae.pair.networks import beside_networks
from pyro_vae.pair.protocol import Data, Program
from pyro_vae.pair.tracing import sample_sites, trace_pair
from pyro_vae.support.memory import kept_memory
from pyro_vae.support.progress import progress_bar
from pyro_vae.support.random import fork_rng, seed_or_draw
from pyro_vae.support.tables import as_text, save_result

__all__ = ["Comparison", "EstimatorRow", "compare_elbos"]


@dataclass(frozen=True)
class EstimatorRow:
    """One estimator with one number of particles.

    `value` is the bound in nats per datum, `gap` the reference log p(x) minus it. Gradients are of the mean loss over
    the data, split into the model's and the guide's parameters: `variance` is the trace of the covariance of one
    gradient, `snr` the norm of the expected gradient over the root of the variance, `bias` the norm of the expected
    gradient's deviation from an unbiased gradient of the same bound, relative to the latter's norm and corrected for
    the noise of both (0 where noise explains it). `seconds` and `memory` (bytes at the peak) are for one gradient.
    """

    estimator: str
    num_particles: int
    value: float
    value_error: float
    gap: float
    model_bias: float
    guide_bias: float
    model_variance: float
    guide_variance: float
    model_snr: float
    guide_snr: float
    seconds: float
    memory: int


@dataclass(frozen=True, repr=False)
class Comparison:
    """What `compare_elbos` found: rows by estimator and particles, and the reference log p(x)."""

    rows: list[EstimatorRow]
    reference: LogMarginal
    repeats: int

    def to_dicts(self) -> list[dict[str, Any]]:
        """One dictionary a row."""
        return [asdict(row) for row in self.rows]

    def table(self) -> Group:
        """Two rich tables that fit a terminal: the bounds with their cost, and the gradients.

        `var x s`, the guide's gradient variance times the seconds of one gradient, is the cost at equal accuracy.
        """
        title = (
            f"reference log p(x) {self.reference.mean:.2f} ± {self.reference.mean_error:.3f} nats per datum; "
            f"{len(self.reference)} data, {self.repeats} repeats"
        )
        bounds = _table(title, "bound", "gap", "ms", "MB", "var x s")
        gradients = _table("gradients: model | guide", "bias", "bias", "variance", "variance", "SNR", "SNR")
        for r in self.rows:
            name = (r.estimator, str(r.num_particles))
            cost = (f"{1e3 * r.seconds:.1f}", f"{r.memory / 2**20:.1f}", f"{r.guide_variance * r.seconds:.2g}")
            bounds.add_row(*name, f"{r.value:.3f} ± {r.value_error:.3f}", f"{r.gap:.3f}", *cost)
            wide = (r.model_bias, r.guide_bias, r.model_variance, r.guide_variance)
            gradients.add_row(*name, *(f"{v:.2g}" for v in wide), f"{r.model_snr:.2f}", f"{r.guide_snr:.2f}")
        return Group(bounds, gradients)

    def __repr__(self) -> str:
        return as_text(self.table())

    def save(self, path: str | Path) -> Path:
        """Write the rows as CSV or JSON, by the ending of the path."""
        rows, columns = self.to_dicts(), list(EstimatorRow.__dataclass_fields__)
        return save_result(
            path, "a comparison is", rows, {"reference": self.reference.to_dict(), "rows": rows}, columns
        )

    def plot(self) -> Any:
        """A figure: bound against particles, the guide's SNR against particles, its variance against time."""
        from matplotlib.figure import Figure
        from matplotlib.ticker import FixedLocator, LogLocator, NullLocator, StrMethodFormatter

        figure = Figure(figsize=(13, 4), layout="constrained")
        bounds, signal, cost = figure.subplots(1, 3)
        grouped: dict[str, list[EstimatorRow]] = {}
        for row in self.rows:
            grouped.setdefault(row.estimator, []).append(row)
        ks = sorted({r.num_particles for r in self.rows})
        for i, (name, rows) in enumerate(grouped.items()):
            k = [r.num_particles for r in rows]
            # several estimators share a bound, and some a gradient: hollow markers that grow inwards leave all visible
            style: dict[str, Any] = {
                "color": f"C{i}",
                "marker": "osD^v<>ph*"[i % 10],
                "mfc": "none",
                "lw": 1.2,
                "alpha": 0.9,
                "ls": (0, (4 + i, i)) if i else "-",
                "ms": max(4.0, 10 - 1.5 * i),
            }
            # error bars side by side
            apart = [x * 1.06 ** (i - (len(grouped) - 1) / 2) for x in k]
            bounds.errorbar(apart, [r.value for r in rows], [r.value_error for r in rows], label=name, **style)
            signal.plot(k, [r.guide_snr for r in rows], **style)
            cost.plot([1e3 * r.seconds for r in rows], [r.guide_variance for r in rows], **style)
            for r in rows:
                at = 1e3 * r.seconds, r.guide_variance
                cost.annotate(str(r.num_particles), at, (5, 5), textcoords="offset points", fontsize=6, color=f"C{i}")
        bounds.axhline(self.reference.mean, color="black", lw=0.8, ls=":", label="log p(x)")
        positive = [r.guide_snr for r in self.rows if r.guide_snr > 0 and r.num_particles == ks[0]]
        if positive and len(ks) > 1:
            for power, label in ((0.5, "√K"), (-0.5, "1/√K")):
                line = [max(positive) * (k / ks[0]) ** power for k in ks]
                signal.plot(ks, line, color="grey", lw=0.8, ls=":")
                signal.annotate(
                    label, (ks[-1], line[-1]), (-8, 6), textcoords="offset points", ha="right", color="grey"
                )
        bounds.set(xscale="log", xlabel="particles K", ylabel="bound (nats per datum)")
        signal.set(xscale="log", yscale="log", xlabel="particles K", ylabel="SNR of the guide's gradient")
        cost.set(
            xscale="log", yscale="log", xlabel="milliseconds per gradient", ylabel="variance of the guide's gradient"
        )
        signal.margins(y=0.1)
        for ax in (bounds, signal):
            ax.xaxis.set_major_locator(FixedLocator(ks))
        cost.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        for ax in (bounds, signal, cost):
            ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            ax.xaxis.set_minor_locator(NullLocator())
        figure.legend(*bounds.get_legend_handles_labels(), loc="outside right upper", fontsize=8)
        return figure


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("estimator", no_wrap=True)
    for column in ("K", *columns):
        table.add_column(column, justify="right", no_wrap=True)
    return table


ESTIMATORS = ("trace", "mean_field", "stl", "iwae", "dreg")


def compare_elbos(
    model: Program,
    guide: Program,
    x: Tensor,
    *args: Any,
    estimators: Sequence[str | pyro.infer.ELBO] | Mapping[str, str | pyro.infer.ELBO] = ESTIMATORS,
    num_particles: Sequence[int] = (1, 5, 50),
    repeats: int = 100,
    num_samples: int = 5000,
    seed: int | None = None,
    progress: bool | None = False,
    **kwargs: Any,
) -> Comparison:
    """Compare ELBO estimators on any pair, at its present parameters, which are left as they are.

    Args:
        model, guide: The pair.
        x, *args, **kwargs: The data, `(N, ...)`, then whatever else the pair takes.
        estimators: Names (`pv.elbo.names()`) or ELBO objects; an object brings its own number of particles. Or a
            dictionary of them by the labels that the rows shall have.
        num_particles: Particles K for each name; a name that needs more than K is left out at that K.
        repeats: Gradients per row. Repeat r has the same noise seed for every estimator.
        num_samples: Importance samples per datum for the reference log p(x).
        seed: A number makes the call reproducible and leaves torch's generators as they were. None continues their
            stream.
        progress: Show a bar.

    Raises:
        ValueError: For unknown names, fewer than two repeats, or an estimator that the pair does not allow.
        TypeError: For a keyword that neither this call nor the pair knows.
    """
    n = check_data((x, *args))
    check_keywords(compare_elbos, kwargs, model, guide)
    data = beside_networks((x, *args), model, guide), kwargs
    first = seed_or_draw(seed)
    if repeats < 2:
        raise ValueError(f"repeats must be at least 2 to tell a variance, got {repeats}")
    jobs = _jobs(estimators, num_particles)
    reference = log_marginal(model, guide, *data[0], num_samples=num_samples, seed=first, progress=progress, **kwargs)
    sides, pathwise = _sides(model, guide, data)
    rows = []
    references: dict[Any, dict[str, Moments]] = {}
    with kept_memory(), progress_bar("gradients", len(jobs) * repeats, progress) as advance:
        for name, objective in jobs:
            run = Gradients(model, guide, data, objective, sides, n)
            moments, values, seconds = run.repeat(range(first, first + repeats), advance)
            target, unbiased, draws = _unbiased(objective, pathwise)
            if target not in references:
                # seeds that no row uses
                seeds = range(first + 10**6, first + 10**6 + max(2, draws * repeats // 100))
                references[target] = Gradients(model, guide, data, unbiased, sides, n).repeat(seeds)[0]
            value = float(values.mean())
            ours, best = moments, references[target]
            rows.append(
                EstimatorRow(
                    estimator=name,
                    num_particles=objective.num_particles,
                    value=value,
                    value_error=float(values.std()) / math.sqrt(repeats),
                    gap=reference.mean - value,
                    model_bias=ours["model"].distance(best["model"]),
                    guide_bias=ours["guide"].distance(best["guide"]),
                    model_variance=ours["model"].variance,
                    guide_variance=ours["guide"].variance,
                    model_snr=ours["model"].snr,
                    guide_snr=ours["guide"].snr,
                    seconds=seconds,
                    memory=run.peak_memory(first),
                )
            )
    return Comparison(rows, reference, repeats)


def _jobs(
    estimators: Sequence[str | pyro.infer.ELBO] | Mapping[str, str | pyro.infer.ELBO], num_particles: Iterable[int]
) -> list[tuple[str, pyro.infer.ELBO]]:
    jobs: list[tuple[str, pyro.infer.ELBO]] = []
    counts = list(num_particles)
    if not counts or min(counts) < 1:
        raise ValueError(f"num_particles must be positive numbers, got {counts}")
    labels = [e if isinstance(e, str) else type(e).__name__ for e in estimators]
    objects = estimators.values() if isinstance(estimators, Mapping) else estimators
    for label, estimator in zip(labels, objects, strict=True):
        of = elbos.bound_of(estimator) if isinstance(estimator, str) else getattr(estimator, "bound", "elbo")
        if of == "none":
            raise ValueError(
                f"the loss of {label!r} is no bound on log p(x), which estimators are compared by: compare what it "
                "has trained, by samples (pv.sample_quality) and log p(x)"
            )
        if isinstance(estimator, str):
            least = elbos.least_particles(estimator)
            jobs += [(label, elbos.make(estimator, num_particles=k)) for k in counts if k >= least]
        else:
            jobs.append((label, elbos.make(estimator)))
    if not jobs:
        raise ValueError("no estimator to compare: give names or ELBO objects, and particles enough for them")
    return jobs


def _sides(model: Program, guide: Program, data: Data) -> tuple[dict[str, list[Tensor]], bool]:
    """The parameters of the model and of the guide, and whether every latent can be reparameterised."""
    sides: dict[str, list[Tensor]] = {}
    with torch.no_grad(), fork_rng():
        traces = trace_pair(model, guide, *data)
        for side, trace in (("model", traces.model), ("guide", traces.guide)):
            found: list[Any] = [s["value"].unconstrained() for s in trace.nodes.values() if s["type"] == "param"]
            sides[side] = list({id(p): p for p in found if p.requires_grad}.values())
    return sides, all(site["fn"].has_rsample for _, site in sample_sites(traces.guide))


def _unbiased(objective: pyro.infer.ELBO, pathwise: bool) -> tuple[Any, pyro.infer.ELBO, int]:
    """A key for the objective's bound, a low-variance estimator with an unbiased gradient of it, and repeats for it."""
    k, bound = objective.num_particles, getattr(objective, "bound", "elbo")
    if bound == "iwae" and k > 1:
        return ("iwae", k), elbos.make("dreg" if pathwise else "vimco", num_particles=k), 50
    if bound == "own":
        return objective, objective, 100
    if pathwise:
        return "elbo", elbos.make("stl", num_particles=50), 20
    return "elbo", elbos.make("reinforce", num_particles=50, baseline="leave_one_out"), 20
