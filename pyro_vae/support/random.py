"""The states of all random generators that a training may draw from."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from pyro_vae.support.snapshots import Snapshot

__all__ = ["fork_rng", "rng_state", "set_rng_state"]


def rng_state() -> Snapshot:
    """The global generators of torch (CPU and GPUs), NumPy and Python."""
    tensors: dict[str, Tensor] = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        tensors |= {f"cuda{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    version, internal, gauss = random.getstate()
    kind, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002 - a pair's loader may draw from it
    numpy = [kind, np.asarray(keys).tolist(), *rest]
    return Snapshot(tensors, {"python": [version, list(internal), gauss], "numpy": numpy})


def set_rng_state(state: Snapshot) -> None:
    """Set the generators to a state that `rng_state` gave; that of a GPU which is not here is left out."""
    torch.set_rng_state(state.tensors["cpu"])
    if torch.cuda.is_initialized():
        for i in range(torch.cuda.device_count()):
            if f"cuda{i}" in state.tensors:
                torch.cuda.set_rng_state(state.tensors[f"cuda{i}"], i)
    version, internal, gauss = state.values["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, *rest = state.values["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))  # noqa: NPY002


@contextmanager
def fork_rng(seed: int | None = None) -> Iterator[None]:
    """Run with torch's generators restored afterwards, seeded with `seed` inside if it is given."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        if seed is not None:
            torch.manual_seed(seed)
        yield
