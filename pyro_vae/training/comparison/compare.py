"""The same pair trained from the same seeds under several estimators, and the paired differences."""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pyro
import pyro.infer
import torch
from torch import Tensor

from pyro_vae import elbo as elbos
from pyro_vae.data import Data, Split
from pyro_vae.evaluate.marginal.likelihood import log_marginal
from pyro_vae.support.arguments import checked_from, flag
from pyro_vae.support.progress import progress_bar
from pyro_vae.support.random import fork_rng
from pyro_vae.training.comparison.halving import halved
from pyro_vae.training.comparison.result import TrainingComparison, TrainingRun
from pyro_vae.training.fitting import fit
from pyro_vae.training.together.building import FreshPairs
from pyro_vae.training.together.jobs import Fitted, Job, Stacked, one_after_another
from pyro_vae.training.together.many import check_seeds, train_jobs
from pyro_vae.training.together.result import final_epoch

__all__ = ["compare_training"]

Estimators = Sequence[elbos.Estimator] | Mapping[str, elbos.Estimator | Mapping[str, Any]]
FIT_OPTIONS = frozenset(inspect.signature(fit).parameters)
TRAIN_HEAD = 1000  # number of training data used instead if there are no validation data


@checked_from(estimators=None, stacked=None, processes=1)
def compare_training(
    build: Callable[[int], Any],
    data: Any,
    estimators: Estimators,
    *,
    valid: Any = None,
    seeds: Sequence[int] = (0, 1, 2),
    epochs: int | None = None,
    seconds: float | None = None,
    x: Tensor | tuple[Any, ...] | None = None,
    num_samples: int = 100,
    stacked: Stacked = False,
    processes: int = 1,
    halving: bool = False,
    progress: bool | None = False,
    **options: Any,
) -> TrainingComparison:
    """Train the same pair under several estimators, from the same seeds and for the same length, and compare them.

    For every estimator, a seed fixes the initial weights, the order of the data and the random numbers. Differences
    between seeds therefore cancel in the paired differences.

    Args:
        build: `build(seed)` returns a fresh pair: an object with `model` and `guide`, or a tuple of the two. All
            networks and parameters must be made inside it, with torch's generators or the seed as the only source of
            randomness; torch is seeded with the seed before each call.
        data, valid: As in `fit`.
        estimators: Names (`pv.elbo.names()`), ELBO objects, or dictionaries of these by latent site
            (`{"y": "enum", "z": "stl"}`); or a dictionary from a label to one of them, or to options of `fit` for this
            estimator alone, `{"IWAE-5": {"elbo": "iwae", "num_particles": 5}}`. Objects are copied for each run. The
            first one is the baseline of the differences.
        seeds: Every estimator is trained once from each seed. Three seeds give wide intervals: the t-quantile is 4.3;
            with ten it is 2.3.
        epochs, seconds: Length of each run: one of the two. With `seconds` (which include validation), a run ends with
            the epoch in which they have passed, so an epoch should be short compared with them.
        x: Data for log p(x), `(N, ...)`, or a tuple of these and the pair's further arguments. Default: all validation
            data, or the first 1000 training data without them.
        num_samples: Importance samples per datum for log p(x).
        stacked, processes: The runs of an estimator from all seeds at once, in one graph or in several processes: see
            `fit_many`, whose figures are the same. The seconds of a stacked run are its share.
        halving: End the training of estimators that are beaten: sequential halving. All estimators train together; at
            each of a few epochs the better half of them, by the mean ELBO over the seeds, goes on. The parts of the
            training between these epochs have about equal cost. A run that ends so has `history.stopped == "beaten"`.
        progress: Show a bar over the runs.
        **options: Options of `fit` for all runs: `batch_size`, `lr`, `num_particles`, ...

    Returns:
        TrainingComparison: One run per estimator and seed, and the paired differences, in nats per datum.

    Raises:
        ValueError, TypeError: For bad arguments; if `build` returns a network that was trained before, or other weights
            at its second call with a seed; and for errors of `fit`, with a note of estimator and seed.

    Reference: Karnin et al. 2013, ICML, algorithm 1, and Jamieson and Talwalkar 2016, arXiv 1502.07943 (halving).
    """
    jobs = _jobs(estimators, options)
    _check_length(epochs, seconds, [*jobs.values()])
    seeds = check_seeds(seeds)
    _check_way(stacked, processes, halving, seconds)
    if isinstance(data, Data) and valid is None:
        valid = data.valid
    held_out = _held_out(data, valid) if x is None else x if isinstance(x, tuple) else (x,)
    check = FreshPairs()
    grid = {
        label: [
            Job(
                build,
                data,
                seed,
                {**_with_length(job, epochs, seconds), "valid": valid},
                f"under {label!r} from seed {seed}",
                check,
            )
            for seed in seeds
        ]
        for label, job in jobs.items()
    }
    runs: dict[tuple[str, int], TrainingRun] = {}
    with progress_bar("training", len(jobs) * len(seeds), progress) as advance:
        _warm_up(build, data, seeds[0], *next(iter(jobs.items())))
        for label, fitted in _all_fitted(grid, stacked, processes, halving, epochs):
            run = _measured(label, fitted, held_out, num_samples)
            runs[label, run.seed] = run
            advance(1, f"{label}, seed {run.seed}: log p(x) {run.log_prob:.2f}")
    return TrainingComparison([runs[label, seed] for label in jobs for seed in seeds])


def _all_fitted(
    grid: Mapping[str, list[Job]], how: Stacked, processes: int, halving: bool, epochs: int | None
) -> Iterator[tuple[str, Fitted]]:
    """The trained pairs with their labels, in the order in which they are trained."""
    if halving and epochs is not None:
        for label, found in halved(grid, epochs, how).items():
            yield from ((label, fitted) for fitted in found)
    elif how is False and processes == 1:
        for column in zip(*grid.values(), strict=True):
            for label, job in zip(grid, column, strict=True):
                yield from ((label, fitted) for fitted in one_after_another([job]))
    else:
        for label, row in grid.items():
            yield from ((label, fitted) for fitted in train_jobs(row, how, processes)[0])


def _measured(label: str, fitted: Fitted, held_out: Sequence[Any], num_samples: int) -> TrainingRun:
    """A trained pair with its log p(x)."""
    # pairs made of plain functions share the parameter store, and names in it
    with pyro.get_param_store().scope():
        pair = fitted.load()
        args = [a.to(_device()) if isinstance(a, Tensor) else a for a in held_out]
        marginal = log_marginal(*pair, *args, num_samples=num_samples, seed=0)
    history = fitted.history
    best = final_epoch(history)
    return TrainingRun(
        estimator=label,
        seed=fitted.seed,
        train_elbo=best.train_elbo,
        valid_elbo=best.valid_elbo,
        log_prob=marginal.mean,
        log_prob_error=marginal.mean_error,
        epochs=len(history),
        seconds=history[-1].seconds,
        history=history,
    )


def _warm_up(build: Callable[[int], Any], data: Any, seed: int, label: str, job: Mapping[str, Any]) -> None:
    """Take the first step of the process, which takes seconds longer and would put the baseline at a disadvantage."""
    options = {k: v for k, v in job.items() if k not in ("kl_weight", "callbacks", "early_stopping")}
    list(one_after_another([Job(build, data, seed, {**options, "steps": 1}, f"under {label!r} from seed {seed}")]))


def _check_way(how: Stacked, processes: int, halving: bool, seconds: float | None) -> None:
    flag("stacked", how, "auto")
    if seconds is not None and (how is not False or halving):
        name = "halving" if halving else "stacked"
        raise ValueError(f"{name} trains runs side by side, which share their seconds: give epochs, not seconds")
    if halving and processes > 1:
        raise ValueError("halving compares all runs at an epoch, in one process: leave processes at 1")


def _jobs(estimators: Estimators, options: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The options of `fit` for each label."""
    if isinstance(estimators, str) or not isinstance(estimators, Mapping | Sequence):
        raise TypeError(f"estimators must be a list of names or a dictionary by label, got {estimators!r}")
    if not isinstance(estimators, Mapping):
        named = [(elbos.label(e), e) for e in estimators]
        if len({label for label, _ in named}) < len(named):
            raise ValueError(
                f"estimators named alike cannot be told apart: {[label for label, _ in named]}; give a dictionary from "
                "labels to estimators"
            )
        estimators = dict(named)
    if not estimators:
        raise ValueError("no estimator to compare: give names or ELBO objects")
    reserved = {"epochs", "steps", "seed", "valid", "progress"}
    jobs = {}
    for label, each in estimators.items():
        own = dict(each) if isinstance(each, Mapping) and FIT_OPTIONS.issuperset(each) else {"elbo": each}
        if reserved & {*own, *options}:
            raise ValueError(f"{', '.join(sorted(reserved & {*own, *options}))} must be the same for all runs")
        jobs[str(label)] = {**options, **own}
    return jobs


def _check_length(epochs: int | None, seconds: float | None, jobs: list[dict[str, Any]]) -> None:
    if (epochs is None) == (seconds is None):
        raise ValueError(f"give epochs or seconds, one of them (got epochs={epochs}, seconds={seconds})")
    if seconds is not None:
        if not 0 < seconds < math.inf:
            raise ValueError(f"seconds must be a number above 0, got {seconds}")
        if any(job.get("lr_schedule", "constant") != "constant" for job in jobs):
            raise ValueError("lr_schedule needs a known number of epochs: with seconds, leave it at 'constant'")


def _held_out(data: Any, valid: Any) -> tuple[Any, ...]:
    source = data.train if isinstance(data, Data) else data
    rows = None if valid is not None else TRAIN_HEAD
    source = source if valid is None else valid
    if isinstance(source, Split):
        with fork_rng(0):  # data may be drawn at each access
            return (source.head(min(rows or len(source), len(source))),)
    if isinstance(source, Tensor):
        return (source[:rows],)
    if isinstance(source, tuple) and source and all(isinstance(t, Tensor) for t in source):
        return tuple(t[:rows] for t in source)
    raise TypeError(f"give x, the data for log p(x): they cannot be taken from a {type(source).__name__}")


def _device() -> torch.device | None:
    """The device of the current pair's parameters."""
    return next((p.device for p in pyro.get_param_store().values()), None)


def _with_length(options: dict[str, Any], epochs: int | None, seconds: float | None) -> dict[str, Any]:
    """Options of `fit` for a run of this length."""
    if seconds is None:
        return {**options, "epochs": epochs}
    budget = seconds
    stop = [*options.get("callbacks", ()), lambda state: state.epoch.seconds >= budget]
    return {**options, "epochs": sys.maxsize, "callbacks": stop}
