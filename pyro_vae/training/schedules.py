"""The length of a run and the schedules of its learning rate and KL weight."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import pyro.infer

from pyro_vae.elbo import WeightedKL
from pyro_vae.support.arguments import wrong
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
    """The length of a run.

    Attributes:
        epochs: The number of epochs, the last of which may be incomplete.
        exact_epochs: The number of epochs, with a fraction; infinite if it is unknown, for a loader without a length.
        steps: The number of steps; None if it is unknown.
        last_step: The step after which the run ends; None if the length was given in epochs.
    """

    epochs: int
    exact_epochs: float
    steps: int | None
    last_step: int | None

    @staticmethod
    def from_arguments(epochs: int | None, steps: int | None, steps_per_epoch: int | None) -> RunLength:
        """A length given in epochs or in steps; 50 epochs if neither is given."""
        if epochs is not None and steps is not None:
            raise ValueError(f"give epochs or steps, not both (got epochs={epochs}, steps={steps})")
        if steps is not None:
            exact_epochs = steps / steps_per_epoch if steps_per_epoch else math.inf
            return RunLength(math.ceil(exact_epochs) if steps_per_epoch else steps, exact_epochs, steps, steps)
        epochs = 50 if epochs is None else epochs
        return RunLength(epochs, epochs, epochs * steps_per_epoch if steps_per_epoch else None, None)

    def is_over(self, epoch: int, step: int) -> bool:
        """Whether a run has ended that has made `step` steps and would continue with `epoch`."""
        return step == self.last_step or epoch > self.epochs

    def fraction(self, epochs: float, step: int) -> float:
        """The completed fraction of the run after this number of epochs and steps."""
        return step / self.steps if self.steps else epochs / self.epochs


def lr_factor(schedule: LRSchedule) -> Callable[[float], float]:
    """The factor on the learning rate as a function of the completed fraction of the run."""
    if callable(schedule):
        return schedule
    if not isinstance(schedule, str) or schedule not in _LR_SCHEDULES:
        kind = ValueError if isinstance(schedule, str) else TypeError
        raise wrong(kind, "lr_schedule", f"one of {', '.join(_LR_SCHEDULES)} or a function", schedule)
    return _LR_SCHEDULES[schedule]


def kl_schedule(weight: Any, epochs: float) -> tuple[Callable[[float], float], float]:
    """The weight as a function of the epoch, and the epoch from which it no longer changes."""
    if not callable(weight):
        return lambda epoch: float(weight), 0.0
    settles = float(getattr(weight, "settles", 0.0))
    if settles > epochs:
        raise ValueError(
            f"the KL weight settles at epoch {settles:g}, but the run ends after {epochs:g} epochs with a weight of "
            f"{weight(epochs):.3g}: train longer or shorten {weight}"
        )
    return weight, settles


class Schedules:
    """Sets the weight of the KL and the learning rate before each step.

    Args:
        length: The length of the run.
        lr_schedule, kl_weight: The arguments of `fit`.
    """

    def __init__(self, length: RunLength, lr_schedule: LRSchedule, kl_weight: Any) -> None:
        self.length = length
        self._lr_factor = lr_factor(lr_schedule)
        self._kl_weight, self._settles = kl_schedule(kl_weight, length.exact_epochs)
        self._weighted: WeightedKL | None = None
        self._is_weighted = kl_weight != 1.0

    def with_weight(self, objective: pyro.infer.ELBO) -> pyro.infer.ELBO:
        """The objective with a KL weight that this object sets; the objective itself if the weight is always 1."""
        if not self._is_weighted:
            return objective
        self._weighted = WeightedKL(objective)
        return self._weighted

    @property
    def kl_weight(self) -> float:
        """The current KL weight."""
        return self._weighted.weight if self._weighted is not None else 1.0

    def set_kl_weight(self, epochs: float) -> None:
        """Set the KL weight to its value after `epochs` epochs."""
        if self._weighted is not None:
            self._weighted.weight = self._kl_weight(epochs)

    def set_lr(self, svi: SVI, epochs: float, step: int, factor: float) -> None:
        """Set the learning rates to their values after this number of epochs and steps, times `factor`."""
        if svi.pyro_optim is not None:  # its rates change by its own decay and schedulers
            return
        factor = self._lr_factor(self.length.fraction(epochs, step)) * factor
        for group in (group for optimizer in svi.optimizers for group in optimizer.param_groups):
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor

    def is_settled(self, epoch: int, step: int) -> bool:
        """Whether the KL weight no longer changes after this epoch, or the run ends with this step."""
        return epoch >= self._settles or step == self.length.last_step
