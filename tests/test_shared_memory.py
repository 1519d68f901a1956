"""Sums in shared memory: exact, in any order of arrival, and an error when a process ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from pyro_vae import ranks
from pyro_vae.shared_memory import SharedMemory, connect

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="this system sums through gloo")


def run(folder: Path, size: int) -> tuple[list[int], list[str]]:
    """Exit status and output of each process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "SLURM"))}
    env |= {"OMP_NUM_THREADS": "1", "MASTER_PORT": str(port), "MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": str(size)}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(folder)],
            env=env | {"RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(size)
    ]
    printed = [process.communicate(timeout=200)[0] for process in processes]
    return [process.returncode for process in processes], printed


def check_sums(folder: Path, size: int) -> None:
    found = [torch.load(folder / f"{rank}.pt") for rank in range(size)]
    for rank in found:
        for mine, theirs, first in zip(rank["shared"], rank["gloo"], found[0]["shared"], strict=True):
            assert mine.dtype == theirs.dtype
            torch.testing.assert_close(mine, theirs)
            assert torch.equal(mine, first)
        assert rank["races"] == 0


def test_two_processes_sum_and_without_the_systems_help_through_gloo(tmp_path: Path) -> None:
    codes, printed = run(tmp_path, 2)
    assert codes == [0, 0], printed
    check_sums(tmp_path, 2)
    assert [json.loads(text.splitlines()[-1]) for text in printed] == [{"shared": False, "sum": 3.0}] * 2


def test_three_processes_sum_and_notice_the_end_of_one(tmp_path: Path) -> None:
    codes, printed = run(tmp_path, 3)
    assert codes[1] == -signal.SIGKILL, printed
    check_sums(tmp_path, 3)
    for rank in (0, 2):
        assert "another process of this run has ended" in printed[rank]


# What the processes do


def sums(memory: SharedMemory, rank: int, size: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(rank)

    def draw(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    given = [
        [draw(7, 3), draw(5), draw()],
        [draw(100, 200)],  # more memory
        [draw(7, 3), draw(5), draw()],
        [draw(30, dtype=torch.float64), draw(0, dtype=torch.float64)],
        [draw(6, 4).T, draw(3, 8)[:, ::2]],  # strided
        [draw(9, dtype=torch.bfloat16)],
        [draw(0)],
    ]
    shared = [[t.clone() for t in group] for group in given]
    for group in shared:
        memory.sum_(group)
    mixed = [t.requires_grad_() for t in (draw(4), draw(4, dtype=torch.float64))]  # of two dtypes, as they come
    expected = [t.detach().clone() for t in mixed]
    ranks.Ranks(rank, size, torch.device("cpu")).sum_(mixed)
    for t in (*(t for group in given for t in group), *expected):
        contiguous = t.contiguous()
        dist.all_reduce(contiguous)
        t.copy_(contiguous)
    races = 0
    count = torch.zeros(1000, dtype=torch.float64)
    for step in range(300):  # ranks arrive early and late
        time.sleep(0.001 * ((step * (rank + 1)) % 3))
        count.fill_(step * (rank + 1))
        memory.sum_([count[: 1 + step % 7], count[500:]])
        exact = step * size * (size + 1) / 2
        races += int((count[: 1 + step % 7] != exact).sum() + (count[500:] != exact).sum())
    flat = [t for group in given for t in group]
    return {
        "shared": [t.detach() for group in (*shared, mixed) for t in group],
        "gloo": flat + expected,
        "races": races,
    }


def end(memory: SharedMemory, rank: int) -> None:
    memory.sum_([torch.ones(4)])
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    memory.sum_([torch.ones(4)])


def unable(rank: int, size: int) -> None:
    tempfile.tempdir = str(Path(sys.argv[1]) / ("long" * 30)) if rank == 0 else None
    Path(tempfile.gettempdir()).mkdir(exist_ok=True)
    assert connect(rank, size) is None
    tempfile.tempdir = None
    if rank == 1:
        del os.memfd_create
    ranks._shared_memory.cache_clear()
    total = torch.tensor(1.0 + rank)
    here = ranks.Ranks(rank, size, torch.device("cpu"))
    here.sum_([total])
    print(json.dumps({"shared": ranks._shared_memory(dist.group.WORLD, here) is not None, "sum": float(total)}))


def main() -> None:
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    memory = connect(rank, size)
    assert memory is not None
    torch.save(sums(memory, rank, size), Path(sys.argv[1]) / f"{rank}.pt")
    dist.barrier()
    if size == 2:
        unable(rank, size)
    else:
        end(memory, rank)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
