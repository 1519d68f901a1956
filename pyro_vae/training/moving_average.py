"""The exponential moving average of the weights over the steps of a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from pyro_vae.support.snapshots import Snapshot
from pyro_vae.training.svi import SVI

__all__ = ["MovingAverage"]


class MovingAverage:
    r"""The average of the weights after each update, the latest with the largest weight.

    .. math:: a_t = \frac{1 - d}{1 - d^t} \sum_{s=1}^{t} d^{t - s} w_s

    The divisor makes the weights sum to one from the first update on, so the initial weights have no part in it
    (Kingma and Ba 2015, arXiv 1412.6980, section 3, for the same sum of gradients). It is of the parameters as they are
    optimized, unconstrained; the buffers of networks, such as the running averages of batch normalization, are those of
    the latest step.

    Args:
        svi: The `SVI` that takes the steps.
        decay: d; without it nothing is averaged, and `in_use` and `keep` change nothing.

    Attributes:
        updates: t, the number of updates so far.
    """

    def __init__(self, svi: SVI, decay: float | None) -> None:
        self._svi, self._decay = svi, decay
        self.updates = 0
        self._average: list[Tensor] = []  # in the order of the parameters; empty before the first update

    @property
    def is_kept(self) -> bool:
        """Whether there is an average to use."""
        return bool(self._average)

    @torch.no_grad()
    def update(self) -> None:
        """Add the current weights, after an update of them."""
        if self._decay is None:
            return
        self.updates += 1
        params = [p.detach() for p in self._svi.params.values()]
        # one that a branch of the pair has made in this step begins at its value
        self._average += [p.clone() for p in params[len(self._average) :]]
        share = (1 - self._decay) / (1 - self._decay**self.updates)
        torch._foreach_lerp_(self._average, params, share)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """A context in which the parameters are their averages; what is written to them in it is lost."""
        if not self.is_kept:
            yield
            return
        latest = [p.detach().clone() for p in self._svi.params.values()]
        self.keep()
        try:
            yield
        finally:
            _copy(list(self._svi.params.values()), latest)

    def keep(self) -> None:
        """Set the parameters to their averages."""
        _copy(list(self._svi.params.values()), self._average)

    def state(self) -> Snapshot:
        """The averages and their number, for `load`. The tensors are those of the run, not copies."""
        return Snapshot({f"{i:04d}": a for i, a in enumerate(self._average)}, {"updates": self.updates})

    def load(self, saved: Snapshot | None) -> None:
        """Restore a `state`, after the parameters were restored; None is that before the first update."""
        if saved is None:
            saved = Snapshot({}, {"updates": 0})
        self.updates = int(saved.values["updates"])
        params = list(self._svi.params.values())
        stored = [saved.tensors[name] for name in sorted(saved.tensors)]
        self._average = [a.to(p.detach(), copy=True) for a, p in zip(stored, params, strict=False)]


@torch.no_grad()
def _copy(params: list[Tensor], values: list[Tensor]) -> None:
    # a parameter that was found after the average was made stays as it is
    for param, value in zip(params, values, strict=False):
        param.copy_(value)
