"""Several processes that share a piece of work: how they start, which data each takes, how they communicate.

lightning-fabric starts them, or recognizes the launcher that did (torchrun, SLURM and others). They communicate through
`torch.distributed`. Rank 0 is the main process: only it writes files and prints.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from pyro_vae.distributed.environment import check_environment, number, rendezvous, strategy_for
from pyro_vae.support.arguments import checked_from, instance, shown

__all__ = ["Devices", "Ranks", "launch"]

SECONDS_TO_END = 10.0  # of the communication

T = TypeVar("T")
Devices = int | Literal["auto"]


@checked_from(rank=0, size=1)
@dataclass(frozen=True)
class Ranks:
    """The processes that share a piece of work, as one of them sees them.

    All methods except `rows` and `only_main_warns` are collective: every process must call them, in the same order.

    Attributes:
        rank: The number of this process, from 0.
        size: The number of processes.
        device: Where this process computes; None for a single process, which is free to choose.
    """

    rank: int = 0
    size: int = 1
    device: torch.device | None = None

    @property
    def is_main(self) -> bool:
        """Whether this is the main process, which writes files and prints."""
        return self.rank == 0

    @property
    def leads(self) -> bool:
        """`is_main`, by its earlier name."""
        return self.is_main

    def rows(self, n: int) -> tuple[int, int, float]:
        """The rows `start:stop` of `n` that this rank takes, and the weight of their mean in the mean over all rows.

        The numbers of rows differ by at most one between ranks. If there are fewer rows than ranks, several ranks take
        the same row.

        Returns:
            tuple: `(start, stop, weight)`; the weights of all ranks sum to 1.
        """
        if n >= self.size:
            start, stop = self.rank * n // self.size, (self.rank + 1) * n // self.size
            return start, stop, (stop - start) / n
        row = self.rank % n
        return row, row + 1, 1 / n / len(range(row, self.size, n))

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors on this rank's device by their sums over all ranks, with one message per dtype."""
        if self.size == 1:
            return
        for group in _by_dtype(tensors):
            flat = _flatten(group)
            dist.all_reduce(flat)
            _unflatten(flat, group)

    def broadcast_(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors on this rank's device by those of rank 0, with one message per dtype."""
        if self.size > 1:
            for group in _by_dtype(tensors):
                flat = _flatten(group)
                dist.broadcast(flat, src=0)
                _unflatten(flat, group)

    def sum_gradients(self, params: Iterable[Tensor], loss: Tensor) -> Tensor:
        """Sum the gradients of parameters in place over all ranks; returns the sum of the losses.

        A parameter that got no gradient from this rank's data gets a gradient of zero, since all ranks must send
        tensors of the same shapes.
        """
        if self.size == 1:
            return loss
        total = loss.detach().clone()
        trained = [p for p in params if p.requires_grad]
        for p in trained:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        self.sum_([total, *(p.grad for p in trained if p.grad is not None)])
        return total

    def broadcast(self, value: T) -> T:
        """The value that rank 0 passes; the values of other ranks are ignored."""
        values = [value if self.is_main else None]
        if self.size > 1:
            dist.broadcast_object_list(values, src=0, device=self.device)
        return values[0]  # type: ignore[return-value]

    def gather(self, value: T) -> list[T]:
        """The values that all ranks pass, in the order of the ranks."""
        values: list[Any] = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values

    def any(self, *flags: bool) -> list[bool]:
        """For each flag, whether it is true on any rank."""
        if self.size == 1:
            return list(flags)
        counts = torch.tensor(flags, dtype=torch.float32, device=self.device)
        dist.all_reduce(counts)
        return [bool(count) for count in counts.tolist()]

    @contextmanager
    def only_main_warns(self) -> Iterator[None]:
        """A context in which only rank 0 shows warnings."""
        if self.is_main:
            yield
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield


def launch(devices: Devices = "auto", num_nodes: int = 1, strategy: str = "auto", device: str = "auto") -> Ranks:
    """Start the processes of a run, or join those that have been started already.

    `devices=4` starts the running script three more times with the same arguments. Each process reaches this call, and
    they continue together. Under `torchrun` nothing is started. Repeated calls return the same processes.

    Args:
        devices: Number of processes on each machine, one per device. "auto": those that `torchrun` has started, or a
            single one.
        num_nodes: Number of machines. Each needs MASTER_ADDR, MASTER_PORT and NODE_RANK in its environment, unless
            `torchrun` or a scheduler sets them.
        strategy: "auto" or "ddp": every process holds the whole pair and takes a shard of each batch.
        device: "auto", "cuda" or "cpu".

    Raises:
        ValueError: If an argument is out of its range, if there are too few GPUs, or if no script is running that could
            be started again.
    """
    if devices != "auto" and not _is_number(devices):
        raise ValueError(f"devices must be 'auto' or a whole number from 1, got {shown(devices)}")
    if not _is_number(num_nodes):
        raise ValueError(f"num_nodes must be a whole number from 1, got {shown(num_nodes)}")
    instance("device", device, (str, torch.device), "the name of a device")
    if strategy not in ("auto", "ddp"):
        raise ValueError(
            f"strategy must be 'auto' or 'ddp', got {shown(strategy)}: Pyro registers whole parameters, so strategies "
            "that shard parameters cannot be used"
        )
    if devices == 1 and num_nodes == 1:
        return Ranks()
    if dist.is_available() and dist.is_initialized():
        return _existing_group(devices, num_nodes)
    if devices == "auto":
        if not dist.is_torchelastic_launched():
            return Ranks() if num_nodes == 1 else _start(1, num_nodes, str(device))
        return _start(number("LOCAL_WORLD_SIZE"), number("GROUP_WORLD_SIZE"), str(device))
    return _start(devices, num_nodes, str(device))


MOST = 2**16  # processes on a machine, and machines


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MOST


_process: dict[str, torch.device] = {}  # the device of this process, which torch.distributed does not store


def _existing_group(devices: Devices, num_nodes: int) -> Ranks:
    """The processes of the group that torch.distributed has joined."""
    size = dist.get_world_size()
    if devices != "auto" and devices * num_nodes != size:
        raise ValueError(
            f"devices={devices} on {num_nodes} node{'s' * (num_nodes > 1)} were requested, but this process is one of "
            f"{size} that run together: use devices='auto'"
        )
    device = _process.get("device")
    if device is None:
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        device = torch.device("cuda", local_rank) if dist.get_backend() == "nccl" else torch.device("cpu")
    return Ranks(dist.get_rank(), size, device)


def _start(devices: int, num_nodes: int, device: str) -> Ranks:
    main = sys.modules["__main__"]
    is_started = "LOCAL_RANK" in os.environ  # by a launcher, or by the main process
    if is_started:
        check_environment(devices, num_nodes)
    elif getattr(main, "__spec__", None) is None and not os.path.exists(sys.argv[0]):
        raise ValueError(
            f"devices={devices} starts the running script again for each device, but no script is running here: put "
            "the training into a file, or start it with torchrun"
        )
    from lightning_fabric import Fabric  # takes seconds to import, and few runs need it

    accelerator = {"auto": "auto", "cpu": "cpu"}.get(device, "cuda")
    if accelerator == "auto":  # fabric's own "auto" could choose an MPS or a TPU device
        accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    for logger in ("lightning_fabric", "lightning.fabric"):  # they print the address of each rank
        logging.getLogger(logger).setLevel(logging.WARNING)
    try:
        with rendezvous(num_nodes, is_started):
            fabric = Fabric(
                accelerator=accelerator, devices=devices, num_nodes=num_nodes, strategy=strategy_for(num_nodes)
            )
            fabric.launch()
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{devices} processes on {accelerator} cannot be started: {error}") from error
    if fabric.world_size != devices * num_nodes:
        raise ValueError(
            f"devices={devices} on {num_nodes} node{'s' * (num_nodes > 1)} were requested, but {fabric.world_size} "
            "processes were started: use devices='auto'"
        )
    _process["device"] = fabric.device
    atexit.register(_destroy_group)
    return Ranks(fabric.global_rank, fabric.world_size, fabric.device)


def _destroy_group() -> None:
    """End the communication at exit: gloo's threads must not outlive the interpreter.

    Gloo can wait for minutes here for a process that ended first, so this goes on without it after a while.
    """
    if dist.is_initialized():
        ending = threading.Thread(target=dist.destroy_process_group, daemon=True)
        ending.start()
        ending.join(SECONDS_TO_END)


def _by_dtype(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    groups: dict[torch.dtype, list[Tensor]] = {}
    for t in tensors:
        groups.setdefault(t.dtype, []).append(t)
    return list(groups.values())


def _flatten(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.detach().reshape(-1) for t in tensors])


def _unflatten(flat: Tensor, tensors: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for t, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            t.copy_(part.view_as(t))
