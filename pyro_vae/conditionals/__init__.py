"""Conditionals h -> Distribution: likelihoods p(x|z) and posterior families q(z|x), by class and by name."""

from pyro_vae.conditionals.base import Conditional, bounded_exp, soft_bound
from pyro_vae.conditionals.cells import CELL_LIKELIHOODS, ColumnLikelihood
from pyro_vae.conditionals.counts import (
    Multinomial,
    NegativeBinomial,
    Poisson,
    ZeroInflatedNegativeBinomial,
    ZeroInflatedPoisson,
)
from pyro_vae.conditionals.densities import Beta, LogNormal, StudentT, VonMises
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
)
from pyro_vae.conditionals.pixelcnn import PixelCNN
from pyro_vae.conditionals.points import Point, TopK
from pyro_vae.conditionals.posteriors import DiagonalNormal, FullNormal, LowRankNormal
from pyro_vae.conditionals.registry import LIKELIHOODS, POSTERIORS, SHARE_POSTERIORS, likelihood, posterior
from pyro_vae.conditionals.simplex import DirichletPosterior, LogisticNormalPosterior

__all__ = [
    "CELL_LIKELIHOODS",
    "LIKELIHOODS",
    "POSTERIORS",
    "SHARE_POSTERIORS",
    "Bernoulli",
    "Beta",
    "Categorical",
    "ColumnLikelihood",
    "Conditional",
    "ContinuousBernoulli",
    "CouplingFlow",
    "DiagonalNormal",
    "DirichletPosterior",
    "DiscretizedLogistic",
    "Flow",
    "FlowDistribution",
    "FullNormal",
    "InverseAutoregressiveFlow",
    "Laplace",
    "Likelihood",
    "LogNormal",
    "LogisticNormalPosterior",
    "LowRankNormal",
    "Multinomial",
    "NegativeBinomial",
    "Normal",
    "PlanarFlow",
    "PixelCNN",
    "Point",
    "Poisson",
    "RadialFlow",
    "SplineFlow",
    "StudentT",
    "TopK",
    "VonMises",
    "ZeroInflatedNegativeBinomial",
    "ZeroInflatedPoisson",
    "bounded_exp",
    "likelihood",
    "posterior",
    "soft_bound",
]
