"""What changes over a run by plan: its length, the learning rate, the weight of the KL."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import pyro.infer

from pyro_vae.elbo import WeightedKL
from pyro_vae.training.svi import SVI

__all__ = ["LRSchedule", "RunLength", "Schedules", "kl_schedule", "lr_factor"]

LRSchedule = Literal["constant", "linear", "cosine"] | Callable[[float], float]

_LR_SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda t: 1.0,
    "linear": lambda t: 1.0 - t,
    "cosine": lambda t: 0.5 * (1.0 + math.cos(math.pi * t)),
}


@dataclass(frozen=True)
class RunLength:
    """How long a run is.

    Attributes:
        epochs: The number of epochs begun.
        exact: The number of epochs, perhaps a fraction; infinite where a loader cannot tell.
        steps: The number of steps, None where a loader cannot tell.
        last_step: The step after which the run ends, None if it is given in epochs.
    """

    epochs: int
    exact: float
    steps: int | None
    last_step: int | None

    @staticmethod
    def of(epochs: int | None, steps: int | None, steps_per_epoch: int | None) -> RunLength:
        """A length given in epochs or in steps; 50 epochs if in neither."""
        if epochs is not None and steps is not None:
            raise ValueError(f"give epochs or steps, not both (got epochs={epochs}, steps={steps})")
        if steps is not None:
            exact = steps / steps_per_epoch if steps_per_epoch else math.inf
            return RunLength(math.ceil(exact) if steps_per_epoch else steps, exact, steps, steps)
        epochs = 50 if epochs is None else epochs
        return RunLength(epochs, epochs, epochs * steps_per_epoch if steps_per_epoch else None, None)

    def is_over(self, epoch: int, step: int) -> bool:
        """Whether a run that has made `step` steps, and goes on with `epoch`, has ended."""
        return step == self.last_step or epoch > self.epochs

    def fraction(self, epochs: float, step: int) -> float:
        """The fraction of the run that is done after so many epochs or steps."""
        return step / self.steps if self.steps else epochs / self.epochs


def lr_factor(schedule: LRSchedule) -> Callable[[float], float]:
    """The factor on the learning rate as a function of the fraction of the run that is done."""
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


class Schedules:
    """Sets the weight of the KL and the learning rate before each step.

    Args:
        length: Of the run.
        lr_schedule, kl_weight: As given to `fit`.
    """

    def __init__(self, length: RunLength, lr_schedule: LRSchedule, kl_weight: Any) -> None:
        self.length = length
        self._lr_factor = lr_factor(lr_schedule)
        self._kl_weight, self._settles = kl_schedule(kl_weight, length.exact)
        self._weighted: WeightedKL | None = None
        self._is_weighted = kl_weight != 1.0

    def weigh(self, objective: pyro.infer.ELBO) -> pyro.infer.ELBO:
        """The objective with the weight of the KL, which is set from here on; itself if the weight is always 1."""
        if not self._is_weighted:
            return objective
        self._weighted = WeightedKL(objective)
        return self._weighted

    @property
    def kl_weight(self) -> float:
        """The present weight of the KL."""
        return self._weighted.weight if self._weighted is not None else 1.0

    def set_kl_weight(self, epochs: float) -> None:
        """Set the weight of the KL to that after so many epochs."""
        if self._weighted is not None:
            self._weighted.weight = self._kl_weight(epochs)

    def set_lr(self, svi: SVI, epochs: float, step: int, factor: float) -> None:
        """Set the learning rates to those after so many epochs or steps, times a factor."""
        factor = self._lr_factor(self.length.fraction(epochs, step)) * factor
        for group in (group for optimizer in svi.optimizers for group in optimizer.param_groups):
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor

    def is_settled(self, epoch: int, step: int) -> bool:
        """Whether the weight of the KL no longer changes after an epoch, or the run ends with it."""
        return epoch >= self._settles or step == self.length.last_step
