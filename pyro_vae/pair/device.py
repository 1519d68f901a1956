"""The device that a pair runs on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from pyro_vae.pair.networks import modules_of

__all__ = ["choose_device", "networks_without_values"]


def choose_device(name: str, *programs: Callable[..., Any] | None) -> torch.device:
    """Resolve a device name and move the networks behind `programs` there.

    "auto" is a GPU if there is one and the networks can be found, else the device of the networks, else the CPU.

    Raises:
        ValueError: If the device cannot be used on this machine, or a network is on the meta device.
    """
    given = [program for program in programs if program is not None]
    without = networks_without_values(*given)
    if without:
        raise ValueError(
            f"the network `{without[0]}` is on the device 'meta', which has shapes and no values: "
            f"`{without[0]}.to_empty(device='cpu')`, and initialize its weights"
        )
    nets = list(modules_of(*given).values())
    if name == "auto":
        current = [p.device for net in nets for p in net.parameters()]
        if nets and torch.cuda.is_available():
            device = torch.device("cuda")
        else:
            device = current[0] if current else torch.device("cpu")
    else:
        try:
            device = torch.device(name)
            torch.empty(1, device=device)
        except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
            usable = ["'auto'", "'cpu'", *(f"'cuda:{i}'" for i in range(torch.cuda.device_count()))]
            raise ValueError(f"device {name!r} cannot be used here: use one of {', '.join(usable)}") from error
    for net in nets:
        net.to(device)
    return device


def networks_without_values(*programs: Callable[..., Any]) -> list[str]:
    """The names of the networks behind some programs that are on torch's meta device."""
    return [name for name, net in modules_of(*programs).items() if any(p.is_meta for p in net.parameters())]
