"""When a run reads and writes its checkpoints."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyro_vae.distributed.ranks import Ranks
from pyro_vae.support.snapshots import Snapshot
from pyro_vae.training.checkpoints.directory import Checkpoints, FollowedCheckpoints
from pyro_vae.training.nonfinite import LossCheck
from pyro_vae.training.settings import check_unchanged, difference
from pyro_vae.training.state import TrainState

__all__ = ["Checkpointer", "checkpoints_of"]


def checkpoints_of(
    checkpoints: Checkpoints | str | Path | None, resume: bool | str | Path, ranks: Ranks
) -> Checkpoints | None:
    """The checkpoints that the arguments of `fit` ask for, as one of several processes sees them.

    Raises:
        ValueError: If the arguments name two folders, or none to go on from.
    """
    if not isinstance(resume, bool):
        folder = checkpoints.path if isinstance(checkpoints, Checkpoints) else checkpoints
        if folder is not None and Path(folder) != Path(resume):
            raise ValueError(f"resume={str(resume)!r} says where checkpoints are: pass resume=True with checkpoints=")
        checkpoints = resume if checkpoints is None else checkpoints
    if resume is True and checkpoints is None:
        raise ValueError("resume=True needs checkpoints=, the folder to go on from")
    found = Checkpoints(checkpoints) if isinstance(checkpoints, str | Path) else checkpoints
    return found if found is None or ranks.is_main else FollowedCheckpoints(found)


class Checkpointer:
    """Reads and writes the checkpoints of a run, if it has any.

    Args:
        checkpoints: Where and how often; None if the run has none.
        resume: As given to `fit`.
        ranks: The processes that train together.
    """

    def __init__(self, checkpoints: Checkpoints | None, resume: bool | str | Path, ranks: Ranks) -> None:
        self._checkpoints, self._resume, self._ranks = checkpoints, resume, ranks

    @property
    def is_active(self) -> bool:
        """Whether there is anything to write to."""
        return self._checkpoints is not None

    @contextmanager
    def opened(self) -> Iterator[Snapshot | None]:
        """Within it, no other process can write here; yields the checkpoint to go on from, if there is one.

        Raises:
            FileNotFoundError: If there is none in the folder that `resume` names.
            RuntimeError: If another process has the folder.
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

    def load(self, state: TrainState, saved: Snapshot, compile: bool | str, example_args: tuple[object, ...]) -> None:
        """Bring a run to a checkpoint.

        Raises:
            ValueError: If the checkpoint is not of this run, or of one with other settings.
        """
        try:
            check_unchanged(saved.values["settings"], state.settings)
            if compile not in ("auto", saved.values["compiles"]):
                raise ValueError(difference("compile", saved.values["compiles"], compile))
            state.load_state_dict(saved, example_args)
        except (KeyError, TypeError, AttributeError, IndexError) as error:  # a stranger's, or another version's
            raise ValueError(
                f"the checkpoint in {self._checkpoints and self._checkpoints.path} is not of this run, or of another "
                f"version of pyro_vae: {type(error).__name__} {error}"
            ) from error

    def start(self, state: TrainState, *, resumed: bool) -> None:
        """Count steps and minutes from here."""
        self._started = time.perf_counter() - state.seconds
        if self._checkpoints is not None:
            self._checkpoints.started(state.step, fresh=not resumed)

    @property
    def seconds(self) -> float:
        """The time since the start of the run, over all its processes."""
        return time.perf_counter() - self._started

    def is_due(self, step: int) -> bool:
        """Whether it is time for a checkpoint after `step` steps."""
        return self._checkpoints is not None and self._checkpoints.due(step)

    def save(self, state: TrainState, check: LossCheck) -> None:
        """Write the present state, unless it has been written.

        Raises:
            NonFiniteLoss: If the state is not finite: nothing is written then.
            OSError: If it cannot be written; the checkpoints before it stay.
        """
        if self._checkpoints is not None and state.step > self._checkpoints.last_step:
            check.flush()
            state.seconds = self.seconds
            self._checkpoints.save(state.step, state.state_dict())

    def forget_after(self, step: int) -> None:
        """Remove the checkpoints of steps that the run has gone back from."""
        if self._checkpoints is not None:
            self._checkpoints.clear(after=step)
