"""The environment of a run: versions, hardware, the commit of the working folder, memory."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
import sys
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
        the working folder and whether it has uncommitted changes; None outside a repository), `peak_memory` (bytes of
        this process so far) and `peak_gpu_memory` (bytes, or None).
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

    The result is cached, since a run is saved after many epochs.
    """
    # fsmonitor would run a program that the repository names
    git = ["git", "-C", str(folder), "-c", "core.fsmonitor=false"]
    try:
        outputs = [
            subprocess.run([*git, *words], capture_output=True, text=True, timeout=5, check=True).stdout.strip()
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        ]
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return {"commit": outputs[0], "dirty": bool(outputs[1])}


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
