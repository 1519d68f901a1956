"""The course of a training run: its length, its learning rate, its KL weight."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from pyro_vae.support.import_paths import stable_path

__all__ = ["LRSchedule", "Length", "described", "kl_schedule", "lr_factor"]

LRSchedule = Literal["constant", "linear", "cosine"] | Callable[[float], float]

_LR_SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda t: 1.0,
    "linear": lambda t: 1.0 - t,
    "cosine": lambda t: 0.5 * (1.0 + math.cos(math.pi * t)),
}


@dataclass(frozen=True)
class Length:
    """How long a run is, in epochs begun and exactly; `steps` is None, `exact` infinite, where a loader cannot tell."""

    epochs: int
    exact: float
    steps: int | None
    last_step: int | None

    @staticmethod
    def of(epochs: int | None, steps: int | None, steps_per_epoch: int | None) -> Length:
        """A length given in epochs or in steps; 50 epochs if in neither."""
        if epochs is not None and steps is not None:
            raise ValueError(f"give epochs or steps, not both (got epochs={epochs}, steps={steps})")
        if steps is not None:
            exact = steps / steps_per_epoch if steps_per_epoch else math.inf
            return Length(math.ceil(exact) if steps_per_epoch else steps, exact, steps, steps)
        epochs = 50 if epochs is None else epochs
        return Length(epochs, epochs, epochs * steps_per_epoch if steps_per_epoch else None, None)


def lr_factor(schedule: LRSchedule) -> Callable[[float], float]:
    """The factor of the learning rate as a function of the share of the run done."""
    if callable(schedule):
        return schedule
    if schedule not in _LR_SCHEDULES:
        raise ValueError(f"lr_schedule must be one of {', '.join(_LR_SCHEDULES)} or a function, got {schedule!r}")
    return _LR_SCHEDULES[schedule]


def kl_schedule(weight: Any, epochs: float) -> tuple[Callable[[float], float], float]:
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


def described(setting: Any) -> Any:
    """A setting as something that can be compared in another process: a function by its name."""
    if isinstance(setting, functools.partial):
        return [described(setting.func), list(map(described, setting.args)), str(setting.keywords)]
    if callable(setting) and hasattr(setting, "__qualname__"):
        return stable_path(f"{setting.__module__}.{setting.__qualname__}")
    return setting if setting is None or isinstance(setting, bool | int | float | str) else repr(setting)
