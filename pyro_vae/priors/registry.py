"""Priors by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pyro_vae.nets import lookup
from pyro_vae.priors.base import FlatPrior, LaplacePrior, Prior, StandardNormal
from pyro_vae.priors.flexible import AutoregressivePrior, FlowPrior
from pyro_vae.priors.mixtures import MixturePrior, VampPrior
from pyro_vae.priors.simplex import DirichletPrior, LogisticNormalPrior
from pyro_vae.support.arguments import checked_from

__all__ = ["PRIORS", "SHARE_PRIORS", "prior"]

PRIORS: dict[str, Callable[..., Prior]] = {
    "standard_normal": StandardNormal,
    "laplace": LaplacePrior,
    "mixture": MixturePrior,
    "vamp": VampPrior,
    "flow": FlowPrior,
    "autoregressive": AutoregressivePrior,
    "flat": FlatPrior,
}
# of latents that are shares: of no use beside the posteriors of other latents
SHARE_PRIORS: dict[str, Callable[..., Prior]] = {"dirichlet": DirichletPrior, "logistic_normal": LogisticNormalPrior}


@checked_from(data_shape=1)
def prior(name: str, latent_dim: int, data_shape: int | Sequence[int] | None = None, **arguments: Any) -> Prior:
    """The prior called `name` in `PRIORS` or `SHARE_PRIORS`; "vamp" needs `data_shape`, that of its inputs.

    Raises:
        ValueError: for an unknown name, or without the `data_shape` that it needs.

    >>> prior("standard_normal", 3)
    StandardNormal(event_shape=(3,))
    """
    made = lookup({**PRIORS, **SHARE_PRIORS}, name, "prior")
    if getattr(made, "uses_encoder", False):
        if data_shape is None:
            raise ValueError(f"the prior {name!r} needs the shape of one datum: prior({name!r}, {latent_dim}, shape)")
        arguments["data_shape"] = data_shape
    return made(latent_dim, **arguments)
