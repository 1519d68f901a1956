"""The guide as a density of the latents: what else it adds to its log-density, and noise that nothing balances."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from pyro import poutine
from torch.distributions import biject_to

from pyro_vae.elbo.estimators.terms import is_point_mass
from pyro_vae.pair.networks import eval_mode
from pyro_vae.pair.planning import run_on_examples
from pyro_vae.pair.protocol import Data, Program
from pyro_vae.pair.running import traced
from pyro_vae.pair.tracing import PairTrace, drop_likelihood, sample_sites, trace_pair
from pyro_vae.pair.untouched import kept_buffers
from pyro_vae.support.random import fork_rng

__all__ = ["check_guide", "check_noise", "density_guide", "other_terms"]

Site = dict[str, Any]


def density_guide(model: Program, guide: Program, data: Data) -> Program:
    """The guide with q(z|x) alone in its log-density; call it with the networks in evaluation mode.

    What a guide observes, and the factors that it adds, are terms of a loss and no part of a density: with them log
    p(x, z) - log q(z|x) bounds nothing. They are left out, with a warning. The noise behind point masses is a density,
    and so is a factor beside it, the Jacobian.

    Raises:
        ValueError: If the guide draws noise that nothing in the model balances.
    """
    with torch.no_grad(), fork_rng():
        alone, _, _ = run_on_examples(lambda some: traced(guide, *some), data)
        drop_likelihood(alone)
        sites = list(sample_sites(alone))
        others = [name for name, site in sites if site["is_observed"]]
        if not others and not any(site["infer"].get("is_auxiliary") for _, site in sites):
            return guide
        without: Program = poutine.block(guide, hide_fn=_is_other) if others else guide
        traces, _, _ = run_on_examples(lambda some: trace_pair(model, without, *some), data)
    noise = check_noise(traces)
    if not others or noise:
        return guide
    names = ", ".join(map(repr, others))
    warnings.warn(
        f"the guide adds {names} to its log-density, by pyro.factor or by observing: terms of a loss, which are no "
        "part of q(z|x). They are left out of all numbers here",
        stacklevel=4,
    )
    return without


def other_terms(traces: PairTrace) -> list[str]:
    """What `density_guide` would leave out of a pair."""
    return [] if any(_noise(traces)) else [name for name, site in sample_sites(traces.guide) if site["is_observed"]]


def check_guide(model: Program, guide: Program, args: tuple[Any, ...]) -> None:
    """Refuse a pair as `check_noise` does, before anything is done with it; it is left as it was.

    Raises:
        ValueError: If the guide draws noise that nothing in the model balances.
    """
    with torch.no_grad(), eval_mode(model, guide), fork_rng(), kept_buffers(model, guide):
        alone = traced(guide, args, {})
        if any(site["infer"].get("is_auxiliary") for _, site in sample_sites(alone)):
            check_noise(trace_pair(model, guide, args))


def check_noise(traces: PairTrace) -> int:
    """Refuse noise of the guide's own that no latent is a function of; the number of its elements.

    An autoguide draws noise at a site of its own and maps it, one to one, to point masses at the latents, of as many
    unconstrained elements as the noise has. Any more noise is one more latent, which the model lacks: the mean weight
    is then the volume of that noise's space, times p(x).

    Raises:
        ValueError: If there is more noise than point masses.
    """
    noise = list(_noise(traces))
    drawn = sum(math.inf if site["fn"].support.is_discrete else site["fn"].shape().numel() for _, site in noise)
    if drawn > sum(_mapped(traces)):
        name = noise[0][0]
        raise ValueError(
            f"the guide's auxiliary site {name!r} is drawn from {type(noise[0][1]['fn']).__name__}, and nothing in the "
            f"model balances its density, so that estimates would lie far above log p(x): sample {name!r} in the "
            f"model, too, given the latents, `pyro.sample({name!r}, ...)`, which leaves p(x) as it is; or ask "
            "without the guide, method='prior' or 'ais'"
        )
    return len(noise)


def _is_other(site: Any) -> bool:
    return bool(site["type"] == "sample" and site["is_observed"])


def _noise(traces: PairTrace) -> Iterator[tuple[str, Site]]:
    for name, site in sample_sites(traces.guide):
        if name not in traces.model.nodes and not site["is_observed"] and not is_point_mass(site["fn"]):
            yield name, site


def _mapped(traces: PairTrace) -> Iterator[int]:
    """Unconstrained elements of each latent that is a point mass under the guide and continuous in the model."""
    for name, q in sample_sites(traces.guide):
        p = traces.model.nodes.get(name)
        if p is None or not is_point_mass(q["fn"]) or is_point_mass(p["fn"]) or p["fn"].support.is_discrete:
            continue
        try:
            event = biject_to(p["fn"].support).inverse_shape(p["fn"].event_shape)
        except NotImplementedError:
            event = p["fn"].event_shape
        yield q["fn"].batch_shape.numel() * event.numel()
