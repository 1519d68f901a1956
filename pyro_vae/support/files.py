"""Files written whole or not at all, and read only if they are plain files."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["check_plain", "replacing"]


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file atomically: yield a temporary path, which replaces `path` at the end and is removed after an error.

    Raises:
        OSError: If the file cannot be written, for example because the disk is full. `path` is unchanged then.
    """
    temporary = path.with_name(f".partial-{path.name}")
    temporary.unlink(missing_ok=True)  # it could be a link to a file elsewhere
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    with suppress(OSError):  # some systems cannot sync a folder
        _sync_folder(path.parent)


def check_plain(file: Path, limit: int, *, trust: bool = False) -> None:
    """Refuse anything that is not a plain file of a sensible size, before it is read.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If it is larger than `limit` bytes, a directory, a device, or (unless `trust`) a link.
    """
    found = file.stat() if trust else file.lstat()
    if stat.S_ISLNK(found.st_mode):
        raise ValueError(
            f"{file} is a link to another file, which may lie outside this directory: put the file itself in its "
            "place, or pass trust=True (--trust true on the command line)"
        )
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"{file} is not a plain file: remove it, or restore the original")
    if found.st_size > limit:
        raise ValueError(f"{file} has {found.st_size:,} bytes, more than the {limit:,} expected there: it is damaged")


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
