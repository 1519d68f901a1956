"""How long compiling takes on this machine, as measured by this and by earlier processes."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

from pyro_vae.support.files import write_file

__all__ = ["expected_seconds", "note_seconds"]

UNMEASURED = 15.0  # seconds for a small VAE on two cores
KEPT = 9  # measurements


def expected_seconds() -> float:
    """The median of the latest compilations in seconds; 15 before the first."""
    measured = _measured()
    return statistics.median(measured) if measured else UNMEASURED


def note_seconds(seconds: float) -> None:
    """Store how long a graph took to compile that no earlier process had compiled."""
    path = _path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, json.dumps([*_measured(), round(seconds, 2)][-KEPT:]))
    except OSError:
        pass  # a folder that cannot be written to


def _measured() -> list[float]:
    try:
        return [float(value) for value in json.loads(_path().read_text())]
    except (OSError, ValueError, TypeError):  # none, or that of another program
        return []


def _path() -> Path:
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    return Path(cache_dir()) / "pyro_vae_seconds.json"
