"""The masks of one site: those of `poutine.mask`, and those of `.mask` inside a distribution."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Independent as TorchIndependent
from torch.distributions import transform_to

from pyro_vae.pair.bijections import base_constraint

__all__ = ["base_distribution", "filled_value", "has_mask", "is_masked", "kept_elements", "masks_within", "unmasked"]

Site = dict[str, Any]


def has_mask(site: Site) -> bool:
    """Whether a site stands under a mask, of a handler or of its distribution, whatever that leaves out."""
    return site["mask"] is not None or bool(masks_within(site["fn"]))


def masks_within(fn: Any) -> list[Any]:
    """The masks that a distribution holds, of `.mask(...)`, from the outside inwards."""
    result = []
    while isinstance(fn, TorchIndependent | dist.MaskedDistribution):
        if isinstance(fn, dist.MaskedDistribution):
            result.append(fn._mask)
        fn = fn.base_dist
    return result


def base_distribution(fn: Any) -> Any:
    """A distribution without the event dimensions and masks around it."""
    while isinstance(fn, TorchIndependent | dist.MaskedDistribution):
        fn = fn.base_dist
    return fn


def unmasked(fn: Any) -> Any:
    """A distribution without the masks inside it; the same object if it has none."""
    if isinstance(fn, dist.MaskedDistribution):
        return unmasked(fn.base_dist)
    if isinstance(fn, TorchIndependent):
        base = unmasked(fn.base_dist)
        return fn if base is fn.base_dist else dist.Independent(base, fn.reinterpreted_batch_ndims)
    return fn


def kept_elements(site: Site) -> Tensor:
    """Whether each element of a site's value counts, boolean, of the value's shape or what it broadcasts to."""
    fn, value = site["fn"], site["value"]
    shape = torch.broadcast_shapes(fn.shape(), value.shape)
    keep = torch.ones(shape, dtype=torch.bool, device=value.device)
    if site["mask"] is not None:
        keep = keep & _wide(site["mask"], fn.event_dim, keep)
    while hasattr(fn, "base_dist"):
        if isinstance(fn, dist.MaskedDistribution):
            keep = keep & _wide(fn._mask, fn.event_dim, keep)
        elif not isinstance(fn, TorchIndependent):
            break  # elements beyond a transform are others
        fn = fn.base_dist
    return keep


def is_masked(site: Site) -> bool:
    """Whether some element of a site is left out."""
    return has_mask(site) and not bool(kept_elements(site).all())


def filled_value(site: Site) -> Tensor:
    """An observed value with every element that a mask leaves out at a point of the support.

    What stands there (NaN, a filler outside of the support) counts for nothing in the density, but a gradient that is
    not finite stays so when it is multiplied by zero.
    """
    fn, value, keep = site["fn"], site["value"], kept_elements(site)
    with torch.no_grad():
        filler = _point(_support(fn), value.new_zeros(keep.shape))
        if filler is None:
            keep, filler = keep | ~value.isnan(), value.new_zeros(())
    return torch.where(keep, value, filler)


def _support(fn: Any) -> Any:
    try:
        return base_constraint(unmasked(fn).support)
    except NotImplementedError:
        return None


def _point(support: Any, zeros: Tensor) -> Tensor | None:
    """Points of a support in a tensor of the shape of `zeros`; None if none is known."""
    if support is None:
        return None
    if support.is_discrete and support.event_dim == 1:  # one category has all counts
        zeros[..., 0] = getattr(support, "upper_bound", 1)
        return zeros
    if support.is_discrete:
        return zeros + getattr(support, "lower_bound", 0)
    try:
        transform = transform_to(support)
    except NotImplementedError:
        return None
    return transform(zeros.new_zeros(transform.inverse_shape(zeros.shape)))


def _wide(mask: Any, event_dim: int, like: Tensor) -> Tensor:
    mask = torch.as_tensor(mask, dtype=torch.bool, device=like.device)
    return mask.reshape(mask.shape + (1,) * event_dim)
