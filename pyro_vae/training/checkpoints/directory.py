"""The folder of a run's checkpoints."""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from pyro_vae.support import arguments
from pyro_vae.support.snapshots import TENSORS, VALUES, Snapshot, read_snapshot, write_snapshot

__all__ = ["Checkpoints", "FollowedCheckpoints", "unused"]

LOCK = ".lock"
_PARTIAL = re.compile(r"\.partial-checkpoint-\d{9,}\.(safetensors|json)")


class Checkpoints:
    """Where and when `pv.fit` writes checkpoints: every few steps or minutes, and when the run ends or is stopped.

    A checkpoint holds the last and the best weights, the state of the optimizer, the objective and all random
    generators, and the position in the data. It replaces older ones only once it is complete and on the disk.

    Args:
        path: The folder. It is made when training begins, and removed if nothing was written there.
        steps: The number of steps between two checkpoints.
        minutes: The minutes between two checkpoints. With both, whichever comes first.
        keep: The number of checkpoints to keep; older ones are removed.

    Raises:
        TypeError, ValueError: If a number is not positive, `steps` and `keep` are not whole, or there is no name.

    Example:
        >>> Checkpoints("runs/mine/checkpoints", minutes=30).path.name
        'checkpoints'
    """

    def __init__(
        self, path: str | Path, *, steps: int | None = None, minutes: float | None = 10.0, keep: int = 2
    ) -> None:
        self.path: Path = arguments.path("path", path)
        self.steps: int | None = arguments.count("steps", steps, none=True)
        self.minutes: float | None = arguments.real("minutes", minutes, above=0, none=True)
        self.keep: int = arguments.count("keep", keep)
        self._lock: FileLock | None = None
        self._saved_at, self._saved_step, self._fresh = time.monotonic(), 0, False

    @contextmanager
    def locked(self) -> Iterator[None]:
        """A context in which no other process can write here; the lock of a process that dies is released.

        Raises:
            RuntimeError: If another process has locked the folder, or a run that goes on uses this object.
            ValueError: If the folder or its lock is a link where none may be.
        """
        if self._lock is not None and self._lock.is_locked:
            raise RuntimeError(f"a run that has not ended uses these checkpoints, {self.path}: choose another folder")
        self._check_folder()
        is_new = not self.path.exists()
        self.path.mkdir(parents=True, exist_ok=True)
        if self._lock is None:
            self._lock = FileLock(self.path / LOCK)
        try:
            lock = self._lock.acquire(timeout=0)
        except Timeout as error:
            raise RuntimeError(
                f"another process is training in {self.path}, or another run of this one: wait until it has ended, or "
                "choose another folder"
            ) from error
        with lock:
            self.clean()
            try:
                yield
            finally:
                if is_new and not self._steps_found():  # the run ended before its first checkpoint
                    (self.path / LOCK).unlink(missing_ok=True)
                    with suppress(OSError):
                        self.path.rmdir()

    def due(self, step: int) -> bool:
        """Whether a checkpoint is due after `step` steps."""
        if self.steps is not None and step - self._saved_step >= self.steps:
            return True
        return self.minutes is not None and time.monotonic() - self._saved_at >= 60 * self.minutes

    @property
    def last_step(self) -> int:
        """The step of the current run's latest checkpoint."""
        return self._saved_step

    def started(self, step: int, *, fresh: bool = False) -> None:
        """Count from this step on; the first checkpoint of a fresh run replaces all that are in the folder."""
        self._saved_at, self._saved_step = time.monotonic(), step
        self._fresh = fresh

    def save(self, step: int, snapshot: Snapshot) -> None:
        """Write a checkpoint, then remove those of later steps, which a rollback has undone, and all but the latest.

        Raises:
            OSError: If it cannot be written; earlier ones stay.
        """
        try:
            write_snapshot(self._name(step), snapshot)
        except OSError as error:
            earlier = self._steps_found()
            found = f"the checkpoint of step {earlier[-1]} there is intact" if earlier else "no checkpoint is there"
            raise OSError(
                error.errno,
                f"cannot write the checkpoint of step {step} in {self.path}, {error.strerror or error}: {found}",
            ) from error
        for other in self._steps_found():
            if other > step or (self._fresh and other != step):
                self._remove(other)
        self.started(step)
        for old in self._steps_found()[: -self.keep]:
            self._remove(old)

    def load(self) -> Snapshot | None:
        """The latest checkpoint; None if there is none. Damaged ones are skipped with a warning.

        Raises:
            ValueError: If all are damaged.
        """
        problem: Exception | None = None
        for step in reversed(self._steps_found()):
            try:
                return read_snapshot(self._name(step))
            except (ValueError, OSError) as error:
                problem = error
                warnings.warn(f"{error}; using the checkpoint before it", stacklevel=3)
        if problem is not None:
            raise ValueError(f"no checkpoint in {self.path} can be read: {problem}") from problem
        return None

    def clear(self) -> None:
        """Remove all checkpoints."""
        self._check_folder()
        for step in self._steps_found():
            self._remove(step)
        self._saved_step = 0

    def clean(self) -> None:
        """Remove incomplete files of checkpoints that a killed process has left; other files stay."""
        complete = set(self._steps_found())
        for file in self.path.glob(f"checkpoint-*{TENSORS}"):
            step = _step_of(file)
            if step is not None and step not in complete:
                file.unlink(missing_ok=True)
        for file in self.path.glob(".partial-checkpoint-*"):
            if _PARTIAL.match(file.name):
                file.unlink(missing_ok=True)

    def _check_folder(self) -> None:
        """Refuse a lock that is a link: opening it would create or change the file that it names."""
        lock = self.path / LOCK
        if lock.is_symlink() or (lock.exists() and not lock.is_file()):
            raise ValueError(f"{lock} is not a plain file: remove it")

    def _name(self, step: int) -> Path:
        return self.path / f"checkpoint-{step:09d}"

    def _steps_found(self) -> list[int]:
        """The steps of the checkpoints that are here, ascending."""
        steps = (_step_of(file) for file in self.path.glob(f"checkpoint-*{VALUES}"))
        return sorted(step for step in steps if step is not None)

    def _remove(self, step: int) -> None:
        # the values first: without them, the tensors do not count as a checkpoint
        for ending in (VALUES, TENSORS):
            with suppress(FileNotFoundError):
                name = self._name(step)
                name.with_name(name.name + ending).unlink()


class FollowedCheckpoints(Checkpoints):
    """The checkpoints of a process that does not write them, because rank 0 does: it only counts the steps."""

    def __init__(self, written: Checkpoints) -> None:
        super().__init__(written.path, steps=written.steps, minutes=written.minutes, keep=written.keep)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """A context that locks nothing: rank 0 locks the folder."""
        yield

    def due(self, step: int) -> bool:
        """False: rank 0 decides."""
        return False

    def _check_folder(self) -> None:
        """Nothing: rank 0 checks it."""

    def save(self, step: int, snapshot: Snapshot) -> None:
        """Note the step; rank 0 writes the checkpoint."""
        self.started(step)

    def _steps_found(self) -> list[int]:
        return []  # so that nothing is read or removed


def unused(folder: Path) -> bool:
    """Whether a folder holds nothing, or only what a run leaves that is killed before its first checkpoint."""
    return folder.is_dir() and all(file.name == LOCK or _PARTIAL.match(file.name) for file in folder.iterdir())


def _step_of(file: Path) -> int | None:
    match = re.fullmatch(r"checkpoint-(\d{9,})", file.stem)
    return int(match[1]) if match else None
