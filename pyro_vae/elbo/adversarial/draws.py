"""The inputs of critics: data, generated data and latents of any pair, one row per datum."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from pyro_vae.elbo.estimators.bounds import scaled_kl
from pyro_vae.elbo.estimators.terms import kl_sites
from pyro_vae.pair.plates import DataPlate, data_plate
from pyro_vae.pair.protocol import Program
from pyro_vae.pair.running import traced
from pyro_vae.pair.tracing import PairTrace, Site, log_prob, sample_sites, trace_pair

__all__ = ["Drawn", "codes", "generate", "infer", "kl", "mean_log_q", "output_mean", "reconstruct"]


class Drawn(NamedTuple):
    """One draw from a pair, with gradients.

    `x` has the observations, or their means under the model: `(N, *shape)` for a single site, else `(N, D)`. `z` has
    the latents concatenated, `(N, L)`. `traces` are the runs that they come from, `plate` is the plate over the data.
    """

    x: Tensor
    z: Tensor
    traces: PairTrace
    plate: DataPlate


def infer(model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Drawn:
    """The data, and latents drawn for them by the guide."""
    traces = trace_pair(model, guide, args, kwargs)
    plate = data_plate(traces, len(args[0]))
    observed = [rows(traces.model.nodes[name]["value"], traces.model.nodes[name], plate) for name in traces.observed]
    latents = {name: site for name, site in sample_sites(traces.model) if not site["is_observed"]}
    return Drawn(_concatenated(observed, "observed"), codes(latents, plate), traces, plate)


def generate(model: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Drawn:
    """Latents from the prior, and the means of the observations given them."""
    trace = traced(poutine.uncondition(model), args, kwargs)
    traces = PairTrace(prune_subsample_sites(trace), poutine.Trace())
    plate = data_plate(traces, len(args[0]))
    latents, outputs = {}, []
    for name, site in sample_sites(traces.model):
        if site["infer"].get("was_observed"):
            outputs.append(rows(output_mean(name, site), site, plate))
        else:
            latents[name] = site
    return Drawn(_concatenated(outputs, "observed"), codes(latents, plate), traces, plate)


def reconstruct(drawn: Drawn) -> Tensor:
    """The means of the observations given the guide's latents, shaped as `drawn.x`."""
    sites = ((name, drawn.traces.model.nodes[name]) for name in drawn.traces.observed)
    return _concatenated([rows(output_mean(name, site), site, drawn.plate) for name, site in sites], "observed")


def mean_log_q(guide: Program, drawn: Drawn, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Mean of log q(z|x) over generated data: z from the prior, x its mean under the model; nats, a 0-d tensor.

    Raises:
        ValueError: If no observed site has the shape of the pair's first argument, which generated data replace; or
            if the guide has a latent that the model does not have.
    """
    found = [(name, s) for name, s in sample_sites(drawn.traces.model) if s["infer"].get("was_observed")]
    name, site = next(((n, s) for n, s in found if s["value"].shape == args[0].shape), (None, None))
    if name is None or site is None:
        shapes = {n: tuple(s["value"].shape) for n, s in found}
        raise ValueError(
            f"the guide runs on generated data in place of its first argument, of shape {tuple(args[0].shape)}, "
            f"and no observed site has that shape: {shapes}"
        )
    x = output_mean(name, site)
    replayed = poutine.replay(guide, trace=drawn.traces.model)
    trace = prune_subsample_sites(traced(replayed, (x, *args[1:]), kwargs))
    total = torch.zeros((), device=x.device)
    for latent, q in sample_sites(trace):
        if latent not in drawn.traces.model.nodes:
            raise ValueError(f"site {latent!r} is not in the model: its density has no value at a draw of the prior")
        total = total + log_prob(latent, q).sum()
    return total / drawn.plate.size


def kl(drawn: Drawn) -> Tensor:
    """KL(q(z|x) || p(z)), summed over the data with the sites' scales; in closed form where that is right."""
    analytic, total = kl_sites(drawn.traces), torch.zeros((), device=drawn.z.device)
    for name, q in sample_sites(drawn.traces.guide):
        total = total + scaled_kl(name, q, drawn.traces.model.nodes.get(name), analytic.get(name)).sum()
    return total


def output_mean(name: str, site: Site) -> Tensor:
    """The mean of an observed site given the model's latents, through which gradients pass.

    Raises:
        ValueError: If the distribution has no mean with a gradient, as a categorical has none.
    """
    fn = site["fn"]
    try:
        value = fn.mean
    except (NotImplementedError, AttributeError):
        value = None
    if value is None and fn.has_rsample:
        value = fn.rsample()
    if value is None or (torch.is_grad_enabled() and not value.requires_grad and not fn.has_rsample):
        raise ValueError(
            f"site {name!r} is observed under {type(fn).__name__}, whose mean is not known or does not depend on the "
            "latents, so a critic's judgment cannot reach the model: use a likelihood with a mean"
        )
    return value


def codes(latents: dict[str, Site], plate: DataPlate) -> Tensor:
    """The values of latent sites, concatenated: `(N, L)`."""
    return _concatenated([rows(site["value"], site, plate).flatten(1) for site in latents.values()], "latent")


def rows(value: Tensor, site: Site, plate: DataPlate) -> Tensor:
    """A value of a site with the data first: `(N, *event_shape)`, or `(N, D)` if there are further plates."""
    event = site["fn"].event_dim
    value = value.expand(torch.broadcast_shapes(value.shape, site["fn"].batch_shape + site["fn"].event_shape))
    value = value.movedim(plate.dim - event, 0)
    if not value.is_floating_point():
        value = value.to(torch.get_default_dtype())
    return value if event and value.dim() == 1 + event else value.reshape(plate.size, -1)


def _concatenated(parts: list[Tensor], kind: str) -> Tensor:
    if not parts:
        raise ValueError(f"the model has no {kind} site, and a critic needs one as its input")
    return parts[0] if len(parts) == 1 else torch.cat([part.flatten(1) for part in parts], 1)
