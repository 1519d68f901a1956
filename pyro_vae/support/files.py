"""The one writer and the one reader of files: they are written whole or not at all, and read only if they are plain.

A stranger may have put links, pipes or devices where a file is expected, also while the program runs. Everything that
is read or written on the way through these functions is therefore opened once, checked after it was opened, and never
reached by its name again.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from secrets import token_hex
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "PARTIAL",
    "check_plain",
    "checksum",
    "locked_folder",
    "open_plain",
    "read_file",
    "remove",
    "sync_folder",
    "write_file",
]

PARTIAL = ".partial-"  # how the names of incomplete files begin
_NO_LINKS = getattr(os, "O_NOFOLLOW", 0)
_READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_LINKS | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


def write_file(path: str | Path, content: bytes | str, *, like: Path | None = None) -> None:
    """Replace a file, or make it: whatever happens, what is there afterwards is the old content or the new one.

    The content goes into a new file in the same folder, which takes the place of `path` once it is on the disk. A link
    at `path` is replaced, not followed. A file that is replaced keeps its permissions; a new one gets those of `like`,
    if that is there, and else those of the umask.

    Raises:
        OSError: If the file cannot be written, for example because the disk is full. `path` is unchanged then.
    """
    path = Path(path)
    content = content.encode() if isinstance(content, str) else content
    _remove_abandoned(path)
    temporary, file = _create_beside(path, _permissions(path, like))
    try:
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(file, rest) :]
        os.fsync(file)
        if fcntl is None:  # Windows moves no open files
            file = os.close(file)
        os.replace(temporary, path)  # still locked: nobody takes it for abandoned
    except BaseException:
        remove(temporary)
        raise
    finally:
        if file is not None:
            os.close(file)
    sync_folder(path.parent)


def open_plain(path: Path, limit: int, *, links: bool = False) -> BinaryIO:
    """Open a regular file for reading.

    Args:
        path: The file.
        limit: The number of bytes that it may have.
        links: Whether `path` may be a link to the file. The folders on the way to it may always be links.

    Raises:
        FileNotFoundError: If there is no file.
        ValueError: If it is larger, a folder, a pipe, a device, or (unless `links`) a link.
    """
    check_plain(path, limit, trust=links)  # before it is opened: to open a device can have effects
    try:
        number = os.open(path, _READ | (0 if links else _NO_LINKS))
    except OSError as error:
        if error.errno == errno.ELOOP and not links:
            raise _link(path) from error
        raise
    file = os.fdopen(number, "rb")
    try:
        _check(os.fstat(number), path, limit)  # of what was opened, which may have been exchanged
    except ValueError:
        file.close()
        raise
    return file


def read_file(path: Path, limit: int, *, links: bool = False, expected: str | None = None) -> bytes:
    """The content of a regular file; the arguments are those of `open_plain`.

    Raises:
        FileNotFoundError: If there is no file.
        ValueError: As `open_plain`, or if `expected` is not its SHA-256 digest.
    """
    with open_plain(path, limit, links=links) as file:
        size = os.fstat(file.fileno()).st_size
        content = file.read(size + 1)
    if len(content) > size:
        raise ValueError(f"{path} grew while it was read: wait until it is complete")
    if expected is not None and checksum(content) != expected:
        raise ValueError(f"{path} is damaged: its checksum is not the one that was stored with it")
    return content


def check_plain(file: Path, limit: int, *, trust: bool = False) -> None:
    """Refuse anything that is not a plain file of a sensible size, before it is opened.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If it is larger than `limit` bytes, a directory, a device, or (unless `trust`) a link.
    """
    _check(file.stat() if trust else file.lstat(), file, limit)


def checksum(content: bytes) -> str:
    """The SHA-256 digest in hexadecimal digits."""
    return sha256(content).hexdigest()


def remove(path: Path) -> None:
    """Remove a file or a link, if there is one."""
    with suppress(FileNotFoundError):
        os.unlink(path)


def sync_folder(path: Path) -> None:
    """Bring the names in a folder to the disk, where the system can."""
    with suppress(OSError):
        folder = os.open(path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextmanager
def locked_folder(path: Path) -> Iterator[None]:
    """A context that one process at a time can enter, where the system can lock a folder. Nothing is written for it."""
    folder = None
    try:
        if fcntl is not None:
            with suppress(OSError):  # some network file systems lock no folders
                folder = os.open(path, os.O_RDONLY)
                fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        if folder is not None:
            with suppress(OSError):  # by closing it alone, a copy of this process would keep it locked
                fcntl.flock(folder, fcntl.LOCK_UN)
            os.close(folder)


def _check(found: os.stat_result, path: Path, limit: int) -> None:
    if stat.S_ISLNK(found.st_mode):
        raise _link(path)
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"{path} is not a plain file: remove it, or restore the original")
    if found.st_size > limit:
        raise ValueError(f"{path} has {found.st_size:,} bytes, more than the {limit:,} expected there: it is damaged")


def _link(path: Path) -> ValueError:
    return ValueError(
        f"{path} is a link to another file, which may lie outside this directory: put the file itself in its "
        "place, or pass trust=True (--trust true on the command line)"
    )


def _permissions(*files: Path | None) -> int | None:
    """Those of the first file that is there."""
    for file in files:
        with suppress(FileNotFoundError):
            found = None if file is None else file.lstat().st_mode
            if found is not None and stat.S_ISREG(found):
                return stat.S_IMODE(found) & 0o777
    return None


def _create_beside(path: Path, mode: int | None = None) -> tuple[Path, int]:
    """A new file in the folder of `path`, locked as long as this process writes it."""
    for attempt in range(10):
        temporary = path.with_name(f"{PARTIAL}{path.name[:100]}.{token_hex(8)}")
        file = os.open(temporary, _CREATE, 0o666 if mode is None else 0o600)
        try:
            if mode is not None and hasattr(os, "fchmod"):
                os.fchmod(file, mode)
            # another process may have taken it for abandoned before it was locked
            if attempt == 9 or (_lock(file) is not False and os.fstat(file).st_nlink):
                return temporary, file
        except BaseException:
            os.close(file)
            remove(temporary)
            raise
        os.close(file)
        remove(temporary)
    raise AssertionError  # the last attempt returns


def _remove_abandoned(path: Path) -> None:
    """Remove the incomplete files that killed processes have left where `path` was to be."""
    prefix = f"{PARTIAL}{path.name[:100]}"
    with suppress(OSError):
        found = [entry for entry in os.scandir(path.parent) if entry.name.startswith(prefix)]
        for entry in found:
            with suppress(OSError, ValueError), open_plain(Path(entry.path), 2**63) as file:
                if _lock(file.fileno()):  # its writer would hold the lock
                    remove(Path(entry.path))


def _lock(file: int) -> bool | None:
    """Whether a file could be locked until it is closed; None where the system cannot lock files."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True
