"""Priors that are mixtures: of Gaussians, and of the encoder's own posteriors at learned inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyro_vae.conditionals import bounded_exp
from pyro_vae.nets import as_sizes
from pyro_vae.priors.base import Prior
from pyro_vae.support.arguments import checked

__all__ = ["MixturePrior", "VampPrior"]


class MixturePrior(Prior):
    r"""`p(z) = \sum_k w_k Normal(loc_k, diag(scale_k^2))`, all learned.

    It starts with K equal components whose locations are drawn from a standard normal.

    Args:
        latent_dim: D, size of the latent.
        components: K.

    Reference: Tomczak and Welling 2018, arXiv 1705.07120, section 4 (there as a baseline).

    >>> MixturePrior(3, components=4)().sample((5,)).shape
    torch.Size([5, 3])
    """

    @checked
    def __init__(self, latent_dim: int, components: int = 10) -> None:
        super().__init__(latent_dim)
        (components,) = as_sizes(components, "components", 1)
        self.logits = nn.Parameter(torch.zeros(components))
        self.loc = nn.Parameter(torch.randn(components, *self.event_shape))
        self.log_scale = nn.Parameter(torch.zeros(components, *self.event_shape))

    def forward(self) -> TorchDistributionMixin:
        components = dist.Normal(self.loc, bounded_exp(self.log_scale)).to_event(1)
        return dist.MixtureSameFamily(dist.Categorical(logits=self.logits), components)


class VampPrior(Prior):
    r"""The mixture of the posteriors of K learned pseudo-inputs u, which lies where the encoder maps data.

    .. math:: p(z) = \frac1K \sum_k q(z \mid u_k)

    With all the data as u it would be the prior that maximizes the ELBO, which overfits; K inputs prevent that. It is
    called with the encoder, x -> q(z|x), whose weights it shares: `VAE` does so. A step runs the encoder on K more
    inputs.

    Args:
        latent_dim: size of the latent.
        data_shape: shape of one datum and of one pseudo-input.
        components: K.
        unit: whether data lie in [0, 1]; pseudo-inputs then do, by a sigmoid.

    Reference: Tomczak and Welling 2018, arXiv 1705.07120, eq. 9.

    >>> prior = VampPrior(3, 8, components=4)
    >>> prior(lambda u: dist.Normal(u[..., :3], 1.0).to_event(1)).sample((5,)).shape
    torch.Size([5, 3])
    """

    uses_encoder: ClassVar[bool] = True
    logits: Tensor

    @checked
    def __init__(
        self, latent_dim: int, data_shape: int | Sequence[int], components: int = 500, unit: bool = True
    ) -> None:
        super().__init__(latent_dim)
        (self.components,) = as_sizes(components, "components", 1)
        self.unit = unit
        # far from each other and mostly dark, so that components start far apart
        self.pseudo = nn.Parameter(torch.randn(components, *as_sizes(data_shape, "data_shape")) - 2.0 * unit)
        self.register_buffer("logits", torch.zeros(components), persistent=False)

    @property
    def inputs(self) -> Tensor:
        """The pseudo-inputs, `(K, *data_shape)`."""
        return self.pseudo.sigmoid() if self.unit else self.pseudo

    @torch.no_grad()
    def start_at(self, x: Tensor) -> VampPrior:
        """Set the pseudo-inputs to the first K of the data `(N, *data_shape)`; returns the prior.

        Raises:
            ValueError: For fewer than K data, or data of another shape.
        """
        if len(x) < self.components or x.shape[1:] != self.pseudo.shape[1:]:
            expected = (f"at least {self.components}", *self.pseudo.shape[1:])
            raise ValueError(
                f"expected data of shape ({', '.join(map(str, expected))}), got {tuple(x.shape)}: pass more, or build "
                "the prior with fewer components"
            )
        x = x[: self.components].to(self.pseudo)
        self.pseudo.copy_(torch.logit(x, eps=0.05) if self.unit else x)
        return self

    def forward(self, encode: Callable[[Tensor], Any] | None = None) -> TorchDistributionMixin:
        if encode is None:
            raise ValueError(
                "a VampPrior is called with the encoder, prior(encode), where encode(x) is q(z|x), and this model "
                "calls it without: use it in VAE, or in a pair of your own"
            )
        return dist.MixtureSameFamily(dist.Categorical(logits=self.logits), encode(self.inputs))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, components={self.components}"
