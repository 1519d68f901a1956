"""Reads and writes the checkpoints of a run at the right time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyro_vae.distributed.ranks import Ranks
from pyro_vae.support import arguments
from pyro_vae.support.formats import one_line
from pyro_vae.support.snapshots import Snapshot
from pyro_vae.training.checkpoints.directory import Checkpoints, FollowedCheckpoints
from pyro_vae.training.nonfinite import LossCheck
from pyro_vae.training.settings import check_unchanged, describe_change
from pyro_vae.training.state import TrainState

__all__ = ["Checkpointer", "checkpoints_of"]


def checkpoints_of(checkpoints: Checkpoints | str | Path | None, resume: bool | str | Path) -> Checkpoints | None:
    """The checkpoints that the arguments of `fit` describe.

    Raises:
        TypeError: If an argument is neither a folder nor one of the other things that it may be.
        ValueError: If the arguments name two different folders, or no folder to resume from.
    """
    if not isinstance(resume, bool):
        arguments.path("resume", resume)
    if not isinstance(checkpoints, Checkpoints):
        arguments.path("checkpoints", checkpoints, none=True)
    if not isinstance(resume, bool):
        folder = checkpoints.path if isinstance(checkpoints, Checkpoints) else checkpoints
        if folder is not None and Path(folder) != Path(resume):
            raise ValueError(
                f"resume={str(resume)!r} and checkpoints={str(folder)!r} are different folders: to resume from the "
                "latter, pass resume=True with checkpoints="
            )
        checkpoints = resume if checkpoints is None else checkpoints
    if resume is True and checkpoints is None:
        raise ValueError("resume=True needs checkpoints=, the folder to resume from")
    return checkpoints if checkpoints is None or isinstance(checkpoints, Checkpoints) else Checkpoints(checkpoints)


class Checkpointer:
    """Reads and writes the checkpoints of a run, if it has any.

    Args:
        checkpoints: The checkpoints; None if the run has none.
        resume: The argument of `fit`.
        ranks: The processes that train together.
    """

    def __init__(self, checkpoints: Checkpoints | None, resume: bool | str | Path, ranks: Ranks) -> None:
        follows = checkpoints is not None and not ranks.is_main  # only rank 0 writes
        self._checkpoints = FollowedCheckpoints(checkpoints) if checkpoints is not None and follows else checkpoints
        self._resume, self._ranks = resume, ranks

    @property
    def is_active(self) -> bool:
        """Whether the run has checkpoints."""
        return self._checkpoints is not None

    @contextmanager
    def open(self) -> Iterator[Snapshot | None]:
        """A context that locks the folder; yields the checkpoint to resume from, or None.

        Raises:
            FileNotFoundError: If there is no checkpoint in the folder that `resume` names.
            RuntimeError: If another process has locked the folder.
        """
        if self._checkpoints is None:
            yield None
            return
        with self._checkpoints.locked():
            saved = self._ranks.broadcast(self._checkpoints.load()) if self._resume is not False else None
            if saved is None and not isinstance(self._resume, bool):
                raise FileNotFoundError(
                    f"there is no checkpoint in {self._checkpoints.path}: start the run without resume"
                )
            yield saved

    def load(
        self, state: TrainState, saved: Snapshot | None, compile: bool | str, example_args: tuple[object, ...]
    ) -> None:
        """Bring a run to the state of a checkpoint; None leaves it at its start.

        Raises:
            ValueError: If the checkpoint is that of another run, or of a run with other settings.
        """
        if saved is None:
            return
        folder = self._checkpoints and self._checkpoints.path
        try:
            check_unchanged(saved.values["settings"], state.settings)
            if compile not in ("auto", saved.values["compiles"]):
                raise ValueError(describe_change("compile", saved.values["compiles"], compile))
            state.load_state_dict(saved, example_args)
        except ValueError as error:
            raise ValueError(f"{one_line(error)} (the checkpoint is in {folder})") from error
        except (KeyError, TypeError, AttributeError, IndexError, RuntimeError, OverflowError) as error:
            raise ValueError(
                f"the checkpoint in {folder} is not of this run, or of another version of pyro_vae: "
                f"{type(error).__name__} {one_line(error)}"
            ) from error

    def start(self, state: TrainState, *, resumed: bool) -> None:
        """Start counting steps and minutes until the next checkpoint."""
        self._started = time.perf_counter() - state.seconds
        if self._checkpoints is not None:
            self._checkpoints.started(state.step, fresh=not resumed)

    @property
    def seconds(self) -> float:
        """The duration of the run so far, including that before it was resumed."""
        return time.perf_counter() - self._started

    def is_due(self, step: int) -> bool:
        """Whether a checkpoint is due after `step` steps."""
        return self._checkpoints is not None and self._checkpoints.due(step)

    def save(self, state: TrainState, check: LossCheck) -> None:
        """Write the current state, unless it was written already.

        Raises:
            NonFiniteLoss: If a loss or the weights are not finite; nothing is written then.
            OSError: If the state cannot be written; earlier checkpoints stay.
        """
        if self._checkpoints is not None and state.step > self._checkpoints.last_step:
            check.confirm(state.step)
            state.seconds = self.seconds
            self._checkpoints.save(state.step, state.state_dict())

    def save_earlier(self, good: Snapshot) -> None:
        """Write a state at the end of an earlier epoch, unless a later one, or itself, was written already."""
        step = good.values["at"]["step"]
        if self._checkpoints is not None and step > self._checkpoints.last_step:
            self._checkpoints.save(step, good)

    def went_back(self, state: TrainState) -> None:
        """Replace the checkpoints of steps that a rollback has undone by one of the state that it went back to."""
        if self._checkpoints is not None and state.step < self._checkpoints.last_step:
            state.seconds = self.seconds
            self._checkpoints.save(state.step, state.state_dict())
