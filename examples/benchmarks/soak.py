"""Does a process that trains for long grow? Memory, threads and open files over many fits and many steps.

    python examples/benchmarks/soak.py                     # 300 fits, 30,000 steps, 100,000 steps of an endless loader
    python examples/benchmarks/soak.py --scale 0.01        # a hundredth of each

Each part is run once before it is measured, so that what is allocated once (compiled kernels, thread pools, caches)
does not count. Memory is the resident set of the process after the garbage collection.
"""

from __future__ import annotations

import argparse
import gc
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor

import pyro_vae as pv

X = (torch.rand(200, 16, generator=torch.Generator().manual_seed(0)) < 0.5).float()


class Endless:
    """A loader that never ends, and so has one epoch."""

    def __iter__(self) -> Iterator[Tensor]:
        while True:
            yield from X.split(50)


def resources() -> tuple[float, int, int]:
    """MiB of memory, threads of the system, and open files of this process; -1 where the system does not say."""
    gc.collect()
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        threads = len(list(Path("/proc/self/task").iterdir()))
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20, threads, len(list(Path("/proc/self/fd").iterdir()))
    except OSError:
        return -1.0, threading.active_count(), -1


def fit(data: object, folder: Path | None = None, **options: Any) -> None:
    """Train a small pair anew."""
    pyro.clear_param_store()
    vae = pv.VAE(16, 2, hidden=(8,))
    settings: dict[str, Any] = {"seed": 0, "progress": False, "compile": False, "checkpoints": folder, **options}
    pv.fit(vae.model, vae.guide, data, **settings)


def short_fits(number: int) -> None:
    """Fits of two epochs, each with checkpoints and validation data."""
    with tempfile.TemporaryDirectory() as folder:
        for i in range(number):
            fit(X, Path(folder) / str(i % 3), epochs=2, batch_size=50, valid=X[:40], rollbacks=1)


def many_steps(number: int) -> None:
    """One fit of so many steps on data in memory."""
    fit(X, steps=number, batch_size=50, preflight=False)


def endless_loader(number: int) -> None:
    """One fit of so many steps of an endless loader, in a single epoch."""
    fit(Endless(), steps=number, preflight=False)


PARTS: dict[str, tuple[Callable[[int], None], int]] = {
    "short fits": (short_fits, 300),
    "steps": (many_steps, 30_000),
    "steps of an endless loader": (endless_loader, 100_000),
}


def measure(part: Callable[[int], None], number: int) -> tuple[float, int, int]:
    """How much memory (MiB), how many threads and how many files a part leaves behind, and holds while it runs."""
    part(max(2, number // 20))
    before = resources()
    part(number)
    after = resources()
    return after[0] - before[0], after[1] - before[1], after[2] - before[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0, help="run this fraction of each part")
    scale = parser.parse_args().scale
    for name, (part, number) in PARTS.items():
        start, number = time.perf_counter(), max(2, int(number * scale))
        memory, threads, files = measure(part, number)
        seconds = time.perf_counter() - start
        print(
            f"{number:7,} {name}: {memory:+.1f} MiB, {threads:+d} threads, {files:+d} files, {seconds:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
