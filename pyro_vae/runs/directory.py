"""The directory of a run, whose files are replaced so that a crash or a power cut leaves none incomplete."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyro_vae.support.files import replacing
from pyro_vae.support.serialization import as_json
from pyro_vae.training.checkpoints.directory import unused

__all__ = [
    "CHECKPOINTS",
    "CONFIG",
    "LINES",
    "METRICS",
    "RECORD",
    "WEIGHTS",
    "clear_run",
    "create_run",
    "pending",
    "replacing",
    "save_json",
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
_DERIVED = (
    "evaluation-*.json",
    "log-marginal-*.json",
    "estimators.*",
    "gaps.*",
    "latent.*",
    "history.png",
    "reconstructions.*",
    "samples.*",
    ".partial-*",
    ".pending-*",
)


def create_run(path: str | Path, *, overwrite: bool = False, exist_ok: bool = True) -> Path:
    """Make the directory of a new run; the files of an earlier run there stay until `clear_run`.

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
    return all(file.name == CHECKPOINTS and not file.is_symlink() and unused(file) for file in path.iterdir())


def clear_run(path: Path) -> None:
    """Delete the files of a run and those derived from them; other files stay."""
    for pattern in (*FILES, *_DERIVED):
        for file in path.glob(pattern):
            file.unlink()


def pending(path: Path) -> Path:
    """The file with the new content of `path` until the record that describes it is written."""
    return path.with_name(f".pending-{path.name}")


def write_together(contents: Mapping[Path, bytes], record: Path, text: str) -> None:
    """Write several files and the record of their checksums, so that a consistent set can be read at any moment.

    The contents are written to pending files first. Replacing the record makes them valid; then they are moved to their
    places. A reader takes the file, final or pending, that has the checksum in the record.
    """
    for path, content in contents.items():
        with replacing(pending(path)) as temporary:
            temporary.write_bytes(content)
    with replacing(record) as temporary:
        temporary.write_text(text)
    for path in contents:
        os.replace(pending(path), path)


def save_json(path: Path, values: Mapping[str, Any]) -> Path:
    """Write values as JSON, in which NaN and infinities become null."""
    with replacing(path) as temporary:
        temporary.write_text(as_json(values))
    return path
