"""The meeting point of processes on one machine: it listens on the loopback interface alone.

torch's own store listens on all interfaces, without a password: whoever reaches the machine could read and change what
the processes agree on.
"""

from __future__ import annotations

import os
import socket
from typing import Any

import torch.distributed as dist
from lightning_fabric.plugins.environments import LightningEnvironment
from lightning_fabric.strategies import DDPStrategy

__all__ = ["OnLoopback"]

ADDRESS = "127.0.0.1"
_PORT = "PYRO_VAE_PORT"  # tells the processes that rank 0 starts where to find it
_TRANSPORTS = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")  # what tensors are sent through listens, too


class OnLoopback(DDPStrategy):
    """fabric's strategy for processes that rank 0 starts on its own machine; under other launchers, fabric's own."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._listening: socket.socket | None = None
        self._sees_port = _PORT in os.environ and "LOCAL_RANK" in os.environ

    def listen(self) -> None:
        """Open the port, before the other processes are started: they inherit its number."""
        environment = self.cluster_environment
        if isinstance(environment, LightningEnvironment) and not environment.creates_processes_externally:
            self._listening = socket.create_server((ADDRESS, 0))
            os.environ[_PORT] = str(self._listening.getsockname()[1])
            self._sees_port = True

    def setup_environment(self) -> None:
        """Join the other processes."""
        if self._sees_port:
            self._join()
        super().setup_environment()  # joins them if that is not done

    def _join(self) -> None:
        names = [name for _, name in socket.if_nameindex() if name in ("lo", "lo0")]
        for variable in _TRANSPORTS:
            if names:
                os.environ.setdefault(variable, names[0])
        listening = None if self._listening is None else self._listening.detach()  # the store closes it
        # the variable has served, and must not be found by programs that are started later
        port = int(os.environ.pop(_PORT))
        store = dist.TCPStore(
            ADDRESS, port, self.num_processes, is_master=listening is not None, master_listen_fd=listening
        )
        is_gpu = self.root_device.type == "cuda"
        if self.accelerator is not None:
            self.accelerator.setup_device(self.root_device)
        dist.init_process_group(
            "nccl" if is_gpu else "gloo",
            store=store,
            rank=self.local_rank,
            world_size=self.num_processes,
            device_id=self.root_device if is_gpu else None,
        )
