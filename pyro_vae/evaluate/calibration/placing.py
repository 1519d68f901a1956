"""Which argument of a pair each observed site's value is, element by element."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from pyro_vae.pair.masks import kept_elements
from pyro_vae.pair.protocol import Data

__all__ = ["Placement", "observed_places", "with_values"]

Site = dict[str, Any]


@dataclass(frozen=True)
class Placement:
    """Where the value of an observed site stands among the arguments.

    Attributes:
        site: The site.
        leaf: Which tensor among the arguments, counted as pytrees are.
        positions: Which of its elements each element of the value is, of the value's shape; None for a tensor of the
            same number of elements in the same order.
    """

    site: str
    leaf: int
    positions: Tensor | None


def observed_places(observed: Mapping[str, Site], data: Data) -> list[Placement]:
    """Find the value of each observed site among the arguments.

    A value that is a view of an argument (the argument itself, reshaped, a slice of it) is found by its memory, a copy
    of a whole argument by its values.

    Args:
        observed: The observed sites of a run on these arguments under `poutine.uncondition`, which keeps what the
            model observes.
        data: The arguments.

    Raises:
        ValueError: For a site whose value is no argument.
    """
    leaves = tree_flatten(data)[0]
    tensors = {i: leaf for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.numel()}
    found = []
    for name, site in observed.items():
        value = torch.as_tensor(site["infer"]["obs"])
        place = next((p for i, leaf in tensors.items() if (p := _as_view(name, value, i, leaf)) is not None), None)
        place = place or next((Placement(name, i, None) for i, leaf in tensors.items() if _same(value, leaf)), None)
        if place is None:
            raise ValueError(
                f"the value of the observed site {name!r}, of shape {tuple(value.shape)}, is none of the arguments "
                f"nor a part of one, so data drawn from the model cannot take its place: {_advice(name, site)}"
            )
        found.append(place)
    return found


def _advice(name: str, site: Site) -> str:
    for frame in site["cond_indep_stack"]:
        if frame.vectorized and frame.full_size not in (None, frame.size):
            return (
                f"the plate {frame.name!r} picks rows inside the model; pass these rows as the data, and write "
                f"pyro.plate({frame.name!r}, {frame.full_size}, subsample_size=len(x))"
            )
    return (
        f"give the model what it observes as an argument and observe that as it is, pyro.sample({name!r}, ..., obs=x); "
        "transform the data before the call, and not in the model"
    )


def with_values(data: Data, places: list[Placement], drawn: Mapping[str, Site]) -> Data:
    """The arguments with the drawn values of the observed sites; elements that a mask leaves out stay as they are."""
    leaves, spec = tree_flatten(data)
    leaves = list(leaves)
    for place in places:
        site, old = drawn[place.site], leaves[place.leaf]
        value, keep = site["value"], kept_elements(site)
        shape = value.shape if place.positions is None else place.positions.shape
        keep = keep.expand(value.shape).reshape(-1)
        new = old.clone(memory_format=torch.contiguous_format)
        where = slice(None) if place.positions is None else place.positions.reshape(-1)
        before = new.view(-1)[where]
        if not before.numel() == shape.numel() == value.numel():
            raise ValueError(_other_size(place.site, site, old.shape))
        new.view(-1)[where] = torch.where(keep, value.reshape(-1).to(old.dtype), before)
        leaves[place.leaf] = new
    result: Data = tree_unflatten(leaves, spec)
    return result


def _other_size(name: str, site: Site, shape: torch.Size) -> str:
    """What to say of a site that draws other numbers of values than the argument that it observes."""
    plates = ", ".join(f"{f.name!r} of size {f.size}" for f in site["cond_indep_stack"] if f.vectorized)
    return (
        f"the observed site {name!r} draws values of shape {tuple(site['value'].shape)}, but the argument that it "
        f"observes has shape {tuple(shape)}{f', in the plates {plates}' if plates else ''}: write the sizes of plates "
        "by the data, such as pyro.plate('data', len(x)), or give as many data as the plate has"
    )


def _as_view(name: str, value: Tensor, index: int, leaf: Tensor) -> Placement | None:
    """The placement of a value that shares its memory with an argument."""
    shares = value.untyped_storage().data_ptr() == leaf.untyped_storage().data_ptr()
    if not shares or value.dtype != leaf.dtype or value.numel() > leaf.numel():
        return None
    size = leaf.untyped_storage().nbytes() // leaf.element_size()
    position = torch.full((size,), -1, dtype=torch.long)  # of each number in memory, its place in the argument
    own = position.as_strided(leaf.shape, leaf.stride(), leaf.storage_offset())
    own.copy_(torch.arange(leaf.numel()).view(leaf.shape))
    positions = position.as_strided(value.shape, value.stride(), value.storage_offset()).to(leaf.device)
    if bool((positions < 0).any()) or len(positions.unique()) < positions.numel():
        return None  # beyond the argument, or elements that are observed twice
    return Placement(name, index, positions)


def _same(value: Tensor, leaf: Tensor) -> bool:
    """Whether a value is a copy of a whole argument; where values are missing, of the rest."""
    if value.numel() != leaf.numel() or value.shape[:1] != leaf.shape[:1]:
        return False
    a, b = value.reshape(-1).double(), leaf.reshape(-1).double()
    known = ~(a.isnan() | b.isnan())
    return bool((a[known] == b[known]).all())
