"""The one training loop."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pyro

from pyro_vae.elbo import PhasedELBO
from pyro_vae.support.progress import Advance
from pyro_vae.training.batches import Batches
from pyro_vae.training.callbacks import Callback, State
from pyro_vae.training.checkpoints.checkpointer import Checkpointer
from pyro_vae.training.checkpoints.signals import StopRequest
from pyro_vae.training.compile_choice import CompileChoice
from pyro_vae.training.history import Epoch
from pyro_vae.training.monitor import Monitor
from pyro_vae.training.nonfinite import LossCheck, NonFiniteLoss
from pyro_vae.training.pyro_optimizers import step_scheduler
from pyro_vae.training.rollback import Rollbacks
from pyro_vae.training.schedules import Schedules
from pyro_vae.training.state import TrainState
from pyro_vae.training.step import TrainStep
from pyro_vae.training.stopping import BestWeights, EarlyStopping
from pyro_vae.training.threads import Threads

__all__ = ["Run", "run_to_end", "train"]


class StoppedBetweenSteps(KeyboardInterrupt):
    """Ctrl-C or SIGTERM, handled between two steps, where the state is consistent."""


@dataclass
class Run:
    """The parts of a run: `example_args` are a few data, `stack` holds the contexts that end with the run."""

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
    signals: StopRequest
    advance: Advance
    stack: ExitStack
    choice: CompileChoice
    threads: Threads
    validates: bool = True  # whether Pyro validates distributions and traces
    is_consistent: bool = True  # whether the state is that between two steps

    @property
    def sync_every(self) -> int:
        """The number of steps between two exchanges about stopping and writing a checkpoint."""
        return 1 if self.state.ranks.size == 1 else max(self.check.every, 10)

    def stop_reason(self) -> str | None:
        """Why the run is over; None if it is not."""
        if self.schedules.length.is_over(self.state.epoch, self.state.step):
            return "finished"
        return "early stopping" if self.early_stopping.is_over(self.state) else None

    def start_epoch(self) -> None:
        """Switch Pyro's validation off and compiled steps on, once every datum was validated."""
        if self.validates and self.state.epoch > 1 and self.batches.in_memory:
            self.validates = False
            self.stack.enter_context(pyro.validation_enabled(False))
        self.choose(self.state.epoch > 1 and not self.threads.measures)
        # a loader may yield new data in every epoch, so there is no point in waiting for its first
        # and compiled code has a fixed number of threads
        waits = (self.validates and self.batches.in_memory) or self.threads.measures
        if waits or self.state.compiles is not True:
            self.state.svi.compile = False
        elif self.state.svi.compile is False:
            self.state.svi.compile = True
        self.choice.start()

    def choose(self, is_time: bool) -> None:
        """Choose whether to compile the steps that are left, if that was left open and it is time."""
        if self.state.compiles == "auto" and is_time:
            self.state.compiles = self.choice.compiles(self.state.step, self.state.ranks)
            self.state.svi.compile = "chosen" if self.state.compiles else False

    def after_step(self) -> None:
        """Stop after a signal, and write a checkpoint if one is due; all processes do so together."""
        step = self.state.step
        if step % self.sync_every:
            return
        stops, due = self.state.ranks.any(self.signals.requested, self.checkpointer.is_due(step))
        if stops:
            self.signals.acknowledge()
            raise StoppedBetweenSteps
        if due and step != self.schedules.length.last_step:
            self.checkpointer.save(self.state, self.check)

    def end_epoch(self) -> str | None:
        """Measure, record, store the best weights, run the callbacks; returns "callback" if one ends the run."""
        state = self.state
        state.steps_per_epoch = state.steps_per_epoch or len(state.losses)
        state.skips.end_epoch(len(state.losses))
        with state.average.in_use():
            measured = self.monitor.measure()
        epoch = Epoch(
            epoch=state.epoch,
            step=state.step,
            loss=state.losses.mean(),
            kl_weight=self.schedules.kl_weight,
            lr=state.svi.lr,
            seconds=self.checkpointer.seconds,
            **measured,
        )
        step_scheduler(state.svi.pyro_optim, epoch.loss)
        state.history.epochs.append(epoch)
        state.history.threads, state.history.skipped = self.threads.chosen, state.skips.skipped
        self.advance(0, _status(epoch))
        if self.schedules.is_settled(state.epoch, state.step):
            self.best.compare()
        state.next_epoch()
        self.rollbacks.store()
        # the epoch is over before they are called, so that an error in one of them loses nothing
        current = State(state.history, state.svi)
        with state.average.in_use():
            results = [callback(current) for callback in self.callbacks if state.ranks.is_main]  # all are called
        stops = state.ranks.broadcast(any(results))
        return "callback" if stops else None

    def save_after(self, error: Exception) -> None:
        """Write a checkpoint of the last good state before an error ends the run.

        Other processes do not know of an error in this one, unless it is a loss that is not finite.
        """
        state = self.state
        if isinstance(error, NonFiniteLoss):
            is_exact = error.weights_before and not isinstance(state.svi.objective, PhasedELBO)
            earlier = self.rollbacks.latest
        else:
            is_exact, earlier = self.is_consistent and state.ranks.size == 1, None
        try:
            if is_exact:
                self.checkpointer.save(state, self.check)
            elif earlier is not None:
                self.checkpointer.save_earlier(earlier)
        except (OSError, NonFiniteLoss) as problem:
            error.add_note(f"and no checkpoint was written: {problem}")


def run_to_end(run: Run) -> None:
    """Train, write the last checkpoint and restore the best weights, also after Ctrl-C."""
    state, is_consistent = run.state, True
    try:
        state.history.stopped = train(run)
    except Exception as error:
        run.save_after(error)
        raise
    except KeyboardInterrupt as stop:
        state.svi.zero_grad()
        state.history.stopped = "interrupted"
        is_consistent = isinstance(stop, StoppedBetweenSteps) and not run.signals.interrupts_step
    try:
        if is_consistent:  # otherwise a step may be half done, and the checkpoint on the disk is better
            run.checkpointer.save(state, run.check)
    finally:
        state.history.skipped = state.skips.skipped
        run.best.restore()


def train(run: Run) -> str:
    """Train until there is a reason to stop; returns the reason. The pair has its last weights then."""
    while (reason := run.stop_reason()) is None:
        run.start_epoch()
        try:
            train_epoch(run)
        except NonFiniteLoss as error:
            run.rollbacks.go_back(error)  # raises the error again if no rollback is left
            run.checkpointer.went_back(run.state)
            continue
        if (reason := run.end_epoch()) is not None:
            break
    return reason


def train_epoch(run: Run) -> None:
    """Take the remaining steps of the current epoch."""
    state = run.state
    for batch in state.remaining_batches(run.batches):
        run.is_consistent = False
        state.add(run.step(batch))
        run.is_consistent = True
        run.advance(1)
        run.choice.step()
        run.threads.step()
        run.choose(run.choice.is_known and not run.batches.in_memory)
        run.after_step()
        if state.step == run.schedules.length.last_step:
            break
    if not state.losses:
        raise ValueError(f"the loader yielded no batch in epoch {state.epoch}: it must start again in each epoch")
    run.check.end_epoch(state.step)


def _status(epoch: Epoch) -> str:
    valid = "" if epoch.valid_elbo is None else f" valid {epoch.valid_elbo:.2f}"
    return f"ELBO train {epoch.train_elbo:.2f}{valid}"
