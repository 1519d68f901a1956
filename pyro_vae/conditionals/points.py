"""Posteriors that are a single point: the codes of an autoencoder, dense or sparse."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyro_vae.conditionals.base import Conditional
from pyro_vae.nets import as_sizes

__all__ = ["Point", "TopK"]


class Point(Conditional):
    """`q(z|h) = delta(z - code(h))`: all of the posterior in one point, features `(*, D)`.

    It has no density at a continuous latent, so that there is an ELBO (an autoencoder's loss, up to its sign), but no
    importance sampling: `pv.log_marginal` refuses it.

    Args:
        latent_dim: D, size of the latent.
        code: a module `(*, D) -> (*, D)` from features to the code, `TopK(k)` or `torch.nn.Sigmoid()` for one; the
            identity if None.

    >>> Point(3)(torch.zeros(8, 3)).sample().shape
    torch.Size([8, 3])
    """

    def __init__(self, latent_dim: int, code: nn.Module | None = None) -> None:
        super().__init__(latent_dim, latent_dim)
        self.code = nn.Identity() if code is None else code

    def distribution(self, h: Tensor) -> TorchDistributionMixin:
        return dist.Delta(self.code(h), event_dim=1)


class TopK(nn.Module):
    """The k largest elements of each vector `(*, D)` as they are, zero in place of the others: a k-sparse code.

    Gradients flow through the k that stay. The paper encodes linearly and keeps the largest, not the largest in size.

    Args:
        k: how many stay.

    Raises:
        ValueError: for a vector with fewer elements.

    Reference: Makhzani and Frey 2014, arXiv 1312.5663.

    >>> TopK(2)(torch.tensor([0.5, -3.0, 2.0, 1.0]))
    tensor([0., 0., 2., 1.])
    """

    def __init__(self, k: int) -> None:
        super().__init__()
        (self.k,) = as_sizes(k, "k", 1)

    def forward(self, h: Tensor) -> Tensor:
        if h.shape[-1] < self.k:
            raise ValueError(f"TopK({self.k}) came upon a code of {h.shape[-1]} elements: use a larger latent_dim")
        kept = h.topk(self.k, -1)
        return torch.zeros_like(h).scatter(-1, kept.indices, kept.values)

    def extra_repr(self) -> str:
        return f"k={self.k}"
