"""Likelihoods and posterior families by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pyro_vae.conditionals.base import Conditional
from pyro_vae.conditionals.counts import (
    Multinomial,
    NegativeBinomial,
    Poisson,
    ZeroInflatedNegativeBinomial,
    ZeroInflatedPoisson,
)
from pyro_vae.conditionals.densities import Beta, LogNormal, StudentT, VonMises
from pyro_vae.conditionals.flows import CouplingFlow, InverseAutoregressiveFlow, PlanarFlow, RadialFlow, SplineFlow
from pyro_vae.conditionals.likelihoods import (
    Bernoulli,
    Categorical,
    ContinuousBernoulli,
    DiscretizedLogistic,
    Laplace,
    Likelihood,
    Normal,
)
from pyro_vae.conditionals.posteriors import DiagonalNormal, FullNormal, LowRankNormal
from pyro_vae.conditionals.simplex import DirichletPosterior, LogisticNormalPosterior
from pyro_vae.nets import lookup
from pyro_vae.support.arguments import checked

__all__ = ["LIKELIHOODS", "POSTERIORS", "SHARE_POSTERIORS", "likelihood", "posterior"]

LIKELIHOODS: dict[str, Callable[..., Likelihood]] = {
    "bernoulli": Bernoulli,
    "continuous_bernoulli": ContinuousBernoulli,
    "normal": Normal,
    "laplace": Laplace,
    "categorical": Categorical,
    "discretized_logistic": DiscretizedLogistic,
    "student_t": StudentT,
    "log_normal": LogNormal,
    "beta": Beta,
    "von_mises": VonMises,
    "poisson": Poisson,
    "negative_binomial": NegativeBinomial,
    "zero_inflated_poisson": ZeroInflatedPoisson,
    "zero_inflated_negative_binomial": ZeroInflatedNegativeBinomial,
    "multinomial": Multinomial,
}
POSTERIORS: dict[str, Callable[..., Conditional]] = {
    "diagonal_normal": DiagonalNormal,
    "full_normal": FullNormal,
    "low_rank_normal": LowRankNormal,
    "planar": PlanarFlow,
    "radial": RadialFlow,
    "iaf": InverseAutoregressiveFlow,
    "coupling": CouplingFlow,
    "spline": SplineFlow,
}
# of latents that are shares, which sum to one: they need a prior over shares
SHARE_POSTERIORS: dict[str, Callable[..., Conditional]] = {
    "dirichlet": DirichletPosterior,
    "logistic_normal": LogisticNormalPosterior,
}


@checked
def likelihood(name: str, shape: int | Sequence[int], **arguments: Any) -> Likelihood:
    """The likelihood called `name` in `LIKELIHOODS`, for data of shape `shape`.

    Raises:
        ValueError: for an unknown name.

    >>> likelihood("normal", (3, 8, 8), scale="pixel")
    Normal(event_shape=(3, 8, 8), param_shape=(6, 8, 8))
    """
    return lookup(LIKELIHOODS, name, "likelihood")(shape, **arguments)


@checked
def posterior(name: str, latent_dim: int, **arguments: Any) -> Conditional:
    """The posterior family called `name` in `POSTERIORS`, for a latent of size `latent_dim`.

    Raises:
        ValueError: for an unknown name.

    >>> posterior("diagonal_normal", 20).param_shape
    torch.Size([40])
    """
    return lookup(POSTERIORS, name, "posterior")(latent_dim, **arguments)
