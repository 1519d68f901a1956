"""Several processes that do one piece of work: how they start, who takes which data, what they tell each other.

lightning-fabric starts them, or recognises who did (torchrun, SLURM and others); then they talk through
`torch.distributed`. A rank is one of the processes; rank 0 leads: it alone writes files and speaks.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["Devices", "Ranks", "launch"]

T = TypeVar("T")
Devices = int | Literal["auto"]


@dataclass(frozen=True)
class Ranks:
    """The processes that share a piece of work, as one of them sees them.

    All methods but `rows` are collective: each process calls them, in the same order.

    Attributes:
        rank, size: The number of this process, from 0, and how many there are.
        device: Where this process computes, None for the only one, which may choose.
    """

    rank: int = 0
    size: int = 1
    device: torch.device | None = None

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def rows(self, n: int) -> tuple[int, int, float]:
        """This rank's (start, stop) among `n` rows, and what the mean over these counts in the mean over all.

        Shares differ by at most one row. Of fewer rows than ranks, several ranks take the same one.
        """
        if n >= self.size:
            start, stop = self.rank * n // self.size, (self.rank + 1) * n // self.size
            return start, stop, (stop - start) / n
        row = self.rank % n
        return row, row + 1, 1 / n / len(range(row, self.size, n))

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors on this rank's device by their sums over all ranks, in one message a dtype."""
        if self.size == 1:
            return
        for group in _by_dtype(tensors):
            flat = _flat(group)
            dist.all_reduce(flat)
            _unflatten(flat, group)

    def copy_from_leader_(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors on this rank's device by those of rank 0, in one message a dtype."""
        if self.size > 1:
            for group in _by_dtype(tensors):
                flat = _flat(group)
                dist.broadcast(flat, src=0)
                _unflatten(flat, group)

    def sum_gradients(self, params: Iterable[Tensor], loss: Tensor) -> Tensor:
        """Sum the gradients of parameters over all ranks, in place, and a loss; returns the latter.

        A parameter to which this rank's share of the data gave no gradient gets one of zero: all ranks send the same.
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

    def from_leader(self, value: T) -> T:
        """What rank 0 passes; what others pass counts for nothing."""
        box = [value if self.leads else None]
        if self.size > 1:
            dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]  # type: ignore[return-value]

    def gather(self, value: T) -> list[T]:
        """What each rank passes, in their order, on every rank."""
        box: list[Any] = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(box, value)
        return box

    def any(self, *flags: bool) -> list[bool]:
        """For each flag, whether any rank has raised it."""
        if self.size == 1:
            return list(flags)
        raised = torch.tensor(flags, dtype=torch.float32, device=self.device)
        dist.all_reduce(raised)
        return [bool(count) for count in raised.tolist()]

    @contextmanager
    def speaking(self) -> Iterator[None]:
        """Within it, all ranks but the leader keep their warnings to themselves."""
        if self.leads:
            yield
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield


def launch(devices: Devices = "auto", num_nodes: int = 1, strategy: str = "auto", device: str = "auto") -> Ranks:
    """Start the processes of a run, or join those that have been started already.

    With `devices=4` the running script is started three times more, with the same arguments; each process comes to this
    call, and then they go on together. Under `torchrun` nothing is started. May be called again and again.

    Args:
        devices: Processes on each machine, one for each device; "auto" takes those that `torchrun` has started, and
            without it there is one.
        num_nodes: Machines. Each needs MASTER_ADDR, MASTER_PORT and NODE_RANK in its environment, unless `torchrun` or
            a scheduler sets them.
        strategy: "auto" or "ddp": every process has the whole pair and a share of each batch.
        device: "auto", "cuda" or "cpu".

    Raises:
        ValueError: If an argument is out of its range, if there are fewer GPUs, or if what runs is no script that
            could be started again.
    """
    if devices != "auto" and (not isinstance(devices, int) or isinstance(devices, bool) or devices < 1):
        raise ValueError(f"devices must be 'auto' or a whole number from 1, got {devices!r}")
    if not isinstance(num_nodes, int) or isinstance(num_nodes, bool) or num_nodes < 1:
        raise ValueError(f"num_nodes must be a whole number from 1, got {num_nodes!r}")
    if strategy not in ("auto", "ddp"):
        raise ValueError(
            f"strategy must be 'auto' or 'ddp', got {strategy!r}: Pyro registers whole parameters, which strategies "
            "that cut them in pieces do not have"
        )
    if devices == 1 and num_nodes == 1:
        return Ranks()
    if dist.is_available() and dist.is_initialized():
        return _present(devices, num_nodes)
    if devices == "auto":
        if not dist.is_torchelastic_launched():
            return Ranks() if num_nodes == 1 else _start(1, num_nodes, device)
        return _start(int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["GROUP_WORLD_SIZE"]), device)
    return _start(devices, num_nodes, device)


_here: dict[str, torch.device] = {}  # the device of this process, which torch.distributed does not keep


def _present(devices: Devices, num_nodes: int) -> Ranks:
    """The processes of the group that there is."""
    size = dist.get_world_size()
    if devices != "auto" and devices * num_nodes != size:
        raise ValueError(
            f"devices={devices} on {num_nodes} node{'s' * (num_nodes > 1)} are asked for, but this process is one of "
            f"{size} that run together: use devices='auto'"
        )
    device = _here.get("device")
    if device is None:
        local = int(os.environ.get("LOCAL_RANK", "0"))
        device = torch.device("cuda", local) if dist.get_backend() == "nccl" else torch.device("cpu")
    return Ranks(dist.get_rank(), size, device)


def _start(devices: int, num_nodes: int, device: str) -> Ranks:
    main = sys.modules["__main__"]
    started = "LOCAL_RANK" in os.environ  # by somebody else, or by the first process
    if not started and getattr(main, "__spec__", None) is None and not os.path.exists(sys.argv[0]):
        raise ValueError(
            f"devices={devices} starts the running script again for each device, but no script is running here: put "
            "the training into a file, or start it with torchrun"
        )
    from lightning_fabric import Fabric  # takes seconds to import, and few runs need it

    accelerator = {"auto": "auto", "cpu": "cpu"}.get(device, "cuda")
    if accelerator == "auto":  # of all kinds that fabric knows
        accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    for logger in ("lightning_fabric", "lightning.fabric"):  # the address of each rank is no news
        logging.getLogger(logger).setLevel(logging.WARNING)
    try:
        fabric = Fabric(accelerator=accelerator, devices=devices, num_nodes=num_nodes, strategy="ddp")
        fabric.launch()
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{devices} processes on {accelerator} cannot be started: {error}") from error
    if fabric.world_size != devices * num_nodes:
        raise ValueError(
            f"devices={devices} on {num_nodes} node{'s' * (num_nodes > 1)} are asked for, but {fabric.world_size} "
            "processes were started: use devices='auto'"
        )
    _here["device"] = fabric.device
    atexit.register(_leave)
    return Ranks(fabric.global_rank, fabric.world_size, fabric.device)


def _leave() -> None:
    """Take leave of the other processes: gloo's threads must not live on while this one ends."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _by_dtype(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    groups: dict[torch.dtype, list[Tensor]] = {}
    for t in tensors:
        groups.setdefault(t.dtype, []).append(t)
    return list(groups.values())


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.detach().reshape(-1) for t in tensors])


def _unflatten(flat: Tensor, tensors: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for t, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            t.copy_(part.view_as(t))
