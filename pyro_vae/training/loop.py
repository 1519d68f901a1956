"""The one training loop."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pyro
import torch

from pyro_vae.support.progress import Advance
from pyro_vae.training.batches import Batches
from pyro_vae.training.callbacks import Callback, State
from pyro_vae.training.checkpoints.checkpointer import Checkpointer
from pyro_vae.training.checkpoints.signals import Stop
from pyro_vae.training.history import Epoch
from pyro_vae.training.monitor import Monitor
from pyro_vae.training.nonfinite import LossCheck, NonFiniteLoss
from pyro_vae.training.rollback import Rollbacks
from pyro_vae.training.schedules import Schedules
from pyro_vae.training.state import TrainState
from pyro_vae.training.step import TrainStep
from pyro_vae.training.stopping import BestWeights, EarlyStopping

__all__ = ["Run", "run_to_end", "train"]


class StoppedBetweenSteps(KeyboardInterrupt):
    """Ctrl-C or SIGTERM, taken where all state is whole."""


@dataclass
class Run:
    """The parts of a run; `example_args` are a few data, `stack` what is to be undone at its end."""

    state: TrainState
    example_args: tuple[Any, ...]
    batches: Batches
    step: TrainStep
    check: LossCheck
    schedules: Schedules
    monitor: Monitor
    best: BestWeights
    early_stopping: EarlyStopping
    callbacks: Sequence[Callback]
    checkpointer: Checkpointer
    rollbacks: Rollbacks
    signals: Stop
    advance: Advance
    stack: ExitStack
    validates: bool = True  # whether Pyro checks what it sees

    @property
    def agree_every(self) -> int:
        """Steps after which processes ask each other whether to stop, or to write a checkpoint."""
        return 1 if self.state.ranks.size == 1 else max(self.check.every, 10)

    def stop_reason(self) -> str | None:
        """Why the run is over, None if it is not."""
        if self.schedules.length.is_over(self.state.epoch, self.state.step):
            return "finished"
        return "early stopping" if self.early_stopping.is_over(self.state) else None

    def start_epoch(self) -> None:
        """Switch Pyro's checks off, and compiled steps on, once the former have seen every datum."""
        if self.validates and self.state.epoch > 1 and self.batches.in_memory:
            self.validates = False
            self.stack.enter_context(pyro.validation_enabled(False))
        # a loader may always bring new data, so that its first epoch is like all others
        self.state.svi.compile = self.state.compiles and not (self.validates and self.batches.in_memory)

    def after_step(self) -> None:
        """Stop if a signal came, or write a checkpoint if it is time; processes do so together."""
        step = self.state.step
        if step % self.agree_every:
            return
        stops, due = self.state.ranks.any(self.signals.asked, self.checkpointer.is_due(step))
        if stops:
            raise StoppedBetweenSteps
        if due and step != self.schedules.length.last_step:
            self.checkpointer.save(self.state, self.check)

    def end_epoch(self) -> str | None:
        """Measure, record, keep the best weights, call back; returns "callback" if one of these ends the run."""
        state = self.state
        state.steps_per_epoch = state.steps_per_epoch or len(state.losses)
        epoch = Epoch(
            epoch=state.epoch,
            step=state.step,
            loss=float(torch.stack(state.losses).mean()),
            kl_weight=self.schedules.kl_weight,
            lr=state.svi.lr,
            seconds=self.checkpointer.seconds,
            **self.monitor.measure(),
        )
        state.history.epochs.append(epoch)
        self.advance(0, _status(epoch))
        if self.schedules.is_settled(state.epoch, state.step):
            self.best.compare()
        seen = State(state.history, state.svi)
        answers = [callback(seen) for callback in self.callbacks if state.ranks.is_main]  # all of them are called
        stops = state.ranks.broadcast(any(answers))
        state.next_epoch()
        self.rollbacks.keep()
        return "callback" if stops else None


def run_to_end(run: Run) -> None:
    """Train, write the last checkpoint, and leave the pair with its best weights; Ctrl-C ends a run, too."""
    state, whole = run.state, True
    try:
        state.history.stopped = train(run)
    except KeyboardInterrupt as stop:
        state.svi.zero_grad()
        state.history.stopped = "interrupted"
        whole = isinstance(stop, StoppedBetweenSteps) and not run.signals.at_once
    try:
        if whole:  # else the state may be that within a step, and what is on the disk is better
            run.checkpointer.save(state, run.check)
    finally:
        run.best.restore()


def train(run: Run) -> str:
    """Train until there is a reason to stop, which is returned; the weights are the last ones."""
    while (reason := run.stop_reason()) is None:
        run.start_epoch()
        try:
            train_epoch(run)
        except NonFiniteLoss as error:
            run.rollbacks.go_back(error)  # raises it again when none is left
            run.checkpointer.forget_after(run.state.step)
            continue
        if (reason := run.end_epoch()) is not None:
            break
    return reason


def train_epoch(run: Run) -> None:
    """Make the steps that are left of the present epoch."""
    state = run.state
    batch = run.example_args
    for batch in state.remaining_batches(run.batches):
        state.add(run.step(batch))
        run.advance(1)
        run.after_step()
        if state.step == run.schedules.length.last_step:
            break
    if not state.losses:
        raise ValueError(f"the data gave no batch in epoch {state.epoch}: a loader must start anew each time")
    run.check.end_epoch(state.step, batch)


def _status(now: Epoch) -> str:
    valid = "" if now.valid_elbo is None else f" valid {now.valid_elbo:.2f}"
    return f"ELBO train {now.train_elbo:.2f}{valid}"
