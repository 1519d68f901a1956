"""Posteriors that are a point mass: the codes of an autoencoder, dense or sparse."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyro_vae.conditionals.base import Conditional
from pyro_vae.nets import as_sizes
from pyro_vae.support.arguments import checked

__all__ = ["Point", "TopK"]


class Point(Conditional):
    """`q(z|h) = delta(z - code(h))`: a point mass at the code, features `(*, D)`.

    A point mass at a continuous latent has no density. There is an ELBO (minus the loss of an autoencoder), but no
    importance sampling: `pv.log_marginal` raises an error.

    Args:
        latent_dim: D, size of the latent.
        code: a module `(*, D) -> (*, D)` from features to the code, such as `TopK(k)` or `torch.nn.Sigmoid()`; the
            identity if None.

    >>> Point(3)(torch.zeros(8, 3)).sample().shape
    torch.Size([8, 3])
    """

    @checked
    def __init__(self, latent_dim: int, code: nn.Module | None = None) -> None:
        super().__init__(latent_dim, latent_dim)
        self.code = nn.Identity() if code is None else code

    def distribution(self, h: Tensor) -> TorchDistributionMixin:
        return dist.Delta(self.code(h), event_dim=1)


class TopK(nn.Module):
    """The k largest elements of each vector `(*, D)`, and zeros in place of the others: a k-sparse code.

    Gradients flow through the k elements. As in the paper, the largest values are taken, not the largest magnitudes.

    Args:
        k: number of nonzero elements.

    Raises:
        ValueError: for a vector with fewer elements.

    Reference: Makhzani and Frey 2014, arXiv 1312.5663.

    >>> TopK(2)(torch.tensor([0.5, -3.0, 2.0, 1.0]))
    tensor([0., 0., 2., 1.])
    """

    @checked
    def __init__(self, k: int) -> None:
        super().__init__()
        (self.k,) = as_sizes(k, "k", 1)

    def forward(self, h: Tensor) -> Tensor:
        if h.shape[-1] < self.k:
            raise ValueError(
                f"TopK({self.k}) got a code of {h.shape[-1]} elements: use a latent_dim of {self.k} or more"
            )
        largest = h.topk(self.k, -1)
        return torch.zeros_like(h).scatter(-1, largest.indices, largest.values)

    def extra_repr(self) -> str:
        return f"k={self.k}"
