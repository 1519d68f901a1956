"""Latents and data drawn together from a model, as arguments of the pair."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from pyro_vae.evaluate.calibration.placing import observed_places, with_values
from pyro_vae.pair.masks import kept_elements
from pyro_vae.pair.protocol import Data, Program
from pyro_vae.pair.running import traced
from pyro_vae.pair.tracing import Site, log_prob, sample_sites
from pyro_vae.support.random import fork_rng, seed_or_draw

__all__ = ["Simulated", "simulate"]


@dataclass(frozen=True)
class Simulated:
    """Data drawn from the model.

    Attributes:
        data: The pair's arguments, with drawn values in the place of what the model observes.
        truth: The run of the model on these data and the latents that they were drawn from.
    """

    data: Data
    truth: Any


def simulate(model: Program, data: Data) -> Simulated:
    """Draw latents and observations from the model; everything else that the arguments hold is given.

    Latents may read the data, if the data do not depend on them: an auxiliary variable p(a|x, z).

    Raises:
        ValueError: For a model that observes nothing, whose observations are no arguments, or that has factors; or if
            the model, given the drawn data, does not observe these or gives them another density.
    """
    seed = seed_or_draw(None)
    with fork_rng(seed):
        drawn = _run(poutine.uncondition(model), data)
    observed = {name: site for name, site in sample_sites(drawn) if site["infer"].get("was_observed")}
    _check_observed(observed)
    places = observed_places(observed, data)
    new = with_values(data, places, observed)
    truth = _run(poutine.replay(model, trace=_latents(drawn)), new)
    if changed := _changed(drawn, truth, observed):
        with fork_rng(seed):  # the same noise, given the new data
            drawn = _run(poutine.uncondition(model), new)
        truth = _run(poutine.replay(model, trace=_latents(drawn)), new)
        moved = [name for name, site in observed.items() if not torch.equal(site["value"], drawn.nodes[name]["value"])]
        if moved or set(changed) & set(observed) or _changed(drawn, truth, observed):
            raise ValueError(
                f"the distribution of the site {changed[0]!r} changes with the data that the model is given, or from "
                "run to run: what is drawn given other data (a decoder that reads the elements before, a prior that "
                "reads x) is no draw from the model. Ask about a model that uses its data in obs= alone; other inputs "
                "may be arguments of their own"
            )
    return Simulated(new, truth)


def _latents(drawn: Any) -> Trace:
    latents = Trace()
    for name, site in sample_sites(drawn):
        if not (site["is_observed"] or site["infer"].get("was_observed")):
            latents.add_node(name, **site)
    return latents


def _check_observed(observed: Mapping[str, Site]) -> None:
    for name, site in observed.items():
        if isinstance(site["fn"], dist.Unit):
            raise ValueError(
                f"the model adds the factor {name!r} to its log-density (pyro.factor), and draws from the model know "
                "nothing of it: write what it stands for as pyro.sample(..., obs=x), or leave it out of the model that "
                "is asked about"
            )
    if not observed:
        raise ValueError("the model observes no site, so there are no data to draw: observe one with obs=x")


def _run(program: Program, data: Data) -> Any:
    return prune_subsample_sites(traced(program, *data))


def _changed(drawn: Any, truth: Any, observed: Mapping[str, Site]) -> list[str]:
    """The sites to which the model gives another density on the drawn data than when it drew them.

    Raises:
        ValueError: If it has other sites, or observes something else than the drawn values.
    """
    changed = []
    for name, site in sample_sites(drawn):
        again = truth.nodes.get(name)
        if again is None:
            raise ValueError(
                f"the site {name!r} is in some runs of the model and not in others: ranks need the same sites in every "
                "run; sample it always, and mask it (poutine.mask) where it does not count"
            )
        value = observed[name]["value"] if name in observed else again["value"]
        if not _agree(value, again["value"], kept_elements(site)):
            raise ValueError(
                f"the model observes at the site {name!r} something else than the argument it was given (its value has "
                f"shape {tuple(again['value'].shape)} and dtype {again['value'].dtype}), so data drawn from the model "
                "cannot take its place: give the model what it observes as it is; transform the data before the call"
            )
        known = {"value": value.to(site["value"].dtype)}
        before, after = (log_prob(name, {**each, **known}) for each in (site, again))
        if not _agree(*torch.broadcast_tensors(before, after)):
            changed.append(name)
    return changed


def _agree(a: Tensor, b: Tensor, keep: Tensor | None = None) -> bool:
    """Whether two tensors are equal up to rounding where it counts."""
    if a.shape != b.shape:
        return False
    close = torch.isclose(a.double(), b.double(), rtol=1e-5, atol=1e-5, equal_nan=True)
    return bool((close if keep is None else close | ~keep).all())
