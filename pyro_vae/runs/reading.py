"""Reads the files of a run together, so that they are those of one moment, also while the run is being saved."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, BinaryIO

from pyro_vae.runs.directory import CONFIG, METRICS, RECORD, WEIGHTS, pending
from pyro_vae.support.files import checksum, open_plain, read_file
from pyro_vae.support.formats import parsing
from pyro_vae.support.memory import physical_memory

__all__ = ["LIMITS", "MB", "checksum", "read_files", "read_plain"]

MB = 2**20
# a record holds the columns of a table with their levels
# weights are in memory three times while they are loaded: as read, as tensors, in the pair
LIMITS = {CONFIG: MB, RECORD: 64 * MB, METRICS: 256 * MB, WEIGHTS: (physical_memory() or 192 * 1024 * MB) // 3}
_ATTEMPTS = 20  # the run would have to be saved that often, each time within the instant in which the files are opened


def read_plain(file: Path, limit: int, *, trust: bool = False) -> bytes:
    """The content of a regular file.

    Raises:
        FileNotFoundError: If there is no file.
        ValueError: If it is larger than `limit` bytes, a directory, a device, or (unless `trust`) a link.
    """
    return read_file(file, limit, links=trust)


def read_files(
    path: Path, names: Sequence[str], parse_record: Callable[[bytes], dict[str, Any]], *, trust: bool = False
) -> tuple[dict[str, Any], dict[str, tuple[Path, bytes]]]:
    """The record of a run, and of each other file the one that is described by it: the final or the pending one.

    Args:
        path: The run directory.
        names: The names of the other files.
        parse_record: The function that parses the record.
        trust: Follow links.

    Returns:
        tuple: The parsed record, and `(path, content)` by name.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a checksum is not that of the record, or a file cannot be read.
    """
    for _ in range(_ATTEMPTS):
        content = _read_record(path, trust)
        try:
            with parsing(path / RECORD):
                record = parse_record(content)
            return record, _read_described(path, names, record["files"], trust)
        except (ValueError, OSError):
            # the files are those of another record if the run was saved meanwhile
            if content == _read_record(path, trust):
                raise
    raise ValueError(f"{path} is being saved again and again: wait until it is not")


def _read_record(path: Path, trust: bool) -> bytes:
    try:
        return read_plain(path / RECORD, LIMITS[RECORD], trust=trust)
    except FileNotFoundError as error:
        raise FileNotFoundError(_missing(path, RECORD)) from error


def _read_described(
    path: Path, names: Sequence[str], sums: dict[str, str], trust: bool
) -> dict[str, tuple[Path, bytes]]:
    """Of each file the one that has the checksum in the record; the final one for formats without checksums."""
    with ExitStack() as stack:
        opened: dict[str, list[tuple[Path, BinaryIO]]] = {}
        # all are opened before any is read: what is open stays as it is. The pending one first, since it is moved to
        # the place of the final one: if it is gone, that one is there
        for name in names:
            opened[name] = []
            if name in sums:
                with suppress(FileNotFoundError):
                    file = open_plain(pending(path / name), LIMITS[name], links=trust)
                    opened[name].append((pending(path / name), stack.enter_context(file)))
            with suppress(FileNotFoundError):
                file = open_plain(path / name, LIMITS[name], links=trust)
                opened[name].append((path / name, stack.enter_context(file)))
        return {name: _described(path, name, opened[name], sums.get(name)) for name in names}


def _described(path: Path, name: str, opened: list[tuple[Path, BinaryIO]], expected: str | None) -> tuple[Path, bytes]:
    for file, stream in reversed(opened):
        content = stream.read()
        if expected is None or checksum(content) == expected:
            return file, content
    if all(file != path / name for file, _ in opened):
        raise FileNotFoundError(_missing(path, name))
    raise ValueError(
        f"{path / name} is damaged, or was changed after training: its checksum is not the one in {RECORD}. Bring the "
        "original back, or train again"
    )


def _missing(path: Path, name: str) -> str:
    return f"{path} holds no {name}: it is not a run directory, or a damaged one"
