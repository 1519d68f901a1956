"""What must be known of a run to go on with it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from pyro_vae.distributed.ranks import Ranks
from pyro_vae.support.random import rng_state, set_rng_state
from pyro_vae.support.snapshots import Snapshot
from pyro_vae.training.batches import Batches
from pyro_vae.training.checkpoints.svi import load_svi_state, svi_state
from pyro_vae.training.history import Epoch, History
from pyro_vae.training.svi import SVI
from pyro_vae.training.weights import WeightCopies

__all__ = ["TrainState"]

_COUNTERS = ("epoch", "step", "steps_per_epoch", "best", "seconds", "lr_factor", "rollbacks")
_STORED = {"steps_per_epoch": "per_epoch"}  # under the names of the first checkpoints


class TrainState:
    """All that changes while a run goes on; `state_dict` is what a checkpoint holds.

    Args:
        svi: What takes the steps.
        weights: The best weights so far, and the last good ones.
        history: The epochs so far.
        generator: What shuffles the data.
        settings: What must not change between a run and its resumption, ready for JSON.
        compiles: Whether steps are compiled.
        ranks: The processes that train together.

    Attributes:
        epoch, step: The present epoch, from 1; the steps made.
        losses: Of the steps of this epoch, in nats per datum.
        steps_per_epoch: None until that is known.
        best: The best ELBO so far.
        seconds: Time used before this process.
        lr_factor, rollbacks: What NaNs have made of the learning rate, and how many there were.
    """

    def __init__(
        self,
        svi: SVI,
        weights: WeightCopies,
        history: History,
        generator: torch.Generator,
        settings: dict[str, Any] | None = None,
        compiles: bool = False,
        ranks: Ranks | None = None,
    ) -> None:
        self.svi, self.weights, self.history, self.generator = svi, weights, history, generator
        self.settings, self.compiles, self.ranks = settings or {}, compiles, ranks or Ranks()
        self.epoch, self.step, self.rollbacks = 1, 0, 0
        self.losses: list[Tensor] = []
        self.steps_per_epoch: int | None = None
        self.best, self.seconds, self.lr_factor = -math.inf, 0.0, 1.0
        self._rng_at_start: Snapshot | None = None  # of the present epoch

    @property
    def epochs(self) -> float:
        """How many epochs are done, with the fraction of the present one if that can be known."""
        per_epoch = self.steps_per_epoch
        return self.epoch - 1 + (min(1.0, len(self.losses) / per_epoch) if per_epoch else 0.0)

    def add(self, loss: Tensor) -> None:
        """Count a step."""
        self.losses.append(loss)
        self.step += 1

    def next_epoch(self) -> None:
        """Go to the start of the next epoch."""
        self.epoch += 1
        self.losses = []

    def remaining_batches(self, batches: Batches) -> Iterator[tuple[Any, ...]]:
        """What is left of the present epoch's batches."""
        if not self.losses:
            self._rng_at_start = self._rng()
            return batches.batches(self.generator)
        # the same batches in the same order pass by once more, then noise goes on where it was
        now = self._rng()
        if self._rng_at_start is not None:
            self._set_rng(self._rng_at_start)
        stream = batches.batches(self.generator)
        for _ in self.losses:
            next(stream, None)
        set_rng_state(now)
        return stream

    def state_dict(self) -> Snapshot:
        """All of it, between two steps; the tensors are those of the run, not copies. All ranks come here together."""
        result = Snapshot()
        result.add("svi", svi_state(self.svi))
        self._add_rng(result, "noise", self._rng())
        if self.losses and self._rng_at_start is not None:
            self._add_rng(result, "epoch_noise", self._rng_at_start)
            result.tensors["losses"] = torch.stack(self.losses)
        result.tensors |= {f"best/{i:04d}": weight for i, weight in enumerate(self.weights.best)}
        counters = {_STORED.get(name, name): getattr(self, name) for name in _COUNTERS}
        result.values |= {
            "at": {**counters, "best": None if self.best == -math.inf else self.best},
            "history": [asdict(epoch) for epoch in self.history],
            "best_epoch": self.history.best,
            "settings": self.settings,
            "compiles": self.compiles,
        }
        return result

    def load_state_dict(self, saved: Snapshot, example_args: tuple[Any, ...]) -> None:
        """Go on with the run that `saved` is of; the pair is run on `example_args` to find its parameters.

        Raises:
            ValueError: If the pair is not that of the run.
        """
        self.compiles = saved.values["compiles"]
        load_svi_state(self.svi, saved.part("svi"), example_args)
        self.load_place(saved)
        set_rng_state(saved.part(self._of_rank("noise")))
        best = sorted(name for name in saved.tensors if name.startswith("best/"))
        self.weights.load_best([saved.tensors[name] for name in best])

    def load_place(self, saved: Snapshot) -> None:
        """Go to the place of `saved` in the run, with its history and data order, but not to its weights and noise."""
        counters = saved.values["at"]
        for name in _COUNTERS:
            setattr(self, name, counters[_STORED.get(name, name)])
        if self.best is None:
            self.best = -math.inf
        self.losses = []
        if "losses" in saved.tensors:
            device = next((p.device for p in self.svi.params.values()), None)
            self.losses = list(saved.tensors["losses"].to(device).unbind())
            self._rng_at_start = saved.part(self._of_rank("epoch_noise"))
        self.history.epochs[:] = [Epoch(**values) for values in saved.values["history"]]
        self.history.best = saved.values["best_epoch"]
        self.generator.set_state(saved.part(self._of_rank("noise")).tensors["data"])

    def _of_rank(self, name: str, rank: int | None = None) -> str:
        rank = self.ranks.rank if rank is None else rank
        return f"{name}{rank}" if rank else name

    def _add_rng(self, result: Snapshot, name: str, state: Snapshot) -> None:
        for rank, of_rank in enumerate(self.ranks.gather(state)):
            result.add(self._of_rank(name, rank), of_rank)

    def _rng(self) -> Snapshot:
        state = rng_state()
        state.tensors["data"] = self.generator.get_state()
        return state

    def _set_rng(self, state: Snapshot) -> None:
        set_rng_state(state)
        self.generator.set_state(state.tensors["data"])
