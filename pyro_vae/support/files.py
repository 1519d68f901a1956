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
    """Yield a path to write to; once it is on the disk it replaces `path`, and after an error it vanishes.

    Raises:
        OSError: If it cannot be written, the disk being full for one: `path` is as it was.
    """
    temporary = path.with_name(f".partial-{path.name}")
    temporary.unlink(missing_ok=True)  # it could be a link to a file elsewhere, put there by whoever made the folder
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    with suppress(OSError):  # some systems know no such thing for a folder
        _sync_folder(path.parent)


def check_plain(file: Path, limit: int, *, trust: bool = False) -> None:
    """Refuse what is no plain file of a sensible size, before anything of it is read.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is larger than `limit` bytes, a directory, a device, or (unless `trust`) a link.
    """
    found = file.stat() if trust else file.lstat()
    if stat.S_ISLNK(found.st_mode):
        raise ValueError(
            f"{file} is a link to another file, which may lie outside this directory: put the file itself in its "
            "place, or pass trust=True (--trust true on the command line)"
        )
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"{file} is no plain file: remove it, or bring the original back")
    if found.st_size > limit:
        raise ValueError(f"{file} has {found.st_size:,} bytes, more than the {limit:,} expected there: it is damaged")


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
