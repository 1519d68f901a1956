"""Posterior families q(z|x): from features of the data to a distribution over the latent."""

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyro_vae.conditionals.base import Conditional, bounded_exp, soft_bound
from pyro_vae.nets import as_sizes
from pyro_vae.support.arguments import checked

__all__ = ["DiagonalNormal", "FullNormal", "LowRankNormal"]


class DiagonalNormal(Conditional):
    """`q(z|h) = Normal(loc, diag(scale**2))`, features `(*, 2 D)`: D locations, then D log-scales.

    Kingma & Welling 2014, arXiv 1312.6114. The log-scales pass through `soft_bound`.

    Args:
        latent_dim: D, the size of the latent.

    >>> DiagonalNormal(3)(torch.zeros(8, 6)).event_shape
    torch.Size([3])
    """

    @checked
    def __init__(self, latent_dim: int) -> None:
        super().__init__(latent_dim, 2 * latent_dim)

    def distribution(self, h: Tensor) -> TorchDistributionMixin:
        loc, log_scale = h.chunk(2, -1)
        return dist.Normal(loc, bounded_exp(log_scale)).to_event(1)


class FullNormal(Conditional):
    """`q(z|h) = Normal(loc, L L')`, features `(*, 2 D + D (D - 1) / 2)`: locations, log-scales, correlations.

    `L = diag(scale) (I + N)` with N strictly lower triangular, filled row by row. Log-scales and the entries of N
    pass through `soft_bound`, so that L can always be inverted. Zero features give the standard normal.

    Args:
        latent_dim: D, the size of the latent. Cost and features grow with its square.

    >>> FullNormal(3)(torch.zeros(8, 9)).event_shape
    torch.Size([3])
    """

    @checked
    def __init__(self, latent_dim: int) -> None:
        super().__init__(latent_dim, 2 * latent_dim + latent_dim * (latent_dim - 1) // 2)

    def distribution(self, h: Tensor) -> TorchDistributionMixin:
        size = self.event_shape[0]
        loc, log_scale, lower = h.split((size, size, h.shape[-1] - 2 * size), -1)
        row, column = torch.tril_indices(size, size, -1, device=h.device)
        unit = torch.eye(size, dtype=h.dtype, device=h.device).expand(*h.shape[:-1], size, size).clone()
        unit[..., row, column] = soft_bound(lower)
        return dist.MultivariateNormal(loc, scale_tril=bounded_exp(log_scale).unsqueeze(-1) * unit)


class LowRankNormal(Conditional):
    """`q(z|h) = Normal(loc, S (I + F F') S)`, features `(*, 2 D + D R)`: locations, log-scales, factors.

    `S = diag(scale)`, and F of shape `(D, R)` is filled row by row. Log-scales and the entries of F pass through
    `soft_bound`. Zero features give the standard normal. The cost
    grows like D R**2.

    Args:
        latent_dim: D, the size of the latent.
        rank: R, the number of directions in which elements may correlate.

    Reference: Rezende et al. 2014, arXiv 1401.4082, section 4.3 (there with R = 1 and for the precision).

    >>> LowRankNormal(3, rank=1)(torch.zeros(8, 9)).event_shape
    torch.Size([3])
    """

    @checked
    def __init__(self, latent_dim: int, rank: int = 4) -> None:
        (self.rank,) = as_sizes(rank, "rank", 1)
        super().__init__(latent_dim, (2 + rank) * latent_dim)

    def distribution(self, h: Tensor) -> TorchDistributionMixin:
        size = self.event_shape[0]
        loc, log_scale, factor = h.split((size, size, h.shape[-1] - 2 * size), -1)
        scale = bounded_exp(log_scale)
        factor = scale.unsqueeze(-1) * soft_bound(factor).unflatten(-1, (size, self.rank))  # (*, D, R)
        return dist.LowRankMultivariateNormal(loc, factor, scale.square())
