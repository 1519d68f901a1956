"""The directory of a run, and files in it that an interrupt cannot cut in half."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["CONFIG", "METRICS", "RECORD", "WEIGHTS", "clear_run", "create_run", "replacing", "save_json"]

CONFIG, RECORD, WEIGHTS, METRICS = FILES = ("config.yaml", "run.json", "weights.safetensors", "metrics.csv")
_DERIVED = ("evaluation-*.json", "estimators.*", "history.png", "reconstructions.*", "samples.*")


def create_run(path: str | Path, *, overwrite: bool = False, exist_ok: bool = True) -> Path:
    """Make the directory of a new run; the files of an older run there stay until `clear_run`.

    Raises:
        FileExistsError: If something is there already, unless it is an empty folder and `exist_ok`, or a run and
            `overwrite`.
        OSError: If it cannot be made or written to.
    """
    path = Path(path)
    if path.is_dir() and any(path.iterdir()):
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


def clear_run(path: Path) -> None:
    """Delete the files of a run and what was derived from them; other files stay."""
    for pattern in (*FILES, *_DERIVED):
        for file in path.glob(pattern):
            file.unlink()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path to write to; it replaces `path` at the end, or vanishes after an error."""
    temporary = path.with_name(f".partial-{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_json(path: Path, values: Mapping[str, Any]) -> Path:
    """Write figures as JSON, which has no NaN and no infinities: these become null."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(_finite(values), indent=2, allow_nan=False) + "\n")
    return path


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
