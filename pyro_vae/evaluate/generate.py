"""Samples and reconstructions from any pair."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyro_vae.elbo.tracing import sample_sites, trace_pair
from pyro_vae.evaluate.modules import eval_mode

__all__ = ["reconstruct", "sample"]


def reconstruct(
    model: Callable[..., Any], guide: Callable[..., Any], *args: Any, site: str | None = None, mean: bool = True
) -> Tensor:
    """The mean of the observed site at one draw of the latents from the guide, or a draw from it with `mean=False`.

    Parameters
    ----------
    model, guide
        The pair.
    *args
        The data and whatever else the pair takes.
    site
        Which observed site, if there are several. Default: the first.
    """
    with torch.no_grad(), eval_mode(model, guide):
        traces = trace_pair(model, guide, args)
        return _value(traces.model.nodes, traces.observed, site, mean)


def sample(model: Callable[..., Any], *args: Any, site: str | None = None, mean: bool = True) -> Tensor:
    """As many samples from the model as `args[0]` has rows: the means at latents from the prior, or full draws.

    The observed values in `args` serve only for their shape, unless the model conditions on them otherwise.
    """
    with torch.no_grad(), eval_mode(model):
        trace = poutine.trace(poutine.uncondition(model)).get_trace(*args)
        # `uncondition` turns observed sites into latent ones, and remembers that it did
        names = [name for name, site in sample_sites(trace) if site["infer"].get("was_observed")]
        return _value(trace.nodes, names, site, mean)


def _value(nodes: Any, observed: list[str], site: str | None, mean: bool) -> Tensor:
    if not observed:
        raise ValueError("the model observes no site: there is nothing to generate")
    if site is not None and site not in observed:
        raise ValueError(f"site {site!r} is not observed by the model; observed are {', '.join(observed)}")
    fn = nodes[site or observed[0]]["fn"]
    return fn.mean if mean else fn.sample()
