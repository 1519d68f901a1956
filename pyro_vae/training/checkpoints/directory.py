"""The folder in which a run keeps its checkpoints."""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from pyro_vae.support.snapshots import TENSORS, VALUES, Snapshot, read_snapshot, write_snapshot

__all__ = ["Checkpoints", "FollowedCheckpoints"]


class Checkpoints:
    """Where and when `pv.fit` writes checkpoints: every so many steps or minutes, and when the run ends or is stopped.

    A checkpoint holds the last and the best weights, the optimizer, the objective, the place in the data and all
    random generators. It replaces older ones only once it is whole and on the disk.

    Args:
        path: The folder; made when training begins, and removed if nothing was written there.
        steps: Steps between two checkpoints.
        minutes: Minutes between two checkpoints. With both, whichever comes first.
        keep: How many of the latest to keep.

    Raises:
        ValueError: If a number is not positive.

    Example:
        >>> Checkpoints("runs/mine/checkpoints", minutes=30).path.name
        'checkpoints'
    """

    def __init__(
        self, path: str | Path, *, steps: int | None = None, minutes: float | None = 10.0, keep: int = 2
    ) -> None:
        for name, value in (("steps", steps), ("minutes", minutes), ("keep", keep)):
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be above 0, got {value}")
        self.path, self.steps, self.minutes, self.keep = Path(path), steps, minutes, keep
        self._lock: FileLock | None = None
        self._saved_at, self._saved_step, self._fresh = time.monotonic(), 0, False

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Within it, no other process can write here; the lock of a process that dies is gone with it.

        Raises:
            RuntimeError: If another process has it.
        """
        made = not self.path.exists()
        self.path.mkdir(parents=True, exist_ok=True)
        if self._lock is None:
            self._lock = FileLock(self.path / ".lock")
        try:
            held = self._lock.acquire(timeout=0)
        except Timeout as error:
            raise RuntimeError(
                f"another process is training in {self.path}: wait until it has ended, or choose another folder"
            ) from error
        with held:
            self.clean()
            try:
                yield
            finally:
                if made and not self._found():  # a run that never began leaves nothing
                    (self.path / ".lock").unlink(missing_ok=True)
                    with suppress(OSError):
                        self.path.rmdir()

    def due(self, step: int) -> bool:
        """Whether it is time for a checkpoint after `step` steps."""
        if self.steps is not None and step - self._saved_step >= self.steps:
            return True
        return self.minutes is not None and time.monotonic() - self._saved_at >= 60 * self.minutes

    @property
    def last_step(self) -> int:
        """The step of the latest checkpoint of the present run."""
        return self._saved_step

    def started(self, step: int, *, fresh: bool = False) -> None:
        """Count from here; a fresh run will replace what is here with its first checkpoint."""
        self._saved_at, self._saved_step = time.monotonic(), step
        self._fresh = fresh

    def save(self, step: int, snapshot: Snapshot) -> None:
        """Write a checkpoint, then remove all but the latest.

        Raises:
            OSError: If it cannot be written; those before it stay.
        """
        try:
            write_snapshot(self._name(step), snapshot)
        except OSError as error:
            kept = self._found()
            there = f"the checkpoint of step {kept[-1]} there is intact" if kept else "no checkpoint is there"
            raise OSError(
                error.errno,
                f"cannot write the checkpoint of step {step} in {self.path}, {error.strerror or error}: {there}",
            ) from error
        if self._fresh:
            for other in self._found():
                if other != step:
                    self._remove(other)
        self.started(step)
        for old in self._found()[: -self.keep]:
            self._remove(old)

    def load(self) -> Snapshot | None:
        """The latest checkpoint, None if there is none; a damaged one is passed over with a warning.

        Raises:
            ValueError: If all are damaged.
        """
        problem: Exception | None = None
        for step in reversed(self._found()):
            try:
                return read_snapshot(self._name(step))
            except (ValueError, OSError) as error:
                problem = error
                warnings.warn(f"{error}; going back to the checkpoint before it", stacklevel=3)
        if problem is not None:
            raise ValueError(f"no checkpoint in {self.path} can be read: {problem}") from problem
        return None

    def clear(self, after: int = -1) -> None:
        """Remove all checkpoints, or those after a step."""
        for step in self._found():
            if step > after:
                self._remove(step)
        self._saved_step = min(self._saved_step, max(after, 0))

    def clean(self) -> None:
        """Remove what a killed process left half-written."""
        whole = set(self._found())
        for file in self.path.glob(f"*{TENSORS}"):
            if _step_of(file) not in whole:
                file.unlink(missing_ok=True)
        for file in self.path.glob(".partial-*"):
            file.unlink(missing_ok=True)

    def _name(self, step: int) -> Path:
        return self.path / f"checkpoint-{step:09d}"

    def _found(self) -> list[int]:
        """The steps of the checkpoints that are here, ascending."""
        steps = (_step_of(file) for file in self.path.glob(f"checkpoint-*{VALUES}"))
        return sorted(step for step in steps if step is not None)

    def _remove(self, step: int) -> None:
        # the figures first: without them nobody looks for the tensors
        for ending in (VALUES, TENSORS):
            with suppress(FileNotFoundError):
                name = self._name(step)
                name.with_name(name.name + ending).unlink()


class FollowedCheckpoints(Checkpoints):
    """Checkpoints that another process writes: this one only counts along with it."""

    def __init__(self, written: Checkpoints) -> None:
        super().__init__(written.path, steps=written.steps, minutes=written.minutes, keep=written.keep)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Leave the folder to the other process."""
        yield

    def due(self, step: int) -> bool:
        """Leave it to the other process."""
        return False

    def save(self, step: int, snapshot: Snapshot) -> None:
        """Count."""
        self.started(step)

    def _found(self) -> list[int]:
        return []  # none that it could read or remove


def _step_of(file: Path) -> int | None:
    match = re.fullmatch(r"checkpoint-(\d{9,})", file.stem)
    return int(match[1]) if match else None
