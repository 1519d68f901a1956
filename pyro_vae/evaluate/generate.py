"""Samples and reconstructions from any pair."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyro_vae.pair.arguments import check_data
from pyro_vae.pair.networks import beside_networks, eval_mode
from pyro_vae.pair.tracing import Site, sample_sites, trace_pair

__all__ = ["choose_observed", "mean_of", "reconstruct", "sample"]


def reconstruct(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    site: str | None = None,
    mean: bool = True,
    **kwargs: Any,
) -> Tensor:
    """The mean of the observed site at one draw of the latents from the guide, or a draw from it with `mean=False`.

    Args:
        model, guide: The pair.
        *args, **kwargs: The data `x` of shape `(N, ...)`, then whatever else the pair takes.
        site: Which observed site, if there are several. Default: the first of the shape of `x`, else the first.
        mean: False where the distribution has no mean, as a categorical one over labels.

    Raises:
        ValueError: If there is no such site, or it has no mean.
    """
    check_data(args)
    args = beside_networks(args, model, guide)
    with torch.no_grad(), eval_mode(model, guide):
        traces = trace_pair(model, guide, args, kwargs)
        observed = {name: traces.model.nodes[name] for name in traces.observed}
        name, chosen = choose_observed(observed, site, args[0])
        return mean_of(name, chosen) if mean else chosen["fn"].sample()


def sample(model: Callable[..., Any], *args: Any, site: str | None = None, mean: bool = True, **kwargs: Any) -> Tensor:
    """As many samples from the model as `args[0]` has rows: the means at latents from the prior, or full draws.

    The observed values in `args` serve only for their shape, unless the model conditions on them otherwise. `site`,
    `mean` and the errors are those of `reconstruct`.
    """
    check_data(args)
    args = beside_networks(args, model)
    with torch.no_grad(), eval_mode(model):
        trace = poutine.trace(poutine.uncondition(model)).get_trace(*args, **kwargs)
        # `uncondition` turns observed sites into latent ones, and remembers that it did
        observed = {name: s for name, s in sample_sites(trace) if s["infer"].get("was_observed")}
        name, chosen = choose_observed(observed, site, args[0])
        return mean_of(name, chosen) if mean else chosen["value"]


def choose_observed(observed: dict[str, Site], name: str | None, x: Tensor) -> tuple[str, Site]:
    """The observed site called `name`; without a name the first of the shape of x, else the first."""
    if not observed:
        raise ValueError("the model observes no site: there is nothing to generate; observe one with obs=")
    if name is None:
        name = next((n for n, site in observed.items() if site["value"].shape == x.shape), next(iter(observed)))
    elif name not in observed:
        raise ValueError(f"site {name!r} is not observed by the model; observed are {', '.join(observed)}")
    return name, observed[name]


def mean_of(name: str, site: Site) -> Tensor:
    """The mean of the distribution at a site."""
    try:
        mean = site["fn"].mean
    except (NotImplementedError, AttributeError):
        mean = None
    # torch gives a categorical distribution the mean NaN
    if mean is None or bool(mean.isnan().all()):
        raise ValueError(
            f"site {name!r} has a distribution without a mean, {type(site['fn']).__name__}: use mean=False"
        )
    return mean
