"""Latents that a model has alone, since an estimator sums them out."""

from __future__ import annotations

from typing import Any

import torch
from pyro import poutine

from pyro_vae.pair.protocol import Program
from pyro_vae.pair.running import traced
from pyro_vae.pair.tracing import sample_sites
from pyro_vae.support.random import fork_rng

__all__ = ["completed", "summed_out"]


def summed_out(model: Program, guide: Program, args: tuple[Any, ...]) -> list[str]:
    """The latents that the model marks as enumerated and the guide does not sample."""
    with torch.no_grad(), fork_rng():
        drawn = traced(guide, args, {})
        trace = traced(model, args, {}, on=drawn)
    return [
        name
        for name, site in sample_sites(trace)
        if not site["is_observed"] and site["infer"].get("enumerate") and name not in drawn.nodes
    ]


def completed(model: Program, guide: Program, names: list[str]) -> Program:
    """A guide that also draws these latents, from the model: for the plates that they stand in, not for a bound."""

    def whole(*args: Any, **kwargs: Any) -> None:
        drawn = traced(guide, args, kwargs)
        poutine.block(poutine.replay(model, trace=drawn), expose=names)(*args, **kwargs)

    return whole
