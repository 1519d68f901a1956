"""The one training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal

import pyro
import pyro.infer
import torch
from torch import Tensor

from pyro_vae import elbo as elbos
from pyro_vae.data import Data
from pyro_vae.device import choose_device
from pyro_vae.elbo.tracing import fork_rng
from pyro_vae.evaluate.preflight.report import preflight as run_preflight
from pyro_vae.feed import feed
from pyro_vae.guard import WeightGuard
from pyro_vae.history import Epoch, History
from pyro_vae.meter import Meter
from pyro_vae.precision import Precision
from pyro_vae.progress import progress_bar
from pyro_vae.svi import SVI, OptimizerFactory, fused_adam

__all__ = ["State", "fit"]

Program = Callable[..., Any]
LRSchedule = Literal["constant", "linear", "cosine"] | Callable[[float], float]

STEPS_TO_COMPILE = 10_000

_LR_SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda t: 1.0,
    "linear": lambda t: 1.0 - t,
    "cosine": lambda t: 0.5 * (1.0 + math.cos(math.pi * t)),
}


@dataclass(frozen=True)
class State:
    """What a callback sees after each epoch."""

    history: History
    svi: SVI

    @property
    def epoch(self) -> Epoch:
        """The epoch that just ended."""
        return self.history[-1]


def fit(
    model: Program,
    guide: Program,
    data: Any,
    *,
    valid: Any = None,
    elbo: str | pyro.infer.ELBO = "mean_field",
    epochs: int | None = None,
    steps: int | None = None,
    batch_size: int = 100,
    lr: float = 1e-3,
    lr_schedule: LRSchedule = "constant",
    optim: OptimizerFactory | None = None,
    clip_norm: float | None = None,
    num_particles: int = 1,
    kl_weight: float | elbos.Schedule | Callable[[float], float] = 1.0,
    early_stopping: int | None = None,
    keep_best: bool = True,
    seed: int | None = None,
    device: str = "auto",
    compile: bool | Literal["auto"] = "auto",
    precision: Precision = "float32",
    preflight: bool = True,
    progress: bool | None = None,
    callbacks: Sequence[Callable[[State], bool | None]] = (),
) -> History:
    """Train any model/guide pair by stochastic variational inference.

    What is minimised is the mean over the batch of the negative objective. The true ELBO is measured after each epoch
    beside it, on training and validation data, whatever the objective.

    Args:
        model, guide: The pair.
        data: What `pv.data.load` returns; a tensor; a tuple of tensors, whose further members are passed on as `*args`;
            or a loader, whose batches are passed on as far as the model takes arguments.
        valid: Validation data, in any of these forms. Default: the validation split of `data`, if it has one.
        elbo: An estimator's name (`pv.elbo.names()`) or a `pyro.infer.ELBO` object.
        epochs: Length of the run in passes over the data. Default: 50, unless `steps` is given.
        steps: Length of the run in gradient steps, in place of `epochs`.
        batch_size: Data per step; the last batch of an epoch may be smaller. A loader brings its own.
        lr: Learning rate.
        lr_schedule: Its course over the run: "constant", "linear" or "cosine" (both to zero), or a function of the
            share of the run done, in [0, 1], that gives a factor.
        optim: A function `params -> torch.optim.Optimizer`. Default: fused Adam at rate `lr`.
        clip_norm: Rescale the gradient (of the mean loss) to at most this norm.
        num_particles: Draws from the guide per datum and step.
        kl_weight: Weight of the KL in the objective: a number (beta), a `pv.elbo.Warmup` or `pv.elbo.Cyclical`, or a
            function of the epoch (fractional, from 0).
        early_stopping: Stop after so many epochs without a better validation ELBO, counted once the KL weight has
            settled.
        keep_best: End with the weights of the epoch with the best validation ELBO (again, once the KL weight has
            settled). Without validation data the last weights stay.
        seed: Covers the shuffling and all noise, and leaves torch's generators as they were. Weights are initialised
            before this function is called: seed them there.
        device: "auto": a GPU if there is one and the pair's networks can be found and moved, else where they are.
        compile: Compile the gradient step (see `pv.SVI`). The first epoch runs eagerly if the data are in memory, so
            that Pyro has checked every datum. "auto": where at least 10,000 steps are to follow, which pays for the 10
            to 30 seconds of compiling.
        precision: Of the networks: "float32", "bfloat16" or "float16" (see `pv.SVI`).
        preflight: Check the pair on the first few data before training.
        progress: Show a progress bar: True, False, or None (in a terminal).
        callbacks: Called with a `State` after each epoch; returning True ends the run.

    Returns:
        History: The figures of each epoch. After Ctrl-C, too: the pair then has its best weights so far.

    Raises:
        ValueError, TypeError: For bad arguments, an unsound pair (see `preflight`) or unusable data, before any step.
        NonFiniteLoss: When the loss becomes NaN or infinite: it says at which site, step and batch. The weights are the
            last good ones.
    """
    _check("a number", lr=lr)
    counts = {"num_particles": num_particles, "early_stopping": early_stopping, "epochs": epochs, "steps": steps}
    _check("a whole number", batch_size=batch_size, **counts)
    place = choose_device(device, model, guide)
    train = feed(data, batch_size, place, model)
    if valid is None and isinstance(data, Data):
        valid = data.valid
    held_out = None if valid is None else feed(valid, 1, place, model)
    if early_stopping is not None and held_out is None:
        raise ValueError("early_stopping needs validation data: load(..., valid=0.1), or fit(..., valid=x_valid)")
    length = _Length.of(epochs, steps, train.steps_per_epoch)
    factor = _lr_factor(lr_schedule)
    kl, settles = _kl_schedule(kl_weight, length.exact)
    objective = elbos.make(elbo, num_particles=num_particles)
    weighted = elbos.WeightedKL(objective) if kl_weight != 1.0 else None
    if compile not in (True, False, "auto"):
        raise ValueError(f"compile must be True, False or 'auto', got {compile!r}")
    svi = SVI(model, guide, optim or fused_adam(lr), weighted or objective, clip_norm=clip_norm, precision=precision)
    later = (length.steps or 0) - (train.steps_per_epoch or 0)  # steps after the first epoch
    compiles = later >= STEPS_TO_COMPILE if compile == "auto" else compile
    svi.compile = compiles and not train.in_memory
    history = History(seed=seed, elbo=elbo if isinstance(elbo, str) else type(elbo).__name__)
    if isinstance(data, Data):
        history.data = data.describe()

    with fork_rng(seed) if seed is not None else nullcontext():
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())) if seed is None else seed)
        meter = Meter(model, guide, train, held_out)
        if preflight:
            run_preflight(model, guide, *meter.few, elbo=objective, num_particles=num_particles)
        guard = WeightGuard(svi, place)
        step, best, started = 0, -math.inf, time.perf_counter()
        with progress_bar("training", length.steps, progress) as advance, ExitStack() as checks:
            try:
                per_epoch = train.steps_per_epoch
                for epoch in range(1, length.epochs + 1):
                    losses: list[Tensor] = []
                    for batch in train.batches(generator):
                        position = epoch - 1 + (min(1.0, len(losses) / per_epoch) if per_epoch else 0.0)
                        if weighted is not None:
                            weighted.weight = kl(position)
                        guard.before_step()
                        size = meter.divisor(batch)
                        try:
                            total = svi.gradients(batch, scale=1.0 / size)
                        except (ValueError, RuntimeError):
                            guard.look_into(step, batch)
                            raise
                        loss = torch.stack(total if isinstance(total, tuple) else (total,)).sum() / size
                        guard.check(step, loss, batch)
                        _set_lr(svi, factor(step / length.steps if length.steps else position / length.epochs))
                        svi.update()
                        losses.append(loss)
                        step += 1
                        advance(1)
                        if step == length.last_step:
                            break
                    if not losses:
                        raise ValueError(f"the data gave no batch in epoch {epoch}: a loader must start anew each time")
                    per_epoch = per_epoch or len(losses)
                    guard.end_epoch(step, batch)
                    history.epochs.append(
                        Epoch(
                            epoch=epoch,
                            step=step,
                            loss=float(torch.stack(losses).mean()),
                            kl_weight=weighted.weight if weighted else 1.0,
                            lr=_get_lr(svi),
                            seconds=time.perf_counter() - started,
                            **meter.measure(),
                        )
                    )
                    if epoch == 1 and train.in_memory:
                        # Pyro's checks have now seen every datum; a loader may still bring new ones
                        checks.enter_context(pyro.validation_enabled(False))
                        svi.compile = compiles
                    advance(0, _status(history[-1]))
                    settled = epoch >= settles or step == length.last_step
                    if held_out is not None and settled and history[-1].monitored > best:
                        best, history.best = history[-1].monitored, epoch
                        guard.keep_best()
                    answers = [callback(State(history, svi)) for callback in callbacks]
                    if any(answers):
                        history.stopped = "callback"
                        break
                    waited = epoch - (history.best or epoch)
                    if early_stopping is not None and waited >= early_stopping:
                        history.stopped = "early stopping"
                        break
                    if step == length.last_step:
                        break
            except KeyboardInterrupt:
                svi.zero_grad()
                history.stopped = "interrupted"
    if keep_best and history.best is not None:
        guard.restore_best()
    else:
        history.best = None
    return history


@dataclass(frozen=True)
class _Length:
    """How long a run is, in epochs begun and exactly; `steps` is None, `exact` infinite, where a loader cannot tell."""

    epochs: int
    exact: float
    steps: int | None
    last_step: int | None

    @staticmethod
    def of(epochs: int | None, steps: int | None, steps_per_epoch: int | None) -> _Length:
        if epochs is not None and steps is not None:
            raise ValueError(f"give epochs or steps, not both (got epochs={epochs}, steps={steps})")
        if steps is not None:
            exact = steps / steps_per_epoch if steps_per_epoch else math.inf
            return _Length(math.ceil(exact) if steps_per_epoch else steps, exact, steps, steps)
        epochs = 50 if epochs is None else epochs
        return _Length(epochs, epochs, epochs * steps_per_epoch if steps_per_epoch else None, None)


def _check(kind: str, **values: float | None) -> None:
    number = Integral if kind == "a whole number" else Real
    for name, value in values.items():
        if value is None:
            continue
        if not isinstance(value, number) or isinstance(value, bool):
            raise TypeError(f"{name} must be {kind} above 0, got {value!r}")
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be {kind} above 0, got {value!r}")


def _lr_factor(schedule: LRSchedule) -> Callable[[float], float]:
    if callable(schedule):
        return schedule
    if schedule not in _LR_SCHEDULES:
        raise ValueError(f"lr_schedule must be one of {', '.join(_LR_SCHEDULES)} or a function, got {schedule!r}")
    return _LR_SCHEDULES[schedule]


def _set_lr(svi: SVI, factor: float) -> None:
    for group in svi.optimizer.param_groups if svi.optimizer else ():
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor


def _get_lr(svi: SVI) -> float:
    return float(svi.optimizer.param_groups[0]["lr"]) if svi.optimizer else math.nan


def _kl_schedule(weight: Any, epochs: float) -> tuple[Callable[[float], float], float]:
    """The weight as a function of the epoch, and the epoch from which it no longer changes."""
    if not callable(weight):
        return lambda epoch: float(weight), 0.0
    settles = float(getattr(weight, "settles", 0.0))
    if settles > epochs:
        raise ValueError(
            f"the KL weight settles at epoch {settles:g}, after the run's {epochs:g} epochs, at whose end it would be "
            f"{weight(epochs):.3g}: train longer or shorten {weight}"
        )
    return weight, settles


def _status(now: Epoch) -> str:
    valid = "" if now.valid_elbo is None else f" valid {now.valid_elbo:.2f}"
    return f"ELBO train {now.train_elbo:.2f}{valid}"
