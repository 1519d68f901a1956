"""The settings of a run: they are validated at its start, and must be the same when it is resumed."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pyro.optim import PyroOptim

from pyro_vae.compilation.precision import Precision, precision_dtype
from pyro_vae.elbo import PhasedELBO
from pyro_vae.support.arguments import count, flag, real, seed
from pyro_vae.support.import_paths import stable_path, stable_paths
from pyro_vae.training.schedules import LRSchedule, lr_factor

__all__ = ["Settings", "check_unchanged", "describe", "describe_change", "is_bound"]


@dataclass(frozen=True)
class Settings:
    """The arguments of `fit` that say how to train; see there for their meaning.

    Raises:
        TypeError, ValueError: For an argument that is not a number, or is out of its range.
    """

    epochs: int | None
    steps: int | None
    batch_size: int | None
    accumulate: int
    lr: float
    lr_schedule: LRSchedule
    optim: Any
    clip_norm: float | None
    skip_norm: float | None
    ema: float | None
    num_particles: int
    kl_weight: Any
    early_stopping: int | None
    keep_best: bool
    seed: int | None
    compile: bool | Literal["auto"]
    precision: Precision
    rollbacks: int

    def __post_init__(self) -> None:
        for name in ("num_particles", "accumulate"):
            count(name, getattr(self, name))
        for name in ("epochs", "steps", "batch_size", "early_stopping"):
            count(name, getattr(self, name), none=True)
        count("rollbacks", self.rollbacks, least=0)
        real("lr", self.lr, above=0)
        real("clip_norm", self.clip_norm, above=0, none=True)
        real("skip_norm", self.skip_norm, above=0, none=True)
        real("ema", self.ema, above=0, below=1, none=True)
        if not callable(self.kl_weight):
            real("kl_weight", self.kl_weight, least=0)
        seed("seed", self.seed)
        flag("keep_best", self.keep_best)
        flag("compile", self.compile, "auto")
        lr_factor(self.lr_schedule)
        precision_dtype(self.precision)
        self._check_pyro_optim()

    def _check_pyro_optim(self) -> None:
        if not isinstance(self.optim, PyroOptim):
            return
        if self.lr_schedule != "constant" or self.rollbacks:
            name = "rollbacks" if self.rollbacks else "lr_schedule"
            raise ValueError(
                f"{name} sets the learning rate, which an optimizer of Pyro sets itself: leave it out and use a "
                "scheduler of pyro.optim, which is stepped after each epoch, or give optim=lambda params: ..., which "
                "makes an optimizer of torch"
            )

    def checked(self, objective: Any) -> Any:
        """The objective; refuses settings that do not fit it.

        Raises:
            ValueError: For `accumulate` or `skip_norm` with an objective made of phases, and for `early_stopping` with
                one that is not a bound on log p(x).
        """
        if self.accumulate > 1 and isinstance(objective, PhasedELBO):
            raise ValueError(
                f"{type(objective).__name__} steps its phases in turn, so accumulate must be 1, got {self.accumulate}"
            )
        if self.skip_norm is not None and isinstance(objective, PhasedELBO):
            raise ValueError(
                f"{type(objective).__name__} steps its phases in turn, each with a gradient of its own, so skip_norm "
                f"must be None, got {self.skip_norm:g}: use clip_norm"
            )
        if self.early_stopping is not None and not is_bound(objective):
            raise ValueError(
                f"early_stopping compares ELBOs, which {type(objective).__name__} does not maximize: leave it out"
            )
        return objective

    def describe(self, **more: Any) -> dict[str, Any]:
        """The settings that must be the same when the run is resumed, together with `more`, ready for JSON."""
        fixed = {
            "batch_size": self.batch_size,
            "accumulate": self.accumulate,
            "lr": self.lr,
            "lr_schedule": describe(self.lr_schedule),
            "optim": describe(self.optim),
            "clip_norm": self.clip_norm,
            "skip_norm": self.skip_norm,
            "ema": self.ema,
            "num_particles": self.num_particles,
            "kl_weight": describe(self.kl_weight),
            "keep_best": self.keep_best,
            "seed": self.seed,
            "precision": self.precision,
        }
        result: dict[str, Any] = json.loads(json.dumps({**fixed, **more}, default=_number))
        return result


def is_bound(objective: Any) -> bool:
    """Whether an objective is a bound on log p(x), so that epochs can be compared by the ELBO."""
    return getattr(objective, "bound", "elbo") != "none"


def check_unchanged(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Compare the settings of a checkpoint with those of the run that resumes from it.

    Raises:
        ValueError: If they differ; the message lists the differences.
    """
    before = stable_paths(dict(before))  # an earlier version may have named a function by another path
    now = {name: _known_to(before.get(name), value) for name, value in now.items()}
    names = [*before, *(name for name in now if name not in before)]
    changed = [
        describe_change(name, before.get(name), now.get(name)) for name in names if before.get(name) != now.get(name)
    ]
    if changed:
        raise ValueError(
            f"the run cannot be resumed with other settings: {'; '.join(changed)}. Only epochs, steps, early_stopping "
            "and device may change"
        )


def describe_change(name: str, before: Any, now: Any) -> str:
    """How a setting has changed, for a message."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        return "; ".join(describe_change(f"{name}.{key}", before.get(key), now.get(key)) for key in keys)
    return f"{name} was {before!r}, is now {now!r}"


def describe(setting: Any) -> Any:
    """A setting in a form that another process can compare: a function becomes its import path."""
    if isinstance(setting, PyroOptim):
        made: Any = setting
        options = [describe(made.pt_optim_args) if callable(made.pt_optim_args) else str(made.pt_optim_args)]
        return [type(made).__name__, describe(made.pt_optim_constructor), *options, str(made.pt_clip_args)]
    if isinstance(setting, functools.partial):
        return [describe(setting.func), list(map(describe, setting.args)), str(setting.keywords)]
    if callable(setting) and hasattr(setting, "__qualname__"):
        return stable_path(f"{setting.__module__}.{setting.__qualname__}")
    return setting if setting is None or isinstance(setting, bool | int | float | str) else repr(setting)


_ADDED = ("content", "contents")  # fingerprints that descriptions of data in earlier checkpoints lack


def _known_to(before: Any, now: Any) -> Any:
    """A setting without the fingerprints that the earlier description lacks."""
    if not isinstance(before, dict) or not isinstance(now, dict):
        return now
    return {name: value for name, value in now.items() if name not in _ADDED or name in before}


def _number(value: Any) -> Any:
    """A number of NumPy for JSON."""
    return value.item() if hasattr(value, "item") else repr(value)
