"""Samples and reconstructions from any pair."""

from __future__ import annotations

from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyro_vae.pair.arguments import check_data, check_keywords, unwrapped
from pyro_vae.pair.forms import in_rows
from pyro_vae.pair.networks import eval_mode, modules_of, to_networks_device
from pyro_vae.pair.placeholders import DataPlaceholder, explain_placeholder
from pyro_vae.pair.protocol import Program
from pyro_vae.pair.running import traced
from pyro_vae.pair.subsampling import on_all_data
from pyro_vae.pair.tracing import Site, sample_sites, trace_pair
from pyro_vae.support.arguments import checked
from pyro_vae.support.random import seeded

__all__ = ["choose_observed", "site_mean", "reconstruct", "sample"]


@checked
def reconstruct(
    model: Program,
    guide: Program,
    *args: Any,
    site: str | None = None,
    mean: bool = True,
    seed: int | None = None,
    **kwargs: Any,
) -> Tensor:
    """The mean of the observed site at one draw of the latents from the guide, or a draw from it with `mean=False`.

    Reconstructions usually show the mean: how well the latents represent the data, without the likelihood's noise.

    Args:
        model, guide: The pair.
        *args, **kwargs: The data `x` of shape `(N, ...)`, then whatever else the pair takes.
        site: Which observed site, if there are several. Default: the first of the shape of `x`, else the first.
        mean: False draws a sample, for example where the distribution has no mean (a categorical one).
        seed: A number makes the call reproducible and leaves torch's generators as they were. None continues their
            stream.

    Raises:
        ValueError: If there is no such site, or it has no mean.
        TypeError: For a keyword that neither this call nor the pair knows.
    """
    check_keywords(reconstruct, kwargs, model, guide)
    args = to_networks_device(args, model, guide)
    with torch.no_grad(), eval_mode(model, guide), seeded(seed):
        if not (args and isinstance(args[0], Tensor)):
            model, guide, (args, kwargs), _ = in_rows(model, guide, (args, kwargs))
        check_data(args)
        model, guide = on_all_data(model), on_all_data(guide)
        traces = trace_pair(model, guide, args, kwargs)
        observed = {name: traces.model.nodes[name] for name in traces.observed}
        name, chosen = choose_observed(observed, site, args[0])
        return site_mean(name, chosen) if mean else chosen["fn"].sample()


@checked
def sample(
    model: Program,
    x: int | Tensor,
    *args: Any,
    site: str | None = None,
    mean: bool = False,
    seed: int | None = None,
    **kwargs: Any,
) -> Tensor:
    """Draw data from the model: latents from the prior, then draws of the observed site, or its means.

    Args:
        model: The model.
        x: The number of samples N. Or a tensor with N rows, if the model uses more of its data than their number; only
            its shape matters, unless the model conditions on its values.
        *args, **kwargs: Whatever else the model takes, with N rows: labels, for example.
        site: Which observed site, if there are several. Default: the first of the shape of the data, else the first.
        mean: True gives the means of p(x|z) in place of draws; they are smoother than any datum.
        seed: A number makes the call reproducible and leaves torch's generators as they were. None continues their
            stream.

    Raises:
        ValueError: If there is no such site, if it has no mean, or if x is a number and the model uses more of its
            data.
        TypeError: For a keyword that neither this call nor the model knows.

    Example:
        >>> import pyro_vae as pv
        >>> vae = pv.VAE(64, latent_dim=3)
        >>> sample(vae.model, 5, seed=0).unique()
        tensor([0., 1.])
    """
    check_keywords(sample, kwargs, model)
    if isinstance(x, int):
        data, others = _placeholder_data(model, x), to_networks_device(args, model)
    else:
        check_data((x,))
        moved = to_networks_device((x, *args), model)
        data, others = moved[0], moved[1:]
    with torch.no_grad(), eval_mode(model), seeded(seed), explain_placeholder():
        trace = traced(poutine.uncondition(model), (data, *others), kwargs)
        # `uncondition` turns observed sites into latent ones and marks them
        observed = {name: s for name, s in sample_sites(trace) if s["infer"].get("was_observed")}
        name, chosen = choose_observed(observed, site, data)
        return site_mean(name, chosen) if mean else chosen["value"]


def _placeholder_data(model: Program, num: int) -> Tensor:
    """Placeholder data for a model that generates: of the shape that its system names, or of unknown shape."""
    if num < 1:
        raise ValueError(f"the number of samples must be at least 1, got {num}")
    program = unwrapped(model)
    shape = getattr(getattr(program, "__self__", program), "data_shape", None)
    parameter = next((p for net in modules_of(model).values() for p in net.parameters()), None)
    device = None if parameter is None else parameter.device
    return DataPlaceholder(num, device) if shape is None else torch.zeros(num, *shape, device=device)


def choose_observed(observed: dict[str, Site], name: str | None, x: Tensor) -> tuple[str, Site]:
    """The observed site called `name`; by default the first of the shape of x, else the first."""
    if not observed:
        raise ValueError("the model observes no site, so there is nothing to generate: observe one with obs=")
    if name is None:
        first = next(iter(observed))
        if not isinstance(x, DataPlaceholder):
            first = next((n for n, site in observed.items() if site["value"].shape == x.shape), first)
        name = first
    elif name not in observed:
        raise ValueError(f"site {name!r} is not observed by the model; observed are {', '.join(observed)}")
    return name, observed[name]


def site_mean(name: str, site: Site) -> Tensor:
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
