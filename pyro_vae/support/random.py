"""The random generators: their states, and the meaning of `seed`.

`seed` has one meaning in every public call. With None (the default everywhere) the noise comes from torch's global
generators and advances them: two calls differ, and `pyro.set_rng_seed` before the first makes both reproducible. With a
number the call draws all its noise from this seed and restores the generators afterwards: the same call gives the same
result, whatever ran before it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import numpy as np
import torch
from torch import Tensor

from pyro_vae.support.snapshots import Snapshot

__all__ = ["fork_rng", "rng_state", "seed_or_draw", "seeded", "set_rng_state"]


def rng_state() -> Snapshot:
    """The states of the global generators of torch (CPU and GPUs), NumPy and Python."""
    tensors: dict[str, Tensor] = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        tensors |= {f"cuda{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    version, internal, gauss = random.getstate()
    kind, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002 - a pair's loader may draw from it
    numpy = [kind, np.asarray(keys).tolist(), *rest]
    return Snapshot(tensors, {"python": [version, list(internal), gauss], "numpy": numpy})


def set_rng_state(state: Snapshot) -> None:
    """Restore the generators from the result of `rng_state`; the state of a GPU that this machine lacks is skipped."""
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
    """Restore torch's generators on exit; seed them with `seed` on entry if it is given."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        if seed is not None:
            torch.manual_seed(seed)
        yield


def seeded(seed: int | None) -> AbstractContextManager[None]:
    """A context whose noise follows from `seed`, as this module's docstring describes."""
    return nullcontext() if seed is None else fork_rng(seed)


def seed_or_draw(seed: int | None) -> int:
    """The seed itself; for None, a seed drawn from torch's generator."""
    return int(torch.randint(2**31, ())) if seed is None else seed
