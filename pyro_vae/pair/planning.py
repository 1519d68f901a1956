"""How a question is split into runs: whether particles vectorize, how many data run together, what fits the memory.

A pair and its data give a `Plan`; the plan and a number of rows give the pieces. All functions restore the random
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

__all__ = ["CPU_ROWS", "DATA_ROWS", "Plan", "data_that_fit", "run_on_examples", "plan_for", "rows_that_fit"]

NUM_EXAMPLES = 5  # data of a trial run
DATA_ROWS = 1000  # data per run by default
NOT_ON_A_PART = (RuntimeError, ValueError, IndexError)  # errors of a pair that was made for all data
CPU_ROWS = 2048  # data times particles; larger runs fall out of a CPU's cache

T = TypeVar("T")


@dataclass(frozen=True)
class Plan:
    """How a pair runs on its data.

    Attributes:
        num_data: N.
        whole: Whether all data must run at once, because the pair has parameters or a mask for each of them.
        example_data: The data of the trial run: the first few, or all if `whole`.
        traces: The traces of that run.
        plate: The plate over the data in these traces.
        particles: How several particles run.
    """

    num_data: int
    whole: bool
    example_data: Data
    traces: PairTrace
    plate: DataPlate
    particles: Particles

    def data_at_once(self, rows: int, num_samples: int = 1) -> int:
        """How many data to run at once, with `num_samples` each, if a run may have `rows` rows."""
        return self.num_data if self.whole else max(1, rows // num_samples)

    def pieces(self, rows: int, num_samples: int = 1) -> Iterator[tuple[int, int]]:
        """The data split into runs of `data_at_once`, as (start, stop)."""
        return slices(self.num_data, self.data_at_once(rows, num_samples))


def plan_for(model: Program, guide: Program, data: Data, *, vectorize: bool | None = None) -> Plan:
    """Run a pair on a few data, and plan the runs on all of them.

    Args:
        model, guide: The pair.
        data: The pair's arguments.
        vectorize: Whether particles run together. None tests it, and warns if they cannot.

    Raises:
        ValueError: If a site is outside the plate over the data, or latent sites differ between model and guide.
    """

    def run(some: Data) -> tuple[PairTrace, DataPlate]:
        traces = trace_pair(model, guide, *some)
        plate = data_plate(traces, len(some[0][0]))
        joint_log_weight(traces, plate)  # raises for a mask of another size
        return traces, plate

    with torch.no_grad(), fork_rng():
        (traces, plate), example_data, whole = run_on_examples(run, data)
    return Plan(
        len(data[0][0]), whole, example_data, traces, plate, particles_of(model, guide, example_data, vectorize)
    )


def run_on_examples(run: Callable[[Data], T], data: Data) -> tuple[T, Data, bool]:
    """Call `run` on the first few data; returns its result, these data, and whether it runs only on all data.

    A parameter or a mask that was made for all data does not fit a part of them. Then `run` raises, and is called on
    all data.
    """
    n = len(data[0][0]) if data[0] and isinstance(data[0][0], Tensor) and data[0][0].dim() else 0
    if n == 0:
        return run(data), data, True
    example_data = take(*data, 0, min(n, NUM_EXAMPLES))
    try:
        result = run(example_data)
    except NOT_ON_A_PART:
        return run(data), data, True
    if 1 < n <= NUM_EXAMPLES:  # all data ran: does a part of them?
        try:
            run(take(*data, 0, 1))
        except NOT_ON_A_PART:
            return result, data, True
    return result, example_data, False


def data_that_fit(run: Callable[[Data], Any], data: Data, memory: int | None) -> int:
    """How many data to run at once.

    Args:
        run: Called on some of the data.
        data: All data.
        memory: Bytes. Default: what 1000 data take.

    Raises:
        ValueError: If `memory` is not positive.
    """
    n = len(data[0][0])
    if memory is None and n <= DATA_ROWS:
        return n
    if memory is not None and memory < 1:
        raise ValueError(f"memory must be a positive number of bytes, got {memory}")
    with torch.no_grad(), fork_rng():
        _, example_data, whole = run_on_examples(run, data)
    if whole:
        return n
    if memory is None:
        return DATA_ROWS
    return rows_that_fit(lambda: run(example_data), len(example_data[0][0]), data[0][0].device, memory)


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
        run: Runs the pair on `rows` rows.
        rows: Their number.
        device: The device of the data.
        memory: Bytes. Default: half of a GPU's free memory, 512 MiB on a CPU.
        cpu_rows, cpu_memory: Limits on a CPU, where larger runs are slower.
        copies: Multiple of the memory of `run` that is needed: 2 with a backward pass.
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
        # a view, for example of a weight matrix, takes no memory
        old = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf.untyped_storage().data_ptr() not in old:
                self.bytes = max(self.bytes, leaf.untyped_storage().nbytes())
        return out


def row_bytes(run: Callable[[], Any], rows: int) -> int:
    """Estimated peak bytes per row (one datum and particle) of `run`, which works on `rows` rows.

    Without autograd few intermediate tensors live at once. Dense and convolutional pairs were measured to stay below
    eight times the largest one.
    """
    with torch.no_grad(), fork_rng(), _LargestTensor() as largest:
        run()
    return max(1, 8 * largest.bytes // rows)


def default_memory(device: torch.device) -> int:
    """Bytes that an evaluation may use by default: half of a GPU's free memory, 512 MiB on a CPU."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] // 2
    return 512 * 2**20
