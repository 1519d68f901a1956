"""The terms of the ELBO of any pair: reconstruction and KL per datum, analytic where that is right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions import Delta, Independent
from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.distributions import Independent as TorchIndependent
from torch.distributions import kl_divergence

from pyro_vae.pair.masks import under_model_masks
from pyro_vae.pair.plates import data_plate, sum_to_data
from pyro_vae.pair.tracing import PairTrace, log_prob, masks_within, sample_sites, trace_pair

__all__ = [
    "ElboTerms",
    "elbo_terms",
    "elements_of",
    "is_point_mass",
    "kl_sites",
    "mask_elements",
    "points_without_density",
]


@dataclass(frozen=True)
class ElboTerms:
    """Per-datum terms of `ELBO = log_likelihood - sum of kl`, each of shape `(N,)`, in nats.

    `log_likelihood` is a one-sample estimate of E_q[log p(x|z)] (or the mean over the particles). `kl` maps each latent
    site to its KL(q || p): the analytic value given the other latents where the families have one, else a one-sample
    estimate. `point_masses` are the latents at which the guide is a point and the model has a density.
    """

    log_likelihood: Tensor
    kl: dict[str, Tensor]
    point_masses: tuple[str, ...] = ()

    @property
    def kl_total(self) -> Tensor:
        """The KL summed over the sites, shape `(N,)`."""
        return sum(self.kl.values(), start=torch.zeros_like(self.log_likelihood))

    @property
    def elbo(self) -> Tensor:
        """The evidence lower bound, shape `(N,)`."""
        return self.log_likelihood - self.kl_total


def kl_sites(traces: PairTrace) -> dict[str, Tensor]:
    """Batch-shaped, masked and unscaled KL of every latent site, where an analytic one is both known and right.

    Integrating a site z_i out analytically needs everything that q(z_i|.) and p(z_i|.) condition on to be drawn
    before z_i. The guide's own order gives that for q; for p it holds when every latent that precedes z_i in the model
    also precedes it in the guide. Other sites (of a bottom-up guide for a top-down model, for example) are left out;
    the caller samples their KL. Auxiliary sites and pairs of families without a registered KL are left out too, and so
    are point masses: Pyro's KL of a `Delta` ignores its `log_density`, by which autoguides account for their
    transforms.
    """
    before_in_guide: set[str] = set()
    order = [name for name, site in sample_sites(traces.model) if not site["is_observed"]]
    result = {}
    for name, q in sample_sites(traces.guide):
        p = traces.model.nodes.get(name)
        if (
            p is not None
            and not p["is_observed"]
            and q["mask"] is p["mask"]
            and _masked_alike(q["fn"], p["fn"])
            and before_in_guide.issuperset(order[: order.index(name)])
            and not is_point_mass(q["fn"])
        ):
            try:
                value = kl_divergence(q["fn"], p["fn"])
            except NotImplementedError:
                pass
            else:
                shapes = q["fn"].batch_shape, p["fn"].batch_shape
                if not shapes[0] == shapes[1] == value.shape:  # usually they are equal, and broadcast_shapes takes time
                    value = value.expand(torch.broadcast_shapes(*shapes))
                result[name] = scale_and_mask(value, 1.0, q["mask"])
        before_in_guide.add(name)
    return result


def _masked_alike(q: Any, p: Any) -> bool:
    masks = masks_within(q), masks_within(p)
    return len(masks[0]) == len(masks[1]) and all(a is b for a, b in zip(*masks, strict=True))


def elements_of(q: Any, p: Any) -> tuple[Any, Any]:
    """Two distributions of one site without the event dimensions that both declare by `.to_event`.

    If no event dimension is left, each element of the site is independent of the others in both.
    """
    while isinstance(q, TorchIndependent) and isinstance(p, TorchIndependent):
        q, p = (
            Independent(fn.base_dist, fn.reinterpreted_batch_ndims - 1)
            if fn.reinterpreted_batch_ndims > 1
            else fn.base_dist
            for fn in (q, p)
        )
    return q, p


def mask_elements(value: Tensor, site: Any) -> Tensor:
    """A tensor with one number per element of a site, with the site's mask applied."""
    mask = site["mask"]
    if isinstance(mask, Tensor):
        mask = mask.reshape(mask.shape + (1,) * site["fn"].event_dim)
    return scale_and_mask(value, 1.0, mask)


def is_point_mass(fn: Any) -> bool:
    """Whether a distribution is a point mass, transformed or not."""
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return isinstance(fn, Delta)


def points_without_density(traces: PairTrace) -> list[str]:
    """The latents that are a point mass under the guide, and neither a point mass nor discrete in the model.

    None for a guide with auxiliary noise: an autoguide maps it to point masses, with the Jacobian as a factor.
    """
    sites = dict(sample_sites(traces.guide))
    if any(site["infer"].get("is_auxiliary") for site in sites.values()):
        return []
    found = [(name, traces.model.nodes.get(name)) for name, q in sites.items() if is_point_mass(q["fn"])]
    return [name for name, p in found if p is not None and not (is_point_mass(p["fn"]) or p["fn"].support.is_discrete)]


def elbo_terms(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    num_particles: int | None = None,
    **kwargs: Any,
) -> ElboTerms:
    """One evaluation of the ELBO's terms for each of the `len(args[0])` data.

    Scales set by the pair (`poutine.scale`, a subsampled plate) are left out: this is the bound of each datum itself,
    in nats.
    """
    traces = under_model_masks(trace_pair(model, guide, args, kwargs, num_particles=num_particles))
    plate = data_plate(traces, len(args[0]))

    def per_datum(value: Tensor) -> Tensor:
        value = sum_to_data(value, plate, traces.particle_dim)
        return value if traces.particle_dim is None else value.mean(0)

    analytic = kl_sites(traces)
    kl = {}
    for name, q in sample_sites(traces.guide):
        value = analytic.get(name)
        if value is None:
            value = log_prob(name, q)
            if name in traces.model.nodes:
                value = value - log_prob(name, traces.model.nodes[name])
        kl[name] = per_datum(value)
    likelihood = sum(
        (per_datum(log_prob(name, traces.model.nodes[name])) for name in traces.observed), start=torch.zeros(())
    )
    return ElboTerms(likelihood, kl, tuple(points_without_density(traces)))
