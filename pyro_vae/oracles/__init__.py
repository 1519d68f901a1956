"""Pairs whose log p(x), bounds and gradients are known exactly, to test estimators against."""

from pyro_vae.oracles.base import Oracle, expected_log_mean
from pyro_vae.oracles.discrete import BitsAndClasses, Discrete, Grid
from pyro_vae.oracles.gaussian import LinearGaussian, TopDownChain, ppca_log_prob

__all__ = [
    "BitsAndClasses",
    "Discrete",
    "Grid",
    "LinearGaussian",
    "Oracle",
    "TopDownChain",
    "expected_log_mean",
    "ppca_log_prob",
]
