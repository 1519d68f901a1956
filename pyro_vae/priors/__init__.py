"""Priors p(z): modules `() -> Distribution` over the latent."""

from pyro_vae.priors.base import FlatPrior, LaplacePrior, Prior, StandardNormal
from pyro_vae.priors.flexible import AutoregressivePrior, FlowPrior
from pyro_vae.priors.mixtures import MixturePrior, VampPrior
from pyro_vae.priors.registry import PRIORS, prior

__all__ = [
    "PRIORS",
    "AutoregressivePrior",
    "FlatPrior",
    "FlowPrior",
    "LaplacePrior",
    "MixturePrior",
    "Prior",
    "StandardNormal",
    "VampPrior",
    "prior",
]
