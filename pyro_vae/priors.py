"""Priors p(z): modules `() -> Distribution` over the latent."""

from collections.abc import Callable, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyro_vae.nets import as_sizes, lookup

__all__ = ["PRIORS", "Prior", "StandardNormal", "prior"]


class Prior(nn.Module):
    """A distribution over the latent: a module that, called, returns one with batch shape `()`.

    Args:
        event_shape: shape of one latent.

    Raises:
        ValueError: for sizes below one.
    """

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

    def __init__(self, latent_dim: int) -> None:
        super().__init__(latent_dim)
        # buffers follow the module's device and precision; constants do not belong in a checkpoint
        self.register_buffer("loc", torch.zeros(self.event_shape), persistent=False)
        self.register_buffer("scale", torch.ones(self.event_shape), persistent=False)

    def forward(self) -> TorchDistributionMixin:
        return dist.Normal(self.loc, self.scale).to_event(1)


PRIORS: dict[str, Callable[..., Prior]] = {"standard_normal": StandardNormal}


def prior(name: str, latent_dim: int, **arguments: Any) -> Prior:
    """The prior called `name` in `PRIORS`.

    Raises:
        ValueError: for an unknown name.

    >>> prior("standard_normal", 3)
    StandardNormal(event_shape=(3,))
    """
    return lookup(PRIORS, name, "prior")(latent_dim, **arguments)
