"""Fresh pairs from seeds."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae.pair.networks import modules_of
from pyro_vae.pair.protocol import Program
from pyro_vae.support.random import fork_rng

__all__ = ["FreshPairs", "build_pair"]


def build_pair(build: Callable[[int], Any], seed: int) -> tuple[tuple[Program, Program], list[nn.Module]]:
    """The pair that `build(seed)` returns, and its networks."""
    with fork_rng(seed):
        pair = build(seed)
    if isinstance(pair, tuple) and len(pair) == 2:
        model, guide = pair
    elif hasattr(pair, "model") and hasattr(pair, "guide"):
        model, guide = pair.model, pair.guide
    else:
        raise TypeError(
            "build(seed) must return an object with model and guide, or a tuple (model, guide), got "
            f"{type(pair).__name__}"
        )
    programs = (model,) if guide is None else (model, guide)
    return (model, guide), list(modules_of(*programs).values())


class FreshPairs:
    """Checks that all runs with one seed begin with the same, untrained weights."""

    def __init__(self) -> None:
        self.used: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        self.by_seed: dict[int, list[Tensor]] = {}

    def __call__(self, seed: int, nets: list[nn.Module]) -> None:
        trained = [net for net in nets if any(p.requires_grad for p in net.parameters())]
        """Note the networks of a pair and their weights.

        Raises:
            ValueError: If a network is not fresh, or has other weights than at the first call with this seed.
        """
        if any(net in self.used for net in trained):
            raise ValueError(
                f"build({seed}) returned a network that an earlier run has trained: make all networks inside build"
            )
        self.used.update(trained)
        now = [p.detach().clone() for net in nets for p in net.parameters()]
        first = self.by_seed.setdefault(seed, now)
        if len(first) != len(now) or not all(torch.equal(a, b) for a, b in zip(first, now, strict=True)):
            raise ValueError(
                f"build({seed}) made different weights at its first and its second call: draw random numbers from "
                "torch's generator only, which is seeded before each call"
            )
