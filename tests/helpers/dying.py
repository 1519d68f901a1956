"""Ends a process at one chosen change of a file: for tests of what is left on the disk."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["DIED", "die_at", "in_a_child"]

DIED = 9  # exit status of a process that died at its change
_EVENTS = {
    "os.rename": 1,
    "os.remove": 0,
    "os.mkdir": 0,
    "os.rmdir": 0,
    "os.link": 1,
    "os.symlink": 1,
    "os.truncate": 0,
}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


def die_at(number: int, folder: Path) -> None:
    """Exit, as after SIGKILL, at the change with this number under a folder, for the rest of this process.

    A change is a system call that makes, opens for writing, renames or removes a file or a folder, writes to a file or
    brings it to the disk. A call dies before it takes effect, but a write dies with half of its bytes written.
    """
    here, count = os.path.realpath(folder), 0
    real_write, real_fsync = os.write, os.fsync

    def is_due(path: Any) -> bool:
        nonlocal count
        try:
            inside = os.path.realpath(os.fsdecode(path)).startswith(here)
        except (TypeError, ValueError):
            return False
        count += inside
        return inside and count == number

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(args[2], int) and args[2] & _WRITING and not isinstance(args[0], int):
            if is_due(args[0]):
                os._exit(DIED)
        elif event in _EVENTS and is_due(args[_EVENTS[event]]):
            os._exit(DIED)

    def write(file: int, content: Any) -> int:
        if is_due(os.readlink(f"/proc/self/fd/{file}")):
            real_write(file, memoryview(content)[: len(content) // 2])
            os._exit(DIED)
        return real_write(file, content)

    def fsync(file: int) -> None:
        if is_due(os.readlink(f"/proc/self/fd/{file}")):
            os._exit(DIED)
        real_fsync(file)

    os.write, os.fsync = write, fsync  # type: ignore[assignment]
    sys.addaudithook(hook)


def in_a_child(work: Callable[[], Any]) -> int:
    """Run a function in a copy of this process, without output; its exit status: 0, or 1 after an error."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        status = work() or 0
    except BaseException:
        status = 1
    os._exit(status)
