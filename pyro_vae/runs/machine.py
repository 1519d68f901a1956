"""The environment of a run: versions, hardware, the commit of the working folder, memory."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy
import pyro
import torch

from pyro_vae.support.memory import physical_memory

__all__ = ["commit", "environment"]


def environment(device: torch.device) -> dict[str, Any]:
    """The environment of a run whose networks are on `device`, for its record.

    Returns:
        dict: `versions`, `platform`, `hardware` (CPU, cores, threads, memory in bytes, GPU or None), `git` (commit of
        the working folder and whether it has uncommitted changes, see `commit`; None outside a repository),
        `peak_memory` (bytes of this process so far) and `peak_gpu_memory` (bytes, or None).
    """
    on_gpu = device.type == "cuda"
    return {
        "versions": {
            "pyro_vae": version("pyro-vae"),
            "torch": str(torch.__version__),
            "pyro": pyro.__version__,
            "numpy": numpy.__version__,
            "python": platform.python_version(),
        },
        "platform": platform.platform(),
        "hardware": {
            "cpu": _cpu(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "memory": physical_memory(),
            "gpu": torch.cuda.get_device_name(device) if on_gpu else None,
        },
        "git": commit(Path.cwd()),
        "peak_memory": _peak_memory(),
        "peak_gpu_memory": torch.cuda.max_memory_allocated(device) if on_gpu else None,
    }


@functools.cache
def commit(folder: Path) -> dict[str, Any] | None:
    """The commit of a folder, and whether tracked files differ from it; None if there is no repository.

    Whether they differ is None where only programs that the configuration names, such as filters, could tell: the
    repository may be a stranger's, and none of them is run. The result is cached, since a run is saved after many
    epochs.
    """
    head = _git(folder, "rev-parse", "--verify", "HEAD")
    if head is None:
        return None
    keys = (_git(folder, "config", "--null", "--name-only", "--get-regexp", r"^filter\.") or "").split("\0")
    # an empty command is none; as environment, since the name of a filter may hold any character
    settings = [(key, "false" if key.endswith(".required") else "") for key in keys if key]
    changes = _git(
        folder, "status", "--porcelain", "--untracked-files=no", "--ignore-submodules=all", settings=settings
    )
    dirty = None if changes is None or (changes and settings) else bool(changes)
    return {"commit": head.strip(), "dirty": dirty}


def _git(folder: Path, *words: str, settings: Sequence[tuple[str, str]] = ()) -> str | None:
    """What git prints, or None after an error; it runs no hooks and no monitors, fetches nothing and writes nothing."""
    overrides = [("core.fsmonitor", "false"), ("core.hooksPath", os.devnull), *settings]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_CONFIG_")}
    environment |= {"GIT_OPTIONAL_LOCKS": "0", "GIT_ALLOW_PROTOCOL": "none", "GIT_NO_LAZY_FETCH": "1"}
    environment["GIT_CONFIG_COUNT"] = str(len(overrides))
    for i, (key, value) in enumerate(overrides):
        environment |= {f"GIT_CONFIG_KEY_{i}": key, f"GIT_CONFIG_VALUE_{i}": value}
    try:
        return subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=5, check=True, env=environment
        ).stdout
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None


@functools.cache
def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _peak_memory() -> int | None:
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
