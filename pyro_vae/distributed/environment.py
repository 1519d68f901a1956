"""How processes find each other: what a launcher has put into the environment, and a file for those of one machine.

Processes that `launch` starts on one machine meet in a file of a private folder, and their connections use the loopback
interface: nobody else can reach them.
"""

from __future__ import annotations

import atexit
import os
import shutil
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch.distributed as dist

__all__ = ["check_environment", "number", "rendezvous", "strategy_for"]

STORE = "PYRO_VAE_STORE"  # the file in which the processes of one machine meet
PATIENCE = 20.0  # seconds of waiting for other processes before a message says so
_OF_A_LAUNCHER = ("LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", STORE)


def number(name: str) -> int:
    """A whole number in the environment.

    Raises:
        ValueError: If there is none of that name.
    """
    text = os.environ.get(name, "")
    if not text.isdigit():
        raise ValueError(f"the environment has {name}={text!r}, expected a whole number: {_hint(name)}")
    return int(text)


def check_environment(devices: int, num_nodes: int) -> None:
    """Refuse an environment in which this process would wait for others that nobody has started.

    Raises:
        ValueError: If LOCAL_RANK does not come from a launcher of this many processes.
    """
    rank = number("LOCAL_RANK")
    if STORE in os.environ:
        if not Path(os.environ[STORE]).parent.is_dir():
            raise ValueError(f"the run that set LOCAL_RANK={rank} has ended: {_hint()}")
    elif missing := [name for name in ("MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]:
        raise ValueError(f"the environment has LOCAL_RANK={rank}, but no {' and no '.join(missing)}: {_hint()}")
    if rank >= devices:
        raise ValueError(f"the environment has LOCAL_RANK={rank}, which devices={devices} does not allow: {_hint()}")
    if "WORLD_SIZE" in os.environ and (size := number("WORLD_SIZE")) != devices * num_nodes:
        raise ValueError(
            f"devices={devices} on {num_nodes} node{'s' * (num_nodes > 1)} were requested, but the environment has "
            f"WORLD_SIZE={size}: {_hint()}"
        )


def _hint(name: str = "LOCAL_RANK") -> str:
    return (
        "if no launcher (torchrun, for example) has started this process, the variables are left over from another "
        f"run, so unset {name}"
    )


@contextmanager
def rendezvous(num_nodes: int, is_started: bool) -> Iterator[None]:
    """A context in which the processes of a run are started and meet."""
    if is_started:  # by another process, which may be missing
        with _said_if_waiting():
            yield
        return
    if num_nodes > 1:
        yield
        return
    before = {name: os.environ.pop(name) for name in _OF_A_LAUNCHER if name in os.environ}
    folder = tempfile.mkdtemp(prefix="pyro_vae_")  # which only this user can enter
    atexit.register(_remove, folder, os.getpid())  # until then, connections may still be made
    os.environ[STORE] = os.path.join(folder, "store")
    try:
        yield
    finally:
        # programs that this process starts do not belong to the run
        for name in _OF_A_LAUNCHER:
            os.environ.pop(name, None)
        os.environ.update(before)


def _remove(folder: str, process: int) -> None:
    if os.getpid() == process:  # and not one that it has forked
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _said_if_waiting() -> Iterator[None]:
    def say() -> None:
        with suppress(OSError, ValueError):
            where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
            sys.stderr.write(f"process {os.environ.get('LOCAL_RANK')} waits for the others at {where}: {_hint()}\n")

    timer = threading.Timer(PATIENCE, say)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def strategy_for(num_nodes: int) -> Any:
    """The strategy of lightning-fabric; on one machine, one whose processes meet in the file."""
    from lightning_fabric.plugins.environments import LightningEnvironment
    from lightning_fabric.strategies import DDPStrategy

    class OnOneMachine(DDPStrategy):
        """Processes that meet in a file, unless an external launcher has another place for them."""

        def _setup_distributed(self) -> None:
            path = os.environ.get(STORE)
            if path is None or type(self.cluster_environment) is not LightningEnvironment:
                super()._setup_distributed()
                return
            self._set_world_ranks()
            self._process_group_backend = backend = self._get_process_group_backend()
            device = None if self.root_device.type == "cpu" else self.root_device
            _use_loopback()
            store = dist.FileStore(path, self.cluster_environment.world_size())
            dist.init_process_group(
                backend,
                store=store,
                rank=self.cluster_environment.global_rank(),
                world_size=self.cluster_environment.world_size(),
                timeout=self._timeout,
                device_id=device,
            )

    return OnOneMachine() if num_nodes == 1 else "ddp"


def _use_loopback() -> None:
    """Let gloo and NCCL connect over the loopback interface only, unless the user has chosen another one."""
    names = [name for _, name in socket.if_nameindex()] if hasattr(socket, "if_nameindex") else []
    for loopback in ("lo", "lo0"):
        if loopback in names:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
            os.environ.setdefault("NCCL_SOCKET_IFNAME", loopback)
