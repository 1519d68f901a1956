"""Distributions over shares that sum to one, and posterior families of them: Dirichlet and logistic-normal."""

import math
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyro_vae.conditionals.base import Conditional, bounded_exp, soft_bound
from pyro_vae.support.arguments import checked

__all__ = ["DirichletPosterior", "InnerDirichlet", "LogisticNormal", "LogisticNormalPosterior", "log_ratio_basis"]


def log_ratio_basis(size: int) -> Tensor:
    """An orthonormal basis `(K, K - 1)` of the vectors that sum to zero (Helmert's), in double precision.

    >>> log_ratio_basis(2)
    tensor([[ 0.7071],
            [-0.7071]], dtype=torch.float64)
    """
    k = torch.arange(1, size, dtype=torch.double)
    upper = torch.ones(size, size - 1, dtype=torch.double).triu() - torch.diag(k, -1)[:, : size - 1]
    return upper / (k * (k + 1)).sqrt()


def _inside(z: Tensor) -> Tensor:
    """Shares with those that are zero in floating point replaced by the smallest float."""
    return z.clamp_min(torch.finfo(z.dtype).tiny)


class InnerDirichlet(dist.Dirichlet):
    """A Dirichlet distribution whose density is finite on the edges too: a share of 0 counts as the smallest float.

    Draws of small concentrations do fall on an edge in floating point, where torch gives infinite and NaN densities.
    """

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return _inside(super().rsample(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        a = self.concentration
        return ((a - 1) * _inside(value).log()).sum(-1) + a.sum(-1).lgamma() - a.lgamma().sum(-1)


class LogisticNormal(dist.TorchDistribution):
    r"""Shares `z = softmax(V e)` of independent normal e, with an orthonormal basis V of log-ratios.

    .. math:: p(z) = N(e; \mathrm{loc}, \mathrm{scale}) \Big/ \Big(\sqrt K \prod_k z_k\Big), \qquad
        e = V^\top \log z

    The density is with respect to the volume of the first K - 1 shares, as that of a Dirichlet distribution. `loc = 0`
    and equal scales treat all K shares alike, which torch's distribution of this name does not. Shares of 0 count as
    the smallest float.

    Args:
        loc, scale: location and scale of e, `(*, K - 1)`.

    Reference: Aitchison and Shen 1980, doi 10.1093/biomet/67.2.261; Egozcue et al. 2003 (the basis), doi
    10.1023/A:1023818214614.
    """

    arg_constraints = {  # noqa: RUF012
        "loc": constraints.real_vector,
        "scale": constraints.independent(constraints.positive, 1),
    }
    support = constraints.simplex
    has_rsample = True

    def __init__(self, loc: Tensor, scale: Tensor, validate_args: bool | None = None) -> None:
        self.loc, self.scale = torch.broadcast_tensors(loc, scale)
        self.basis = log_ratio_basis(loc.shape[-1] + 1).to(loc)
        super().__init__(self.loc.shape[:-1], torch.Size((loc.shape[-1] + 1,)), validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> "LogisticNormal":
        new = self._get_checked_instance(LogisticNormal, _instance)
        new.loc, new.scale = self.loc.expand(*batch_shape, -1), self.scale.expand(*batch_shape, -1)
        new.basis = self.basis
        super(LogisticNormal, new).__init__(torch.Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        shape = (*torch.Size(sample_shape), *self.loc.shape)
        e = self.loc + self.scale * torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        return (e @ self.basis.T).softmax(-1)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        with torch.no_grad():
            return self.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        logs = _inside(value).log()
        normal = dist.Normal(self.loc, self.scale, validate_args=False).log_prob(logs @ self.basis).sum(-1)
        return normal - logs.sum(-1) - math.log(self.event_shape[0]) / 2


class DirichletPosterior(Conditional):
    """`q(z|h) = Dirichlet(exp(h))` over K shares that sum to one, features `(*, K)`, bounded by `soft_bound`.

    Gradients are those of implicit reparameterization (Figurnov et al. 2018, arXiv 1805.08498), as torch has them.

    Args:
        latent_dim: K, the number of shares, at least 2.

    Raises:
        ValueError: for fewer than 2.

    >>> DirichletPosterior(3)(torch.zeros(8, 3)).mean[0]
    tensor([0.3333, 0.3333, 0.3333])
    """

    shares = True

    @checked
    def __init__(self, latent_dim: int) -> None:
        check_shares(latent_dim)
        super().__init__(latent_dim, latent_dim)

    def distribution(self, h: Tensor) -> TorchDistributionMixin:
        return InnerDirichlet(bounded_exp(h))


class LogisticNormalPosterior(Conditional):
    """`q(z|h)`: the softmax of independent normal log-ratios, over K shares; features `(*, 2 (K - 1))`.

    Features are the K - 1 locations, then as many log-scales; both pass through `soft_bound`. See
    `pyro_vae.conditionals.simplex.LogisticNormal` for the density.

    Args:
        latent_dim: K, the number of shares, at least 2.

    Raises:
        ValueError: for fewer than 2.

    Reference: Srivastava and Sutton 2017, arXiv 1703.01488, section 3.3 (there with K redundant normals).

    >>> LogisticNormalPosterior(3)(torch.zeros(8, 4)).sample().shape
    torch.Size([8, 3])
    """

    shares = True

    @checked
    def __init__(self, latent_dim: int) -> None:
        check_shares(latent_dim)
        super().__init__(latent_dim, 2 * (latent_dim - 1))

    def distribution(self, h: Tensor) -> TorchDistributionMixin:
        loc, log_scale = h.chunk(2, -1)
        return LogisticNormal(2 * soft_bound(loc / 2), bounded_exp(log_scale))


def check_shares(size: int) -> None:
    """Refuse fewer than two shares.

    Raises:
        ValueError: For such a number.
    """
    if size < 2:
        raise ValueError(f"shares that sum to one take a latent_dim of at least 2, got {size}")
