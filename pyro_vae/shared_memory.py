"""Sums over the processes of one machine, through memory that they share.

`torch.distributed` sends what two processes of one machine tell each other through the network's software, which takes
longer for the gradients of a small VAE than to compute them. Here every process writes its summands where the others
can read them; they only wait for each other through sockets, which notice when a process has ended.
"""

from __future__ import annotations

import mmap
import os
import socket
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from itertools import accumulate, pairwise

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["SharedMemory", "connect"]

WAIT = 1800.0  # seconds for the slowest process, as torch.distributed has it
_PAGE = 4096

Places = list[list[Tensor]]  # of each rank, of each tensor


def connect(rank: int, size: int) -> SharedMemory | None:
    """Join the other processes of the group, if all are on this machine and can share memory; else None, on all.

    Collective: each process calls it.
    """
    able = hasattr(os, "memfd_create") and hasattr(socket, "send_fds")  # Linux
    own: socket.socket | None = None
    with ExitStack() as until_all_are_in:
        box: list[str | None] = [None]
        if rank == 0 and able:
            with suppress(OSError):  # no folder for temporary files, or one with too long a name
                folder = until_all_are_in.enter_context(tempfile.TemporaryDirectory(prefix="pyro_vae_"))
                own = until_all_are_in.enter_context(_socket())
                own.bind(f"{folder}/door")
                own.listen(size)
                box = [f"{folder}/door"]
        dist.broadcast_object_list(box, src=0)
        place = box[0]
        if rank > 0 and able and place is not None:
            with suppress(OSError):  # on another machine there is no such place
                knocking = _socket()
                knocking.connect(place)
                own = knocking
        agreed = torch.tensor([float(place is not None and own is not None)])
        dist.all_reduce(agreed, op=dist.ReduceOp.MIN)
        if own is None or not agreed.item():
            return None
        return SharedMemory(rank, size, [own] if rank > 0 else [_let_in(own) for _ in range(size - 1)])


def _socket() -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    made.settimeout(WAIT)
    return made


def _let_in(door: socket.socket) -> socket.socket:
    peer, _ = door.accept()
    peer.settimeout(WAIT)
    return peer


class SharedMemory:
    """What one process shares with the others.

    Args:
        rank, size: The number of this process, and how many there are.
        peers: Connected sockets: of rank 0 to all others, of the others to rank 0.
    """

    def __init__(self, rank: int, size: int, peers: Sequence[socket.socket]) -> None:
        self._rank, self._size, self._peers = rank, size, list(peers)
        self._room = 0  # bytes for the summands of one rank
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._places: dict[tuple[object, ...], tuple[Places, Places]] = {}
        self._turn = 0

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors of one dtype on the CPU by their sums over all ranks, in the order of the ranks.

        Raises:
            RuntimeError: If another process has ended.
        """
        tensors = list(tensors)
        if not any(t.numel() for t in tensors):
            return
        with torch.no_grad():
            # two sets of places in turn: while some still read one of them, others may fill the other
            self._turn = 1 - self._turn
            places = self._where(tensors)[self._turn]
            torch._foreach_copy_(places[self._rank], tensors)
            self._meet()
            if self._size == 2:  # the same to the bit, whichever comes first
                torch._foreach_add_(tensors, places[1 - self._rank])
                return
            torch._foreach_copy_(tensors, places[0])
            for others in places[1:]:
                torch._foreach_add_(tensors, others)

    def _where(self, tensors: Sequence[Tensor]) -> tuple[Places, Places]:
        """The places of these tensors: of each turn, of each rank. Fewer or smaller tensors use the same memory."""
        key = (tensors[0].dtype, *(t.shape for t in tensors))
        if key not in self._places:
            item = tensors[0].element_size()
            ends = [0, *accumulate(t.numel() * item for t in tensors)]
            if ends[-1] > self._room:
                self._grow(ends[-1])
            spans = list(pairwise(ends))
            slots: Places = [
                [slot[i:j].view(t.dtype).view(t.shape) for t, (i, j) in zip(tensors, spans, strict=True)]
                for slot in self._memory.split(self._room)
            ]
            self._places[key] = slots[: self._size], slots[self._size :]
        return self._places[key]

    def _grow(self, room: int) -> None:
        """Share new memory; rank 0 makes it, and the others get it through their sockets."""
        self._room = -(-room // _PAGE) * _PAGE
        self._places.clear()
        total = 2 * self._size * self._room
        if self._rank == 0:
            handle = os.memfd_create("pyro_vae")
            os.ftruncate(handle, total)
            for peer in self._peers:
                socket.send_fds(peer, [b"m"], [handle])
        else:
            word, handles, _, _ = socket.recv_fds(self._peers[0], 1, 1)
            _heard(word)
            (handle,) = handles
        try:
            self._memory = torch.frombuffer(mmap.mmap(handle, total), dtype=torch.uint8)
        finally:
            os.close(handle)

    def _meet(self) -> None:
        """Wait until all ranks are here: rank 0 hears of all, then tells all."""
        try:
            if self._rank > 0:
                self._peers[0].send(b"h")
                _heard(self._peers[0].recv(1))
                return
            for peer in self._peers:
                _heard(peer.recv(1))
            for peer in self._peers:
                peer.send(b"h")
        except OSError as error:
            raise RuntimeError(_ENDED) from error


_ENDED = f"another process of this run has ended, or has not come within {WAIT:.0f} s: see what it printed"


def _heard(word: bytes) -> None:
    if not word:
        raise RuntimeError(_ENDED)
