"""The state of a training run: all that is needed to resume it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from pyro_vae.compilation.mode import Compile
from pyro_vae.distributed.ranks import Ranks
from pyro_vae.support import arguments
from pyro_vae.support.random import rng_state, set_rng_state
from pyro_vae.support.snapshots import Snapshot
from pyro_vae.training.batches import Batches
from pyro_vae.training.checkpoints.svi import load_svi_state, svi_state
from pyro_vae.training.history import Epoch, History
from pyro_vae.training.losses import EpochLosses
from pyro_vae.training.moving_average import MovingAverage
from pyro_vae.training.skipping import GradientSkips
from pyro_vae.training.svi import SVI
from pyro_vae.training.weights import WeightCopies

__all__ = ["TrainState"]

_COUNTERS = ("epoch", "step", "steps_per_epoch", "best", "seconds", "lr_factor", "rollbacks")
_STORED_NAMES = {"steps_per_epoch": "per_epoch"}  # names in checkpoints that differ from those of the attributes


class TrainState:
    """All that changes during a run; a checkpoint holds its `state_dict`.

    Args:
        svi: The `SVI` that takes the steps.
        weights: The best weights so far, and the last good ones.
        history: The epochs so far.
        generator: The generator that shuffles the data.
        settings: The settings that must be the same when the run is resumed, ready for JSON.
        compiles: Whether steps are compiled; "auto" until it is chosen.
        ranks: The processes that train together.
        ema: Decay of the moving average of the weights, if there is to be one.
        skip_norm: Norm of a gradient above which a step is left out, if any is.

    Attributes:
        epoch: The current epoch, from 1.
        step: The number of steps so far.
        average: The moving average of the weights.
        skips: Says which steps are left out, and counts them.
        losses: The losses of this epoch's steps, in nats per datum.
        good: The states that a rollback can return to, the latest one last; empty without rollbacks.
        steps_per_epoch: None until it is known.
        best: The best ELBO so far, in nats per datum.
        seconds: The duration of the run before this process.
        lr_factor: The factor on the learning rate after the rollbacks.
        rollbacks: The number of rollbacks so far.
    """

    def __init__(
        self,
        svi: SVI,
        weights: WeightCopies,
        history: History,
        generator: torch.Generator,
        settings: dict[str, Any] | None = None,
        compiles: Compile = False,
        ranks: Ranks | None = None,
        ema: float | None = None,
        skip_norm: float | None = None,
    ) -> None:
        self.svi, self.weights, self.history, self.generator = svi, weights, history, generator
        self.settings, self.compiles, self.ranks = settings or {}, compiles, ranks or Ranks()
        self.average, self.skips = MovingAverage(svi, ema), GradientSkips(svi, skip_norm)
        self.epoch, self.step, self.rollbacks = 1, 0, 0
        self.losses = EpochLosses()
        self.good: list[Snapshot] = []
        self.steps_per_epoch: int | None = None
        self.best, self.seconds, self.lr_factor = -math.inf, 0.0, 1.0
        self._rng_at_start: Snapshot | None = None  # of the current epoch

    @property
    def epochs(self) -> float:
        """The number of completed epochs, with the fraction of the current one if its length is known."""
        per_epoch = self.steps_per_epoch
        return self.epoch - 1 + (min(1.0, len(self.losses) / per_epoch) if per_epoch else 0.0)

    def add(self, loss: Tensor) -> None:
        """Count a step."""
        self.losses.add(loss)
        self.step += 1

    def next_epoch(self) -> None:
        """Go to the start of the next epoch."""
        self.epoch += 1
        self.losses = EpochLosses()

    def remaining_batches(self, batches: Batches) -> Iterator[tuple[Any, ...]]:
        """The batches of the current epoch that are left."""
        if not self.losses:
            self._rng_at_start = self._rng()
            return batches.batches(self.generator)
        # the epoch's batches are drawn again from its start, then the generators continue where they were
        now = self._rng()
        if self._rng_at_start is not None:
            self._set_rng(self._rng_at_start)
        stream = batches.batches(self.generator)
        for _ in range(len(self.losses)):
            next(stream, None)
        set_rng_state(now)
        return stream

    def state_dict(self) -> Snapshot:
        """The state between two steps. The tensors are those of the run, not copies. All ranks must call this."""
        result = self.current()
        for i, good in enumerate(self.good):
            result.add(f"good{i}", good)
        return result

    def current(self) -> Snapshot:
        """The `state_dict` without the states that a rollback can return to."""
        result = Snapshot()
        result.add("svi", svi_state(self.svi))
        self._add_rng(result, "noise", self._rng())
        if self.losses and self._rng_at_start is not None:
            self._add_rng(result, "epoch_noise", self._rng_at_start)
            self.losses.add_to(result)
        result.tensors |= {f"best/{i:04d}": weight for i, weight in enumerate(self.weights.best)}
        if self.average.is_kept:
            result.add("average", self.average.state())
        counters = {_STORED_NAMES.get(name, name): getattr(self, name) for name in _COUNTERS}
        result.values |= {
            "at": {**counters, "best": None if self.best == -math.inf else self.best},
            "skipped": self.skips.skipped,
            "history": [asdict(epoch) for epoch in self.history],
            "best_epoch": self.history.best,
            "settings": self.settings,
            "compiles": self.compiles,
        }
        return result

    def load_state_dict(self, saved: Snapshot, example_args: tuple[Any, ...]) -> None:
        """Restore a `state_dict`; the pair is run on `example_args` to find its parameters.

        Raises:
            ValueError: If the state is that of another pair.
        """
        self.compiles = saved.values["compiles"]
        self._load(saved, example_args, another_process=True)
        set_rng_state(saved.part(self._rank_name("noise")))
        self.good = []
        while (name := f"good{len(self.good)}") in saved.values:
            self.good.append(saved.part(name))

    def go_back_to(self, good: Snapshot, example_args: tuple[Any, ...]) -> None:
        """Restore a state of the same run, with other noise and with the steps that are compiled now."""
        self._load(good, example_args, another_process=False)

    def _load(self, saved: Snapshot, example_args: tuple[Any, ...], *, another_process: bool) -> None:
        load_svi_state(self.svi, saved.part("svi"), example_args, another_process=another_process)
        counters = saved.values["at"]
        for name in _COUNTERS:
            stored = _STORED_NAMES.get(name, name)
            setattr(self, name, arguments.real(f"its {stored}", counters[stored], none=stored in ("best", "per_epoch")))
        if self.best is None:
            self.best = -math.inf
        self.losses = EpochLosses.of(saved, next((p.device for p in self.svi.params.values()), None))
        if self.losses:
            self._rng_at_start = saved.part(self._rank_name("epoch_noise"))
        self.history.epochs[:] = [Epoch(**values) for values in saved.values["history"]]
        self.history.best = saved.values["best_epoch"]
        self.generator.set_state(saved.part(self._rank_name("noise")).tensors["data"])
        self.skips.skipped = saved.values.get("skipped", 0)  # which earlier checkpoints lack
        self.average.load(saved.part("average") if "average" in saved.values else None)
        best = sorted(name for name in saved.tensors if name.startswith("best/"))
        self.weights.load_best([saved.tensors[name] for name in best])

    def _rank_name(self, name: str, rank: int | None = None) -> str:
        rank = self.ranks.rank if rank is None else rank
        return f"{name}{rank}" if rank else name

    def _add_rng(self, result: Snapshot, name: str, state: Snapshot) -> None:
        for rank, rank_state in enumerate(self.ranks.gather(state)):
            result.add(self._rank_name(name, rank), rank_state)

    def _rng(self) -> Snapshot:
        state = rng_state()
        state.tensors["data"] = self.generator.get_state()
        return state

    def _set_rng(self, state: Snapshot) -> None:
        set_rng_state(state)
        self.generator.set_state(state.tensors["data"])
