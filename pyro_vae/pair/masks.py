"""Which elements of a site its masks leave in: those of `poutine.mask`, and those of `.mask` inside a distribution."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import Independent, MaskedDistribution
from torch import Tensor
from torch.distributions import Independent as TorchIndependent

__all__ = ["has_mask", "is_masked", "kept_elements", "unmasked"]

Site = dict[str, Any]


def kept_elements(site: Site) -> Tensor:
    """Whether each element of a site's value counts, boolean, of the value's shape or what it broadcasts to."""
    fn, value = site["fn"], site["value"]
    shape = torch.broadcast_shapes(fn.shape(), value.shape)
    keep = torch.ones(shape, dtype=torch.bool, device=value.device)
    if site["mask"] is not None:
        keep = keep & _wide(site["mask"], fn.event_dim, keep)
    while hasattr(fn, "base_dist"):
        if isinstance(fn, MaskedDistribution):
            keep = keep & _wide(fn._mask, fn.event_dim, keep)
        elif not isinstance(fn, TorchIndependent):
            break  # elements beyond a transform are others
        fn = fn.base_dist
    return keep


def is_masked(site: Site) -> bool:
    """Whether some element of a site is left out."""
    return has_mask(site) and not bool(kept_elements(site).all())


def has_mask(site: Site) -> bool:
    """Whether a site stands under a mask, whatever that leaves out."""
    return site["mask"] is not None or unmasked(site["fn"]) is not site["fn"]


def unmasked(fn: Any) -> Any:
    """A distribution without the masks inside it; the same object if it has none."""
    if isinstance(fn, MaskedDistribution):
        return unmasked(fn.base_dist)
    if isinstance(fn, TorchIndependent):
        base = unmasked(fn.base_dist)
        return fn if base is fn.base_dist else Independent(base, fn.reinterpreted_batch_ndims)
    return fn


def _wide(mask: Any, event_dim: int, like: Tensor) -> Tensor:
    mask = torch.as_tensor(mask, dtype=torch.bool, device=like.device)
    return mask.reshape(mask.shape + (1,) * event_dim)
