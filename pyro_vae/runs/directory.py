"""The directory of a run, which changes from one complete run to the next at a single instant.

New content is written to pending files beside the old ones. The record of their checksums, `run.json`, makes it valid
when it is replaced; then the files are moved to their places. Whoever reads takes, of each file, the one that has the
checksum in the record. Whoever writes first ends what a killed process has begun.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pyro_vae.support.files import PARTIAL, checksum, locked_folder, read_file, remove, sync_folder, write_file
from pyro_vae.support.formats import check_entries, parse_json
from pyro_vae.support.serialization import as_json

__all__ = [
    "CHECKPOINTS",
    "CONFIG",
    "LINES",
    "METRICS",
    "RECORD",
    "WEIGHTS",
    "check_folder",
    "clear_run",
    "create_run",
    "pending",
    "save_json",
    "settle",
    "write_together",
]

CHECKPOINTS = "checkpoints"  # the folder of checkpoints within a run directory
CONFIG, RECORD, WEIGHTS, METRICS, LINES = FILES = (
    "config.yaml",
    "run.json",
    "weights.safetensors",
    "metrics.csv",
    "metrics.jsonl",
)
FEATURES = "features.safetensors"  # of the data; all else is of the weights
# what the commands write about the weights of a run
_DERIVED = (
    "evaluation-*.json",
    "log-marginal-*.json",
    *(f"{name}.{ending}" for name in ("estimators", "gaps", "latent", "quality") for ending in ("csv", "json", "png")),
    FEATURES,
    "history.png",
    *(f"{name}.{ending}" for name in ("reconstructions", "samples") for ending in ("npz", "png")),
)
_PENDING = ".pending-"
_PURGE = f"{_PENDING}purge"  # a note that what is derived from the run before has to go, and for which record
_LARGEST = 2**62


def create_run(path: str | Path, *, overwrite: bool = False, exist_ok: bool = True) -> Path:
    """Make the directory of a new run; the files of an earlier run there stay until the new one is saved.

    Raises:
        FileExistsError: If the directory exists, unless it is empty and `exist_ok`, or holds a run and `overwrite`.
        OSError: If it cannot be made or written to.
    """
    path = Path(path)
    if path.is_dir() and not _is_unused(path):
        if not any((path / name).exists() for name in FILES):
            raise FileExistsError(f"{path} holds files, but no run: choose another --out")
        if not overwrite:
            raise FileExistsError(f"{path} holds a run already: choose another --out, or pass --overwrite true")
        exist_ok = True
    try:
        path.mkdir(parents=True, exist_ok=exist_ok)
    except OSError as error:
        raise type(error)(f"cannot make the run directory {path}: {error.strerror}; choose another --out") from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise PermissionError(f"cannot write to the run directory {path}: choose another --out")
    return path


def _is_unused(path: Path) -> bool:
    """Whether a directory is empty, but for what a run leaves that is killed before it is saved."""
    left = [file for file in path.iterdir() if not file.name.startswith((PARTIAL, _PENDING))]
    return all(file.name == CHECKPOINTS and not file.is_symlink() and _holds_no_checkpoint(file) for file in left)


def _holds_no_checkpoint(folder: Path) -> bool:
    return folder.is_dir() and all(file.name == ".lock" or file.name.startswith(PARTIAL) for file in folder.iterdir())


def check_folder(folder: Path) -> None:
    """Refuse a folder inside a run directory that is a link: what it leads to is not the run's.

    Raises:
        ValueError: If it is one, or no folder.
    """
    if folder.is_symlink():
        raise ValueError(
            f"{folder} is a link to another folder, where files would be written and removed: put a folder in its place"
        )
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is not a folder: remove it")


def clear_run(path: Path) -> None:
    """Delete the files of a run and those derived from them; other files stay."""
    for name in FILES:
        remove(path / name)
        remove(pending(path / name))
    remove(path / _PURGE)
    for file in _derived(path):
        remove(file)


def pending(path: Path) -> Path:
    """The file with the new content of `path` until the record that describes it is written."""
    return path.with_name(f"{_PENDING}{path.name}")


def write_together(path: Path, contents: Mapping[str, bytes], record: str, *, fresh: bool = False) -> None:
    """Replace the files of a run, all at one instant: that at which its record is replaced.

    What was derived from other weights goes with them. After a kill at any instant the run there is the old one or the
    new one, and `settle`, which the next writer calls, removes what is left of the other.

    Args:
        path: The run directory.
        contents: The new content of its files, by name; the weights among them.
        record: The new content of its record, which has the checksums of the others.
        fresh: Whether this is another run than the one that is there, so that its checkpoints go, too.
    """
    with locked_folder(path):
        _settle(path)
        weights_before = _record(path)[1].get(WEIGHTS)
        for name, content in contents.items():
            # not like an earlier pending file: like the one whose place it takes
            write_file(pending(path / name), content, like=_first(path / name, path / RECORD))
        if fresh or (_derived(path) and weights_before != checksum(contents[WEIGHTS])):
            write_file(path / _PURGE, as_json({"record": checksum(record.encode()), "fresh": fresh}))
        write_file(path / RECORD, record)
        _finish(path, contents)


def save_json(path: Path, values: Mapping[str, object]) -> Path:
    """Write values as JSON, in which NaN and infinities become null; beside a run, with the permissions of the run."""
    write_file(path, as_json(values), like=path.parent / RECORD)
    return path


def settle(path: Path) -> None:
    """End what a process has begun that was killed while it saved a run: its new files are moved, or else removed.

    Raises:
        OSError: If the directory cannot be written to.
    """
    with locked_folder(path):
        _settle(path)


def _settle(path: Path) -> None:
    waiting = {file.name.removeprefix(_PENDING) for file in path.iterdir() if file.name.startswith(_PENDING)}
    if not waiting:
        return
    sums = _record(path)[1]
    valid = [name for name in FILES if name in waiting and _has_checksum(pending(path / name), sums.get(name))]
    _finish(path, valid)
    for name in waiting.difference(valid):
        with suppress(OSError):  # a folder, which this library has not made
            remove(pending(path / name))


def _finish(path: Path, names: Iterable[str]) -> None:
    """Remove what was derived from the run before, if there is a note, and move pending files to their places."""
    if (path / _PURGE).exists():
        _purge(path)
    for name in names:
        os.replace(pending(path / name), path / name)
    sync_folder(path)
    remove(path / _PURGE)  # last: until then, whoever comes after a kill does all this again


def _record(path: Path) -> tuple[str, dict[str, Any]]:
    """The checksum of the record, and those in it; empty if there is no record, or none that can be read."""
    try:
        content = read_file(path / RECORD, _LARGEST)
        return checksum(content), dict(parse_json(content)["files"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "", {}


def _first(*files: Path) -> Path:
    return next((file for file in files if file.exists()), files[-1])


def _has_checksum(file: Path, expected: Any) -> bool:
    try:
        return checksum(read_file(file, _LARGEST)) == expected
    except (OSError, ValueError):
        return False


def _purge(path: Path) -> None:
    """Remove what was derived from the run before, if the note to do so was meant for the record that is there."""
    try:
        note = check_entries(parse_json(read_file(path / _PURGE, 1000)), record=str, fresh=bool)
    except (OSError, ValueError):
        return
    if note["record"] != _record(path)[0]:  # killed before the new record was there
        return
    for file in _derived(path):
        if note["fresh"] or file.name != FEATURES:
            remove(file)
    checkpoints = path / CHECKPOINTS
    if note["fresh"] and checkpoints.is_dir() and not checkpoints.is_symlink():
        for file in sorted(checkpoints.glob("checkpoint-*.*")):  # .json first: without it, there is no checkpoint
            if file.suffix in (".json", ".safetensors"):
                remove(file)


def _derived(path: Path) -> list[Path]:
    return [file for pattern in _DERIVED for file in path.glob(pattern) if file.is_symlink() or not file.is_dir()]
