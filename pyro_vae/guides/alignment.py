"""Plates of a guide, and values brought from the plates of one site to those of another."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyro
import torch
from torch import Tensor

from pyro_vae.pair.subsampling import plate_of_rows

__all__ = ["align", "broadcast_cat", "enter_plates"]


def enter_plates(
    frames: Iterable[Any], data_plate: str | None, n: int, full_size: int | None, subsample: int | None
) -> tuple[dict[str, Any], Tensor | None]:
    """The plates of the guide, and the rows of the data that they choose.

    Args:
        frames: The plates in a trace of the model.
        data_plate: Name of the plate over the data.
        n: Number of data that came.
        full_size: The number of all data, where the model knows it.
        subsample: The size of the subsample, where the model takes one of the data itself.

    Returns:
        The plates by name; and, where the model takes a subsample of the data itself, its indices, else None.
    """
    plates, rows = {}, None
    for f in frames:
        full = f.size if f.full_size is None else f.full_size
        if f.name != data_plate:
            plates[f.name] = pyro.plate(f.name, full, subsample_size=f.size, dim=f.dim)
        elif subsample is not None:
            plates[f.name] = pyro.plate(f.name, n, subsample_size=min(n, subsample), dim=f.dim)
            with plates[f.name] as rows:
                pass
        else:
            plates[f.name] = plate_of_rows(f.name, n, full_size or n, f.dim)
    return plates, rows


def align(value: Tensor, nesting: int, extra: Mapping[int, int]) -> Tensor:
    """A site's value as features for a site that lacks some of its plates.

    Args:
        value: `(*batch, F)`.
        nesting: Number of batch dimensions of the result, besides those of particles and enumeration.
        extra: The plates that the other site lacks, whose elements become features: sizes by (negative) dimension.

    Returns:
        `(*, batch, F)`, with size 1 where a plate became features.
    """
    flat = value
    if flat.dim() - 1 < nesting:
        flat = flat.reshape((1,) * (nesting - flat.dim() + 1) + flat.shape)
    for dim, size in sorted(extra.items()):
        axis = dim - 1
        if flat.shape[axis] != size:
            raise ValueError(
                f"a latent has {flat.shape[axis]} values along a plate of {size} elements, all of which a latent "
                "outside that plate depends on, so it cannot be enumerated: choose an estimator that samples it"
            )
        flat = flat.movedim(axis, -2).flatten(-2).unsqueeze(axis)
    return flat


def broadcast_cat(parts: Sequence[Tensor]) -> Tensor | None:
    """Features side by side, `(*, F)`, of tensors whose leading dimensions broadcast."""
    if not parts:
        return None
    if len(parts) == 1:
        return parts[0]
    lead = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
    return torch.cat([part.expand(*lead, part.shape[-1]) for part in parts], -1)
