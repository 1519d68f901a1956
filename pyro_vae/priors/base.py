"""The base of priors, and the simple ones: standard normal, Laplace, flat."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyro_vae.nets import as_sizes
from pyro_vae.support.arguments import checked

__all__ = ["FlatPrior", "LaplacePrior", "Prior", "StandardNormal"]


class Prior(nn.Module):
    """A distribution over the latent: a module whose call returns a distribution with batch shape `()`.

    Attributes:
        uses_encoder: whether it is called with the function x -> q(z|x), as `VampPrior` is.
        shares: whether the elements of a latent are shares that sum to one.

    Args:
        event_shape: shape of one latent.

    Raises:
        ValueError: for sizes below one.
    """

    uses_encoder: ClassVar[bool] = False
    shares: ClassVar[bool] = False

    def __init__(self, event_shape: int | Sequence[int]) -> None:
        super().__init__()
        self.event_shape = as_sizes(event_shape, "event_shape")

    def forward(self) -> Any:
        raise NotImplementedError(f"{type(self).__name__} must define forward()")

    def extra_repr(self) -> str:
        return f"event_shape={tuple(self.event_shape)}"


class StandardNormal(Prior):
    """`p(z) = Normal(0, I)`.

    Args:
        latent_dim: size of the latent.

    >>> StandardNormal(3)().log_prob(torch.zeros(2, 3))
    tensor([-2.7568, -2.7568])
    """

    loc: Tensor
    scale: Tensor

    @checked
    def __init__(self, latent_dim: int) -> None:
        super().__init__(latent_dim)
        # buffers follow the module's device and precision; constants do not belong in a checkpoint
        self.register_buffer("loc", torch.zeros(self.event_shape), persistent=False)
        self.register_buffer("scale", torch.ones(self.event_shape), persistent=False)

    def forward(self) -> TorchDistributionMixin:
        return dist.Normal(self.loc, self.scale).to_event(1)


class LaplacePrior(Prior):
    r"""`p(z) = Laplace(0, scale)` for each element: under a point mass an L1 penalty of weight `1 / scale`.

    .. math:: -\log p(z) = \|z\|_1 / b + D \log 2b

    Args:
        latent_dim: D, size of the latent.
        scale: b.

    >>> LaplacePrior(2, scale=0.5)().log_prob(torch.tensor([1.0, -1.0]))
    tensor(-4.)
    """

    loc: Tensor
    scale: Tensor

    @checked
    def __init__(self, latent_dim: int, scale: float = 1.0) -> None:
        if not 0 < scale < math.inf:
            raise ValueError(f"scale must be positive and finite, got {scale!r}")
        super().__init__(latent_dim)
        self.register_buffer("loc", torch.zeros(self.event_shape), persistent=False)
        self.register_buffer("scale", torch.full(self.event_shape, float(scale)), persistent=False)

    def forward(self) -> TorchDistributionMixin:
        return dist.Laplace(self.loc, self.scale).to_event(1)


class FlatPrior(Prior):
    """`p(z)` proportional to 1: log-density 0 everywhere. It is improper, so it cannot be drawn from.

    With a point mass as the guide the negative ELBO is the reconstruction loss, see `pv.Autoencoder`. With a density as
    the guide the ELBO has no upper bound, since a wider one is always better.

    Args:
        latent_dim: size of the latent.

    >>> FlatPrior(3)().log_prob(torch.ones(2, 3))
    tensor([0., 0.])
    """

    @checked
    def __init__(self, latent_dim: int) -> None:
        super().__init__(latent_dim)

    def forward(self) -> TorchDistributionMixin:
        return Flat(constraints.real_vector, torch.Size(), self.event_shape)


class Flat(dist.ImproperUniform):
    """Pyro's improper distribution, on any device, with an error that explains why it has no draws."""

    def log_prob(self, value: Tensor) -> Tensor:
        lead = value.shape[: value.dim() - len(self.event_shape)]
        return value.new_zeros(torch.broadcast_shapes(lead, self.batch_shape))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Not defined for an improper distribution.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            "the flat prior is improper and cannot be drawn from: an autoencoder reconstructs, it does not generate. "
            "For samples give the model a prior that is a density, such as prior='standard_normal', or fit a density "
            "to the codes"
        )
