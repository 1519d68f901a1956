"""Pairs whose log p(x), bounds and gradients are known exactly, to test estimators against."""

from pyro_vae.oracles.base import Oracle, Weighting, expected_log_mean
from pyro_vae.oracles.discrete import BitsAndClasses, Discrete
from pyro_vae.oracles.gaussian import LinearGaussian, TopDownChain, ppca_log_prob
from pyro_vae.oracles.grid import Grid
from pyro_vae.oracles.interleaved import Interleaved
from pyro_vae.oracles.state_space import Filtered, LinearStateSpace

__all__ = [
    "BitsAndClasses",
    "Weighting",
    "Discrete",
    "Filtered",
    "Grid",
    "Interleaved",
    "LinearGaussian",
    "LinearStateSpace",
    "Oracle",
    "TopDownChain",
    "expected_log_mean",
    "ppca_log_prob",
]
