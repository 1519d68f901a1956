"""The masks of latents: a guide needs those of the model, for data that the model has not run on yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyro_vae.pair.protocol import Program
from pyro_vae.pair.running import traced
from pyro_vae.pair.tracing import masks_within

__all__ = ["LatentMask", "mask_of_latent", "masks_of_run"]


@dataclass(frozen=True)
class LatentMask:
    """Where the mask of a latent is found.

    Attributes:
        place: The boolean argument that holds it; None if the model has to run for it.
        column: The column of that argument.
        shape: Its shape for one datum.
    """

    place: str | None = None
    column: int | None = None
    shape: tuple[int, ...] = ()

    def read(self, data: Mapping[str, Tensor]) -> Any:
        """The mask, from the arguments."""
        assert self.place is not None
        leaf = data[self.place]
        return (leaf if self.column is None else leaf[:, self.column]).reshape(-1, *self.shape)


def mask_of_latent(name: str, runs: list[Any], data: Mapping[str, Tensor], n: int) -> LatentMask | None:
    """Where the mask of a latent is found; None for a latent without one.

    Args:
        name: The latent.
        runs: It in several runs of the model.
        data: The tensors among the arguments, by place.
        n: Number of data.

    Raises:
        ValueError: If the mask depends on other latents, or masks parts of one value.
    """
    mask = _mask(runs[0])
    if mask is None:
        return None
    if masks_within(runs[0]["fn"]):
        raise ValueError(
            f"the latent site {name!r} has a mask in its distribution: put the mask around the statement, "
            "`with pyro.poutine.mask(mask=mask):`, where the guide can have it, too"
        )
    if any(not torch.equal(_mask(run), mask) for run in runs[1:]):
        raise ValueError(
            f"the mask of the latent site {name!r} depends on other latents, so a guide made from the model cannot "
            "know it: write this guide by hand"
        )
    if mask.dim() == 0 or len(mask) != n or bool(mask.all()):  # nothing to tell it by
        return LatentMask()
    for place, leaf in data.items():
        if leaf.dtype != torch.bool or len(leaf) != n:
            continue
        if leaf.numel() == mask.numel() and torch.equal(leaf.reshape(mask.shape), mask):
            return LatentMask(place, None, tuple(mask.shape[1:]))
        for column in range(leaf.shape[1] if leaf.dim() == 2 else 0):
            same = leaf[:, column]
            if same.numel() == mask.numel() and torch.equal(same.reshape(mask.shape), mask):
                return LatentMask(place, column, tuple(mask.shape[1:]))
    return LatentMask()


def _mask(site: Any) -> Any:
    """The mask of a handler around a site, as a tensor; with those in its distribution only, a tensor, too."""
    mask = site["mask"]
    if mask is None or mask is True:
        return torch.tensor(False) if masks_within(site["fn"]) else None
    return torch.as_tensor(mask)


def masks_of_run(model: Program, args: tuple[Any, ...], kwargs: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """The masks of some latents, from a run of the model that nothing outside sees."""
    with torch.no_grad(), poutine.block():
        trace = traced(model, args, kwargs)
    return {name: trace.nodes[name]["mask"] for name in names}
