"""Priors over shares that sum to one: Dirichlet and logistic-normal."""

from __future__ import annotations

import math

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyro_vae.conditionals.simplex import InnerDirichlet, LogisticNormal, check_shares
from pyro_vae.priors.base import Prior
from pyro_vae.support.arguments import checked

__all__ = ["DirichletPrior", "LogisticNormalPrior"]


class DirichletPrior(Prior):
    """`p(z) = Dirichlet(a, ..., a)` over K shares that sum to one. A small `a` makes most of them nearly zero.

    Args:
        latent_dim: K, at least 2.
        concentration: a > 0; 1 is the uniform distribution.

    Raises:
        ValueError: for fewer than 2 shares, or a concentration that is not positive and finite.

    >>> DirichletPrior(3)().log_prob(torch.tensor([0.2, 0.3, 0.5])).exp().round(decimals=3)
    tensor(2.)
    """

    shares = True
    alpha: Tensor

    @checked
    def __init__(self, latent_dim: int, concentration: float = 1.0) -> None:
        check_prior(latent_dim, concentration)
        super().__init__(latent_dim)
        self.register_buffer("alpha", torch.full(self.event_shape, float(concentration)), persistent=False)

    def forward(self) -> TorchDistributionMixin:
        return InnerDirichlet(self.alpha)


class LogisticNormalPrior(Prior):
    r"""`p(z)`: the softmax of K - 1 independent normal log-ratios of variance `1 / a`, which treats all shares alike.

    It is the Laplace approximation, in the log-ratios, of a Dirichlet distribution with concentration a. Srivastava and
    Sutton (2017, arXiv 1703.01488, eq. 3) keep the diagonal of the same covariance, `(1 - 1 / K) / a`, in K redundant
    coordinates.

    Args:
        latent_dim: K, at least 2.
        concentration: a > 0.

    Raises:
        ValueError: for fewer than 2 shares, or a concentration that is not positive and finite.

    >>> LogisticNormalPrior(3)().sample((5,)).shape
    torch.Size([5, 3])
    """

    shares = True
    loc: Tensor
    scale: Tensor

    @checked
    def __init__(self, latent_dim: int, concentration: float = 1.0) -> None:
        check_prior(latent_dim, concentration)
        super().__init__(latent_dim)
        self.register_buffer("loc", torch.zeros(latent_dim - 1), persistent=False)
        self.register_buffer("scale", torch.full((latent_dim - 1,), concentration**-0.5), persistent=False)

    def forward(self) -> TorchDistributionMixin:
        return LogisticNormal(self.loc, self.scale)


def check_prior(latent_dim: int, concentration: float) -> None:
    """Refuse what no prior over shares can have.

    Raises:
        ValueError: For fewer than two shares, or a concentration that is not positive and finite.
    """
    check_shares(latent_dim)
    if not 0 < concentration < math.inf:
        raise ValueError(f"concentration must be positive and finite, got {concentration!r}")
