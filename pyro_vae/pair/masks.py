"""Which elements of a site its masks leave in: those of `poutine.mask`, and those of `.mask` inside a distribution."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from pyro.distributions import Independent, MaskedDistribution
from torch import Tensor
from torch.distributions import Independent as TorchIndependent

from pyro_vae.pair.tracing import PairTrace, Site, has_mask, sample_sites, unmasked

__all__ = ["check_no_mask", "is_masked", "kept_elements", "under_model_masks"]


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


def under_model_masks(traces: PairTrace) -> PairTrace:
    """The traces with every latent's density under the model's mask on both sides.

    Which latents there are is for the model to say: what it masks has no density to hold against log q, and what it
    does not mask was drawn from q, whatever the guide masks.

    Raises:
        ValueError: For a mask over elements that depend on each other under the guide.
    """
    changed = {}
    for name, q in sample_sites(traces.guide):
        p = traces.model.nodes.get(name)
        if p is None or not (has_mask(p) or has_mask(q)) or _same_mask(p, q):
            continue
        keep, own = kept_elements(p), kept_elements(q)
        if not torch.equal(*torch.broadcast_tensors(keep, own)):
            changed[name] = {**q, **_masked(name, q, keep)}
    if not changed:
        return traces
    guide = traces.guide.copy()
    for name, site in changed.items():
        guide.nodes[name] = site
    return replace(traces, guide=guide)


def _same_mask(p: Site, q: Site) -> bool:
    return p["mask"] is q["mask"] and all(unmasked(site["fn"]) is site["fn"] for site in (p, q))


def _masked(name: str, site: Site, keep: Tensor) -> Site:
    """A site's distribution and mask, so that just these elements count."""
    fn = unmasked(site["fn"])
    rows = keep.flatten(keep.dim() - fn.event_dim) if fn.event_dim else keep.unsqueeze(-1)
    if bool((rows == rows[..., :1]).all()):
        return {"fn": fn, "mask": rows[..., 0]}
    if not isinstance(fn, TorchIndependent) or len(fn.base_dist.event_shape):
        raise ValueError(
            f"the model masks some elements of the site {name!r}, which depend on each other under the guide's "
            f"{type(fn).__name__}: give the guide independent elements there, or the same mask"
        )
    masked = MaskedDistribution(fn.base_dist, keep)
    return {"fn": Independent(masked, fn.reinterpreted_batch_ndims), "mask": None}


def check_no_mask(name: str, site: Site) -> None:
    """Refuse a latent of which the model leaves some elements out.

    Raises:
        ValueError: Naming the site.
    """
    if is_masked(site):
        raise ValueError(
            f"the latent site {name!r} is masked in the model, so it has no density to fit or to draw from where the "
            "mask leaves it out: take the mask off this site, for a latent that no observation reads leaves p(x) as it "
            "is; or ask for log_marginal with a guide, which takes masked latents"
        )


def _wide(mask: Any, event_dim: int, like: Tensor) -> Tensor:
    mask = torch.as_tensor(mask, dtype=torch.bool, device=like.device)
    return mask.reshape(mask.shape + (1,) * event_dim)
