"""Where a pair runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from pyro_vae.evaluate.modules import modules_of

__all__ = ["choose_device"]


def choose_device(name: str, *programs: Callable[..., Any]) -> torch.device:
    """Resolve a device name and move the networks behind `programs` there.

    "auto" is a GPU if there is one and the networks can be found, else the device of the networks, else the CPU.

    Raises
    ------
    ValueError
        If the device is not known or not there.
    """
    nets = list(modules_of(*programs).values())
    if name == "auto":
        here = [p.device for net in nets for p in net.parameters()]
        if nets and torch.cuda.is_available():
            device = torch.device("cuda")
        else:
            device = here[0] if here else torch.device("cpu")
    else:
        try:
            device = torch.device(name)
        except RuntimeError as error:
            raise ValueError(f"unknown device {name!r}: use 'auto', 'cpu', 'cuda' or 'cuda:1'") from error
        if device.type == "cuda" and device.index is not None and device.index >= torch.cuda.device_count():
            raise ValueError(f"device {name!r} was asked for, but there are {torch.cuda.device_count()} GPUs")
        if device.type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"device {name!r} was asked for, but no GPU can be used here: use device='cpu' or 'auto'")
    for net in nets:
        net.to(device)
    return device
