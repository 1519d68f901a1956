"""Priors p(z): modules `() -> Distribution` over the latent."""

from pyro_vae.priors.base import FlatPrior, LaplacePrior, Prior, StandardNormal
from pyro_vae.priors.flexible import AutoregressivePrior, FlowPrior
from pyro_vae.priors.mixtures import MixturePrior, VampPrior
from pyro_vae.priors.registry import PRIORS, SHARE_PRIORS, prior
from pyro_vae.priors.simplex import DirichletPrior, LogisticNormalPrior

__all__ = [
    "PRIORS",
    "SHARE_PRIORS",
    "AutoregressivePrior",
    "DirichletPrior",
    "FlatPrior",
    "FlowPrior",
    "LaplacePrior",
    "LogisticNormalPrior",
    "MixturePrior",
    "Prior",
    "StandardNormal",
    "VampPrior",
    "prior",
]
