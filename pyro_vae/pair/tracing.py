"""The traces of one run of a model/guide pair, and the log-densities of its sites."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import prune_subsample_sites, site_is_subsample
from torch import Tensor

from pyro_vae.pair.rows import names_rows
from pyro_vae.pair.running import traced
from pyro_vae.pair.site_masks import Site, filled_value, has_mask, masks_within, unmasked
from pyro_vae.pair.subsampling import give_sizes
from pyro_vae.support.random import fork_rng

__all__ = [
    "NoInverse",
    "PARTICLE_PLATE",
    "PairTrace",
    "Site",
    "checked_pair",
    "draw_log_prob",
    "drop_likelihood",
    "has_mask",
    "log_prob",
    "masks_within",
    "plate_nesting",
    "sample_sites",
    "trace_pair",
    "unmasked",
]

PARTICLE_PLATE = "_pyro_vae_particles"


class NoInverse(ValueError):
    """A density is asked for that a flow without an inverse cannot give."""


@dataclass
class PairTrace:
    """The guide's trace and the model's trace replayed against it.

    `particle_dim` is the (negative) batch dimension of the vectorized particles, None for a single particle.
    """

    model: Any  # pyro traces, whose nodes are dictionaries
    guide: Any
    particle_dim: int | None = None

    @property
    def latents(self) -> list[str]:
        """Names of the guide's latent sites, in the guide's order."""
        return [name for name, _ in sample_sites(self.guide)]

    @property
    def observed(self) -> list[str]:
        """Names of the model's observed sites, in the model's order."""
        return [name for name, site in sample_sites(self.model) if site["is_observed"]]

    def sites(self) -> Iterator[tuple[str, Site, float]]:
        """Every stochastic site as (name, site, sign): +1 for the model's sites, -1 for the guide's."""
        for name, site in sample_sites(self.model):
            yield name, site, 1.0
        for name, site in sample_sites(self.guide):
            yield name, site, -1.0


def sample_sites(trace: Any) -> Iterator[tuple[str, Site]]:
    """The stochastic sites of a trace, in order, without those of `pyro.deterministic`."""
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and not site["infer"].get("_deterministic"):
            yield name, site


def log_prob(name: str, site: Site) -> Tensor:
    """Log-density of the value at one site, batch-shaped, masked but never scaled.

    Scales belong to objectives (subsampling, a KL weight) and must not enter a likelihood estimate.
    """
    value = filled_value(site) if site["is_observed"] and has_mask(site) else site["value"]
    try:
        value = site["fn"].log_prob(value, *site["args"], **site["kwargs"])
    except ValueError as error:
        raise ValueError(f"site {name!r}: {error}") from error
    except (KeyError, NotImplementedError) as error:
        if isinstance(site["fn"], torch.distributions.TransformedDistribution):
            raise NoInverse(_no_inverse(name, site["fn"])) from error
        raise
    return scale_and_mask(value, 1.0, site["mask"])


def _no_inverse(name: str, fn: Any) -> str:
    kinds = ", ".join(type(part).__name__ for part in fn.transforms)
    return (
        f"site {name!r}: the density under {kinds} is known at its own latest draw alone, since there is no inverse, "
        "and another value is asked for: use an estimator that scores each draw as it comes ('trace', 'mean_field', "
        "'iwae'), or a flow with an inverse, such as pyro.distributions.transforms.spline_autoregressive"
    )


def draw_log_prob(name: str, site: Site) -> Tensor:
    """Log-density of a draw under what drew it, batch-shaped, neither scaled nor masked.

    A scale or a mask says how much a site counts in the objective. Its value is drawn all the same, and what reads it
    sees it, so the score function is that of this density.
    """
    if not has_mask(site):
        return log_prob(name, site)
    return log_prob(name, {**site, "fn": unmasked(site["fn"]), "mask": None})


def plate_nesting(*traces: Trace) -> int:
    """Number of batch dimensions that the plates of the traces occupy."""
    dims = [
        frame.dim
        for trace in traces
        for _, site in sample_sites(trace)
        for frame in site["cond_indep_stack"]
        if frame.vectorized
    ]
    return -min(dims) if dims else 0


@names_rows
def trace_pair(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any] | None = None,
    *,
    num_particles: int | None = None,
    nesting: int | None = None,
) -> PairTrace:
    """Run the guide, then the model on the guide's values.

    With `num_particles` both run inside one more plate to the left of the `nesting` batch dimensions of the pair, so
    a site of batch shape `(N,)` becomes `(K, N)` and a network that does not depend on the latents runs once.
    """
    kwargs = kwargs or {}
    dim = None
    if num_particles is not None:
        if nesting is None:
            with torch.no_grad(), fork_rng():
                plain = trace_pair(model, guide, args, kwargs)
            nesting = plate_nesting(plain.model, plain.guide)
        dim = -1 - nesting
        model = pyro.plate(PARTICLE_PLATE, num_particles, dim=dim)(model)
        guide = pyro.plate(PARTICLE_PLATE, num_particles, dim=dim)(guide)
    guide_trace = traced(guide, args, kwargs)
    model_trace = traced(model, args, kwargs, on=guide_trace)
    for trace in (guide_trace, model_trace):  # in place: nothing else refers to these traces
        for name in [name for name, site in trace.nodes.items() if site_is_subsample(site)]:
            trace.remove_node(name)
    return _checked(PairTrace(model_trace, guide_trace, dim))


def drop_likelihood(guide_trace: Any) -> None:
    """Take what the model observes out of the trace of a guide that runs the model, Pyro's `GuideMessenger`."""
    sites = list(sample_sites(guide_trace))
    if any("prior" in site["infer"] for _, site in sites):
        for name, site in sites:
            if site["is_observed"]:
                guide_trace.remove_node(name)


def checked_pair(model_trace: Trace, guide_trace: Trace, particle_dim: int | None = None) -> PairTrace:
    """Combine a guide's trace and the model's trace on its values; checks their sites and batch shapes."""
    return _checked(PairTrace(prune_subsample_sites(model_trace), prune_subsample_sites(guide_trace), particle_dim))


def _checked(result: PairTrace) -> PairTrace:
    give_sizes(result.model, result.guide)
    drop_likelihood(result.guide)
    _check_sites_match(result)
    for name, site, _ in result.sites():
        _check_batch_shape(name, site)
    return result


def _check_sites_match(traces: PairTrace) -> None:
    in_model = {name: site for name, site in sample_sites(traces.model) if not site["is_observed"]}
    in_guide = dict(sample_sites(traces.guide))
    missing = [name for name in in_model if name not in in_guide]
    if missing and in_model[missing[0]]["infer"].get("enumerate"):
        raise ValueError(
            f"the model enumerates the latent site {missing[0]!r}, which the guide never samples: TraceEnum_ELBO sums "
            "it out, in pv.SVI and pv.fit; what else is asked of the pair needs a guide that samples it, "
            f"pyro.sample({missing[0]!r}, ...)"
        )
    if missing:
        raise ValueError(
            f"the model samples the latent site {missing[0]!r}, which the guide never samples (the guide has "
            f"{list(in_guide) or 'no sites'}): add pyro.sample({missing[0]!r}, ...) to the guide, or observe it in "
            "the model with obs=..."
        )
    extra = [name for name, site in in_guide.items() if name not in in_model and not site["infer"].get("is_auxiliary")]
    if extra:
        observed = extra[0] in traces.model.nodes
        raise ValueError(
            f"the guide samples the site {extra[0]!r}, which the model "
            + ("observes: remove it from the guide" if observed else f"never samples (the model has {list(in_model)})")
            + ", or rename it to the latent it stands for, or, if latents are functions of it, mark it "
            "infer={'is_auxiliary': True}"
        )
    for name, p in in_model.items():
        q = in_guide[name]
        if p["fn"].event_shape != q["fn"].event_shape:
            raise ValueError(
                f"site {name!r} has event shape {tuple(p['fn'].event_shape)} in the model and "
                f"{tuple(q['fn'].event_shape)} in the guide: use the same .to_event(k) and the same sizes in both"
            )


def _check_batch_shape(name: str, site: Site) -> None:
    frames = {f.dim: f for f in site["cond_indep_stack"] if f.vectorized}
    shape = site["fn"].batch_shape
    for dim in range(-len(shape), 0):
        expected = frames[dim].size if dim in frames else 1
        if shape[dim] not in (expected, 1):
            plates = {f.name: f"dim {f.dim}, size {f.size}" for f in frames.values() if f.name != PARTICLE_PLATE}
            raise ValueError(
                f"site {name!r} has batch shape {tuple(shape)}, of which dimension {dim} (size {shape[dim]}) belongs "
                f"to no plate (plates here: {plates or 'none'}): declare event dimensions with .to_event(k), or add a "
                "plate"
            )
