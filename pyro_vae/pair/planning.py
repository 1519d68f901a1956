"""How the work of a question is cut: whether particles run together, which data run together, how many fit the memory.

A pair and its data give a `Plan`; the plan and a number of rows give the pieces. Nothing here moves the random
generators.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from pyro_vae.pair.arguments import slices, take
from pyro_vae.pair.particles import Particles, joint_log_weight, particles_of
from pyro_vae.pair.plates import DataPlate, data_plate
from pyro_vae.pair.protocol import Data, Program
from pyro_vae.pair.tracing import PairTrace, trace_pair
from pyro_vae.support.random import fork_rng

__all__ = ["CPU_ROWS", "DATA_ROWS", "Plan", "data_that_fit", "few_or_all", "plan_for", "rows_that_fit"]

FEW = 5  # data that a pair is tried on
DATA_ROWS = 1000  # data in one run where nothing is said of memory
CPU_ROWS = 2048  # data times particles; larger runs fall out of a CPU's cache

T = TypeVar("T")


@dataclass(frozen=True)
class Plan:
    """How a pair runs on its data.

    Attributes:
        num_data: N.
        whole: Whether the data run all at once, or not at all: the pair has parameters, or a mask, for each of them.
        few: The data that the pair was tried on: the first few, or all of them.
        traces: Its run on these.
        plate: The plate over the data, there.
        particles: How several particles run.
    """

    num_data: int
    whole: bool
    few: Data
    traces: PairTrace
    plate: DataPlate
    particles: Particles

    def data_at_once(self, rows: int, num_samples: int = 1) -> int:
        """How many data to run at once, with `num_samples` of each, if `rows` are to fit."""
        return self.num_data if self.whole else max(1, rows // num_samples)

    def pieces(self, rows: int, num_samples: int = 1) -> Iterator[tuple[int, int]]:
        """The data cut into runs of `data_at_once`, as (start, stop)."""
        return slices(self.num_data, self.data_at_once(rows, num_samples))


def plan_for(model: Program, guide: Program, data: Data, *, vectorize: bool | None = None) -> Plan:
    """Try a pair on a few data.

    Args:
        model, guide: The pair.
        data: What it takes.
        vectorize: Whether particles run together. None tries it, and warns if they cannot.

    Raises:
        ValueError: If a site stands outside the plate over the data, or latent sites differ between model and guide.
    """

    def run(some: Data) -> tuple[PairTrace, DataPlate]:
        traces = trace_pair(model, guide, *some)
        plate = data_plate(traces, len(some[0][0]))
        joint_log_weight(traces, plate)  # a mask of another size shows here
        return traces, plate

    with torch.no_grad(), fork_rng():
        (traces, plate), few, whole = few_or_all(run, data)
    return Plan(len(data[0][0]), whole, few, traces, plate, particles_of(model, guide, few, vectorize))


def few_or_all(run: Callable[[Data], T], data: Data) -> tuple[T, Data, bool]:
    """What `run` gives on the first few data, these data, and whether it runs on all data only.

    What was made for all data, a parameter or a mask, does not fit a part of them: then `run` raises, and gets them
    all.
    """
    n = len(data[0][0])
    few = take(*data, 0, min(n, FEW))
    try:
        result = run(few)
    except (RuntimeError, ValueError):
        return run(data), data, True
    if 1 < n <= FEW:  # these were all data
        try:
            run(take(*data, 0, 1))
        except (RuntimeError, ValueError):
            return result, data, True
    return result, few, False


def data_that_fit(run: Callable[[Data], Any], data: Data, memory: int | None) -> int:
    """How many data to run at once.

    Args:
        run: Works on some data.
        data: All of them.
        memory: Bytes. Default: as much as a thousand data take.

    Raises:
        ValueError: For less than a byte.
    """
    n = len(data[0][0])
    if memory is None and n <= DATA_ROWS:
        return n
    if memory is not None and memory < 1:
        raise ValueError(f"memory must be a positive number of bytes, got {memory}")
    with torch.no_grad(), fork_rng():
        _, few, whole = few_or_all(run, data)
    if whole:
        return n
    if memory is None:
        return DATA_ROWS
    return rows_that_fit(lambda: run(few), len(few[0][0]), data[0][0].device, memory)


def rows_that_fit(
    run: Callable[[], Any],
    rows: int,
    device: torch.device,
    memory: int | None = None,
    *,
    cpu_rows: int | None = None,
    cpu_memory: int | None = None,
    copies: int = 1,
) -> int:
    """How many rows, each a datum and a particle, fit the memory.

    Args:
        run: Works on `rows` rows.
        rows: How many these are.
        device: Where.
        memory: Bytes. Default: half of a GPU's free memory, 512 MiB on a CPU.
        cpu_rows, cpu_memory: The most rows and bytes on a CPU, beyond which it gets slower.
        copies: How often the memory of `run` is needed: 2 with a backward pass.
    """
    budget = default_memory(device) if memory is None else memory
    if device.type == "cpu" and cpu_memory is not None:
        budget = min(budget, cpu_memory)
    fit = max(1, budget // (copies * row_bytes(run, rows)))
    return fit if device.type != "cpu" or cpu_rows is None else min(fit, cpu_rows)


class _LargestTensor(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        # a view, of a weight matrix say, takes no memory of its own
        old = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf.untyped_storage().data_ptr() not in old:
                self.bytes = max(self.bytes, leaf.untyped_storage().nbytes())
        return out


def row_bytes(run: Callable[[], Any], rows: int) -> int:
    """Estimated peak bytes for one row (one datum and particle) of `run`, which works on `rows` of them.

    Without autograd few intermediates live at once; eight of the largest size is what dense and convolutional pairs
    were seen to stay under.
    """
    with torch.no_grad(), fork_rng(), _LargestTensor() as largest:
        run()
    return max(1, 8 * largest.bytes // rows)


def default_memory(device: torch.device) -> int:
    """Bytes that an evaluation may use when nothing is said: half of a GPU's free memory, 512 MiB on a CPU."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] // 2
    return 512 * 2**20
