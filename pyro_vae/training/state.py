"""Where a training run is, written down and taken up again."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyro_vae.distributed.ranks import Ranks
from pyro_vae.support.import_paths import stable_paths
from pyro_vae.support.random import noise_state, restore_noise
from pyro_vae.support.snapshots import Snapshot
from pyro_vae.training.batches import Feed
from pyro_vae.training.checkpoints import load_svi_state, svi_state
from pyro_vae.training.history import Epoch, History
from pyro_vae.training.nonfinite import NonFiniteLoss, WeightGuard
from pyro_vae.training.svi import SVI

__all__ = ["Position", "Training"]


@dataclass
class Position:
    """How far a run is.

    Attributes:
        generator: What shuffles the data.
        epoch, step: The present epoch, from 1; the steps made.
        losses: Of the steps of this epoch, in nats per datum.
        per_epoch: Steps in an epoch, None until that is known.
        best: The best ELBO so far.
        seconds: Time used before this process.
        lr_factor, rollbacks: What NaNs have made of the learning rate, and how many there were.
    """

    generator: torch.Generator
    epoch: int = 1
    step: int = 0
    losses: list[Tensor] = field(default_factory=list)
    per_epoch: int | None = None
    best: float = -math.inf
    seconds: float = 0.0
    lr_factor: float = 1.0
    rollbacks: int = 0

    @property
    def share(self) -> float:
        """How much of the data the present epoch has gone through, if that can be known."""
        return min(1.0, len(self.losses) / self.per_epoch) if self.per_epoch else 0.0

    def next_epoch(self) -> None:
        """Go to the start of the next epoch."""
        self.epoch += 1
        self.losses = []


_KEPT = ("epoch", "step", "per_epoch", "best", "seconds", "lr_factor", "rollbacks")


class Training:
    """All that changes while a run goes on.

    Args:
        svi, guard, history, at: Its parts.
        settings: What must not change between a run and its resumption, ready for JSON.
        compiles: Whether steps are compiled; `resume` may change it.
        ranks: The processes that train together.
    """

    def __init__(
        self,
        svi: SVI,
        guard: WeightGuard,
        history: History,
        at: Position,
        settings: dict[str, Any],
        compiles: bool,
        ranks: Ranks | None = None,
    ) -> None:
        self.svi, self.guard, self.history, self.at = svi, guard, history, at
        self.ranks = ranks or Ranks()
        self.settings, self.compiles = json.loads(json.dumps(settings)), compiles
        self._noise_at_start: Snapshot | None = None  # of the present epoch

    def batches(self, feed: Feed, *, remember: bool) -> Iterator[tuple[Any, ...]]:
        """What is left of the present epoch's batches; `remember` how it began, for a snapshot within it."""
        done = len(self.at.losses)
        if not done:
            if remember:
                self._noise_at_start = self._noise()
            return feed.batches(self.at.generator)
        # the same batches in the same order pass by once more, then noise goes on where it was
        now = self._noise()
        if self._noise_at_start is not None:
            self._restore(self._noise_at_start)
        stream = feed.batches(self.at.generator)
        for _ in range(done):
            next(stream, None)
        restore_noise(now)
        return stream

    def snapshot(self) -> Snapshot:
        """All of it, between two steps; the tensors are those of the run, not copies. All ranks come here together."""
        result = Snapshot()
        result.add("svi", svi_state(self.svi))
        self._add_noise(result, "noise", self._noise())
        if self.at.losses and self._noise_at_start is not None:
            self._add_noise(result, "epoch_noise", self._noise_at_start)
            result.tensors["losses"] = torch.stack(self.at.losses)
        result.tensors |= {f"best/{i:04d}": weight for i, weight in enumerate(self.guard.best)}
        at = {name: getattr(self.at, name) for name in _KEPT}
        result.values |= {
            "at": {**at, "best": None if self.at.best == -math.inf else self.at.best},
            "history": [asdict(epoch) for epoch in self.history],
            "best_epoch": self.history.best,
            "settings": self.settings,
            "compiles": self.compiles,
        }
        return result

    def resume(self, saved: Snapshot, args: tuple[Any, ...], compile: bool | str) -> None:
        """Take up the run that a snapshot is of; `args` are some data, on which the pair is run.

        Raises:
            ValueError: If the settings or the pair are not those of the snapshot.
        """
        self._check_settings(saved.values["settings"])
        if compile != "auto" and compile != saved.values["compiles"]:
            raise ValueError(_changed("compile", saved.values["compiles"], compile))
        self.compiles = saved.values["compiles"]
        load_svi_state(self.svi, saved.part("svi"), args)
        self.take_up(saved)
        best = sorted(name for name in saved.tensors if name.startswith("best/"))
        self.guard.resume([saved.tensors[name] for name in best])

    def take_up(self, saved: Snapshot) -> None:
        """Set position, figures and noise, but not the weights, to those of a snapshot."""
        at = saved.values["at"]
        for name in _KEPT:
            setattr(self.at, name, at[name])
        if at["best"] is None:
            self.at.best = -math.inf
        self.at.losses = []
        if "losses" in saved.tensors:
            device = next((p.device for p in self.svi.params.values()), None)
            self.at.losses = list(saved.tensors["losses"].to(device).unbind())
            self._noise_at_start = saved.part(self._name("epoch_noise"))
        self.history.epochs[:] = [Epoch(**figures) for figures in saved.values["history"]]
        self.history.best = saved.values["best_epoch"]
        self._restore(saved.part(self._name("noise")))

    def roll_back(self, good: Snapshot | None, error: NonFiniteLoss) -> None:
        """Return to a snapshot of the end of an epoch, to the start if there is none, with half the learning rate.

        The noise is other noise than the first time.
        """
        at, svi = self.at, self.svi
        lr_factor, rollbacks, failed = at.lr_factor / 2, at.rollbacks + 1, at.step
        if good is None:
            self.guard.restore_good()
            for optimizer in svi.optimizers:
                optimizer.state.clear()
            at.epoch, at.step, at.losses = 1, 0, []
        else:
            good = good.copy()  # the optimizer works on what it is given, and there may be a second time
            noise = noise_state()
            load_svi_state(svi, good.part("svi"), error.batch, compiled=False)
            self.take_up(good)
            restore_noise(noise)
        at.lr_factor, at.rollbacks = lr_factor, rollbacks
        self.guard.keep()
        warnings.warn(
            f"{error}. Going back from step {failed + 1} to step {at.step}, with {lr_factor:g} times the learning rate",
            stacklevel=3,
        )

    def _name(self, name: str, rank: int | None = None) -> str:
        rank = self.ranks.rank if rank is None else rank
        return f"{name}{rank}" if rank else name

    def _add_noise(self, result: Snapshot, name: str, noise: Snapshot) -> None:
        for rank, of_rank in enumerate(self.ranks.gather(noise)):
            result.add(self._name(name, rank), of_rank)

    def _noise(self) -> Snapshot:
        noise = noise_state()
        noise.tensors["data"] = self.at.generator.get_state()
        return noise

    def _restore(self, noise: Snapshot) -> None:
        restore_noise(noise)
        self.at.generator.set_state(noise.tensors["data"])

    def _check_settings(self, before: dict[str, Any]) -> None:
        before = stable_paths(before)  # an earlier version may have named a function by another path
        names = [*before, *(name for name in self.settings if name not in before)]
        changed = [
            _changed(name, before.get(name), self.settings.get(name))
            for name in names
            if before.get(name) != self.settings.get(name)
        ]
        if changed:
            raise ValueError(
                f"the run cannot be resumed with other settings: {'; '.join(changed)}. Only epochs, steps, "
                "early_stopping and device may change"
            )


def _changed(name: str, before: Any, now: Any) -> str:
    if isinstance(before, dict) and isinstance(now, dict):
        keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        return "; ".join(_changed(f"{name}.{key}", before.get(key), now.get(key)) for key in keys)
    return f"{name} was {before!r}, is now {now!r}"
