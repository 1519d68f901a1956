"""The losses of an epoch in a constant amount of memory: an epoch of an endless loader has millions of steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_vae.support.snapshots import Snapshot

__all__ = ["EpochLosses"]

AT_MOST = 256  # losses that are stored one by one


class EpochLosses:
    """The number and the mean of an epoch's losses, in nats per datum.

    The latest losses are stored as they are, so that a step need not wait for the device; earlier ones as their sum.
    """

    def __init__(self) -> None:
        self._latest: list[Tensor] = []
        self._number, self._sum = 0, 0.0  # of the earlier ones

    def __len__(self) -> int:
        return self._number + len(self._latest)

    def add(self, loss: Tensor) -> None:
        """Count the loss of a step."""
        self._latest.append(loss)
        if len(self._latest) == AT_MOST:
            self._sum += float(torch.stack(self._latest).cpu().double().sum())
            self._number += AT_MOST
            self._latest = []

    def mean(self) -> float:
        """The mean over all steps."""
        if not self._number:
            return float(torch.stack(self._latest).mean())
        latest = float(torch.stack(self._latest).cpu().double().sum()) if self._latest else 0.0
        return (self._sum + latest) / len(self)

    def add_to(self, snapshot: Snapshot) -> None:
        """Store the losses in a snapshot."""
        snapshot.tensors["losses"] = torch.stack(self._latest) if self._latest else torch.zeros(0)
        snapshot.values["earlier_losses"] = [self._number, self._sum]

    @staticmethod
    def of(snapshot: Snapshot, device: Any) -> EpochLosses:
        """The losses that a snapshot holds; none at the start of an epoch."""
        losses = EpochLosses()
        if "losses" in snapshot.tensors:
            losses._latest = list(snapshot.tensors["losses"].to(device).unbind())
            losses._number, losses._sum = snapshot.values.get("earlier_losses", (0, 0.0))
        return losses
