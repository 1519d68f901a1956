"""Conditionals h -> Distribution: likelihoods p(x|z) and posterior families q(z|x), by class and by name."""

from pyro_vae.conditionals.base import Conditional, bounded_exp, soft_bound
from pyro_vae.conditionals.flows import (
    CouplingFlow,
    Flow,
    FlowDistribution,
    InverseAutoregressiveFlow,
    PlanarFlow,
    RadialFlow,
    SplineFlow,
)
from pyro_vae.conditionals.likelihoods import (
    Bernoulli,
    Categorical,
    ContinuousBernoulli,
    DiscretizedLogistic,
    Laplace,
    Likelihood,
    Normal,
    Poisson,
)
from pyro_vae.conditionals.pixelcnn import PixelCNN
from pyro_vae.conditionals.points import Point, TopK
from pyro_vae.conditionals.posteriors import DiagonalNormal, FullNormal, LowRankNormal
from pyro_vae.conditionals.registry import LIKELIHOODS, POSTERIORS, likelihood, posterior

__all__ = [
    "LIKELIHOODS",
    "POSTERIORS",
    "Bernoulli",
    "Categorical",
    "Conditional",
    "ContinuousBernoulli",
    "CouplingFlow",
    "DiagonalNormal",
    "DiscretizedLogistic",
    "Flow",
    "FlowDistribution",
    "FullNormal",
    "InverseAutoregressiveFlow",
    "Laplace",
    "Likelihood",
    "LowRankNormal",
    "Normal",
    "PlanarFlow",
    "PixelCNN",
    "Point",
    "Poisson",
    "RadialFlow",
    "SplineFlow",
    "TopK",
    "bounded_exp",
    "likelihood",
    "posterior",
    "soft_bound",
]
