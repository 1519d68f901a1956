"""The same pair trained from the same seeds under several estimators, and the paired differences."""

from __future__ import annotations

import copy
import inspect
import math
import sys
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyro
import pyro.infer
import torch
from torch import Tensor, nn

from pyro_vae import elbo as elbos
from pyro_vae.data import Data, Split
from pyro_vae.evaluate.marginal.likelihood import log_marginal
from pyro_vae.pair.networks import modules_of
from pyro_vae.pair.protocol import Program
from pyro_vae.support.arguments import checked_from
from pyro_vae.support.progress import progress_bar
from pyro_vae.support.random import fork_rng
from pyro_vae.training.comparison.result import TrainingComparison, TrainingRun
from pyro_vae.training.fitting import fit
from pyro_vae.training.history import History

__all__ = ["compare_training"]

Estimators = Sequence[elbos.Estimator] | Mapping[str, elbos.Estimator | Mapping[str, Any]]
FIT_OPTIONS = frozenset(inspect.signature(fit).parameters)
TRAIN_HEAD = 1000  # number of training data used instead if there are no validation data


@checked_from(estimators=None)
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
        progress: Show a bar over the runs.
        **options: Options of `fit` for all runs: `batch_size`, `lr`, `num_particles`, ...

    Returns:
        TrainingComparison: One run per estimator and seed, and the paired differences, in nats per datum.

    Raises:
        ValueError, TypeError: For bad arguments; if `build` returns a network that was trained before, or other weights
            at its second call with a seed; and for errors of `fit`, with a note of estimator and seed.
    """
    jobs = _jobs(estimators, options)
    _check_length(epochs, seconds, [*jobs.values()])
    seeds = list(seeds)
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds must be different whole numbers, at least one, got {seeds}")
    if isinstance(data, Data) and valid is None:
        valid = data.valid
    held_out = _held_out(data, valid) if x is None else x if isinstance(x, tuple) else (x,)
    runs: dict[tuple[str, int], TrainingRun] = {}
    initial = _InitialWeights()
    with progress_bar("training", len(jobs) * len(seeds), progress) as advance:
        # the first step of a process takes seconds longer, which would put the baseline at a disadvantage
        with pyro.get_param_store().scope():
            label, job = next(iter(jobs.items()))
            one_step = {k: v for k, v in job.items() if k not in ("kl_weight", "callbacks", "early_stopping")}
            _train(_build_pair(build, seeds[0])[0], data, (label, seeds[0]), {**one_step, "steps": 1})
        for seed in seeds:
            for label, job in jobs.items():
                # pairs made of plain functions share the parameter store, and names in it
                with pyro.get_param_store().scope():
                    pair, nets = _build_pair(build, seed)
                    initial.check(seed, nets)
                    history = _train(pair, data, (label, seed), {**_with_length(job, epochs, seconds), "valid": valid})
                    args = [a.to(_device()) if isinstance(a, Tensor) else a for a in held_out]
                    marginal = log_marginal(*pair, *args, num_samples=num_samples, seed=0)
                best = history[-1] if history.best is None else history[history.best - 1]
                runs[label, seed] = TrainingRun(
                    estimator=label,
                    seed=seed,
                    train_elbo=best.train_elbo,
                    valid_elbo=best.valid_elbo,
                    log_prob=marginal.mean,
                    log_prob_error=marginal.mean_error,
                    epochs=len(history),
                    seconds=history[-1].seconds,
                    history=history,
                )
                advance(1, f"{label}, seed {seed}: log p(x) {marginal.mean:.2f}")
    return TrainingComparison([runs[label, seed] for label in jobs for seed in seeds])


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


def _build_pair(build: Callable[[int], Any], seed: int) -> tuple[tuple[Program, Program], list[nn.Module]]:
    """The pair and its networks."""
    with fork_rng(seed):
        pair = build(seed)
    if isinstance(pair, tuple) and len(pair) == 2:
        model, guide = pair
    elif hasattr(pair, "model") and hasattr(pair, "guide"):
        model, guide = pair.model, pair.guide
    else:
        raise TypeError(
            "build(seed) must return an object with model and guide, or a tuple (model, guide), got "
            f"{type(pair).__name__}"
        )
    return (model, guide), list(modules_of(model, guide).values())


class _InitialWeights:
    """Checks that all runs with one seed begin with the same, untrained weights."""

    def __init__(self) -> None:
        self.used: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        self.by_seed: dict[int, list[Tensor]] = {}

    def check(self, seed: int, nets: list[nn.Module]) -> None:
        trained = [net for net in nets if any(p.requires_grad for p in net.parameters())]
        if any(net in self.used for net in trained):
            raise ValueError(
                f"build({seed}) returned a network that an earlier run has trained: make all networks inside build"
            )
        self.used.update(trained)
        now = [p.detach().clone() for net in nets for p in net.parameters()]
        first = self.by_seed.setdefault(seed, now)
        if len(first) != len(now) or not all(torch.equal(a, b) for a, b in zip(first, now, strict=True)):
            raise ValueError(
                f"build({seed}) made different weights at its first and its second call: draw random numbers from "
                "torch's generator only, which is seeded before each call"
            )


def _train(pair: tuple[Program, Program], data: Any, run: tuple[str, int], options: dict[str, Any]) -> History:
    if isinstance(options.get("elbo"), pyro.infer.ELBO | Mapping):
        options = {**options, "elbo": copy.deepcopy(options["elbo"])}  # it may have a state, such as a baseline
    label, seed = run
    try:
        history = fit(*pair, data, seed=seed, progress=False, **options)
    except Exception as error:
        error.add_note(f"while training under {label!r} from seed {seed}")
        raise
    if history.stopped == "interrupted":
        raise KeyboardInterrupt
    return history


def _with_length(options: dict[str, Any], epochs: int | None, seconds: float | None) -> dict[str, Any]:
    """Options of `fit` for a run of this length."""
    if seconds is None:
        return {**options, "epochs": epochs}
    budget = seconds
    stop = [*options.get("callbacks", ()), lambda state: state.epoch.seconds >= budget]
    return {**options, "epochs": sys.maxsize, "callbacks": stop}
