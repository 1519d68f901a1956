"""Latents that a model masks: their densities in guide and model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from pyro.distributions import Independent, MaskedDistribution
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Independent as TorchIndependent

from pyro_vae.pair.protocol import Data, Program
from pyro_vae.pair.site_masks import Site, has_mask, is_masked, kept_elements, unmasked
from pyro_vae.pair.tracing import PairTrace, sample_sites, trace_pair
from pyro_vae.support.random import fork_rng

__all__ = [
    "check_no_mask",
    "guide_under_model_masks",
    "is_masked",
    "kept_elements",
    "uncounted_in_model",
    "under_model_masks",
]


def under_model_masks(traces: PairTrace) -> PairTrace:
    """The traces with every latent's density under the model's mask on both sides.

    Which latents there are is for the model to say: what it masks has no density to hold against log q, and what it
    does not mask was drawn from q, whatever the guide masks.

    Raises:
        ValueError: For a mask over elements that depend on each other under the guide.
    """
    masks = _masks_to_change(traces)
    if not masks:
        return traces
    guide = traces.guide.copy()
    for name, keep in masks.items():
        guide.nodes[name] = {**guide.nodes[name], **_masked(name, guide.nodes[name], keep)}
    return replace(traces, guide=guide)


def guide_under_model_masks(model: Program, guide: Program, data: Data) -> Program | None:
    """The guide as a program with the model's masks on these data, as in `under_model_masks`.

    None if the masks are not the same at other draws of the latents.
    """
    with torch.no_grad(), fork_rng():
        masks, others = (_masks_to_change(trace_pair(model, guide, *data)) for _ in range(2))
    if not masks and not others:
        return guide
    if masks.keys() != others.keys() or not all(torch.equal(keep, others[name]) for name, keep in masks.items()):
        return None
    under: Program = _Masks(masks)(guide)
    return under


class _Masks(Messenger):
    """Puts sites under other masks than their own."""

    def __init__(self, masks: dict[str, Tensor]) -> None:
        super().__init__()
        self.masks = masks

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.masks:
            msg.update(_masked(msg["name"], msg, self.masks[msg["name"]]))


def _masks_to_change(traces: PairTrace) -> dict[str, Tensor]:
    """Which elements of a latent the model keeps, where the guide keeps others."""
    found = {}
    for name, q in sample_sites(traces.guide):
        p = traces.model.nodes.get(name)
        if p is None or not (has_mask(p) or has_mask(q)) or _same_mask(p, q):
            continue
        keep, own = kept_elements(p), kept_elements(q)
        if not torch.equal(*torch.broadcast_tensors(keep, own)):
            found[name] = keep
    return found


def uncounted_in_model(traces: PairTrace) -> list[str]:
    """The latents with elements that the model masks and the guide does not.

    An estimator counts -log q of these elements against nothing, so its value may lie above log p(x).
    """
    found = []
    for name, q in sample_sites(traces.guide):
        p = traces.model.nodes.get(name)
        if (
            p is not None
            and has_mask(p)
            and not _same_mask(p, q)
            and bool((kept_elements(q) & ~kept_elements(p)).any())
        ):
            found.append(name)
    return found


def _same_mask(p: Site, q: Site) -> bool:
    return p["mask"] is q["mask"] and all(unmasked(site["fn"]) is site["fn"] for site in (p, q))


def _masked(name: str, site: Site, keep: Tensor) -> Site:
    """A site's distribution and mask, so that just these elements count."""
    fn = unmasked(site["fn"])
    if bool(keep.all()):
        return {"fn": fn, "mask": None}
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
