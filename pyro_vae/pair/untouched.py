"""Runs of a pair that leave no trace: running averages and Pyro's parameter store are afterwards as they were."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from pyro_vae.pair.networks import modules_of

__all__ = ["kept_buffers", "kept_store"]


@contextmanager
def kept_buffers(*programs: Callable[..., Any], networks: Iterable[nn.Module] = ()) -> Iterator[None]:
    """Give the buffers of networks that train their values back: running averages, codebooks, counters.

    Args:
        *programs: Whose networks.
        networks: Further ones.
    """
    nets = [net for net in [*modules_of(*programs).values(), *networks] if any(m.training for m in net.modules())]
    before = [(buffer, buffer.detach().clone()) for net in nets for buffer in net.buffers()]
    try:
        yield
    finally:
        _give_back(before)


@contextmanager
def kept_store() -> Iterator[None]:
    """Give Pyro's parameter store its parameters and their values back; those made inside are forgotten."""
    store = pyro.get_param_store()
    state = store.get_state()
    before = [(param, param.detach().clone()) for param in state["params"].values()]
    try:
        with store.scope(state.copy()):  # the same tensors under the same names
            yield
    finally:
        _give_back(before)
        list(store.values())  # a parameter at hand knows its unconstrained value again


def _give_back(values: list[tuple[Tensor, Tensor]]) -> None:
    with torch.no_grad():
        for tensor, value in values:
            if not torch.equal(tensor, value):
                tensor.copy_(value)
