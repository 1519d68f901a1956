"""The Gaussian mixture VAE: clusters in the latent space, learned without labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae.conditionals import Conditional, Likelihood, bounded_exp
from pyro_vae.models.parts import NetworkFactory
from pyro_vae.models.semi_supervised import SemiSupervisedVAE
from pyro_vae.nets import MLP
from pyro_vae.priors import Prior
from pyro_vae.support.arguments import checked_from

__all__ = ["GMVAE"]


class GMVAE(SemiSupervisedVAE):
    r"""A `VAE` whose prior is a mixture of Gaussians, with the component as a second latent.

    .. math:: y \sim \mathrm{Cat}(1/C), \quad z \mid y \sim N(\mu_y, \mathrm{diag}(\sigma_y^2)), \quad
        x \sim p(x \mid z); \qquad q(y \mid x)\, q(z \mid x, y)

    The guide assigns data to clusters, `classify(x)`. Train it with `fit(..., elbo="enum")`, which sums over the
    clusters exactly, at C times the cost of decoding. With labels for some of the data, `(x, y)`, it is a
    semi-supervised pair, as `SemiSupervisedVAE`.

    The clusters depend on the random start of training: compare several seeds by their ELBO, which needs no labels.

    Args:
        data_shape: Shape of one datum: an int D, or an image shape (C, H, W).
        num_classes: C, the number of clusters.
        latent_dim: Size of z.
        hidden, activation, likelihood, posterior, classifier: As for `SemiSupervisedVAE`.

    Raises:
        ValueError: As `SemiSupervisedVAE` does.

    Reference: Dilokthanakul et al. 2016, arXiv 1611.02648; Jiang et al. 2017, arXiv 1611.05148; the graphical model is
    that of R. Shu's note "Gaussian mixture VAE: lessons in variational inference, generative models, and deep nets"
    (2016).

    Example:
        >>> vae = GMVAE(784, num_classes=10)
        >>> vae.classify(torch.zeros(3, 784)).probs.shape
        torch.Size([3, 10])
        >>> vae.sample(2, torch.tensor([3, 7])).shape
        torch.Size([2, 784])
    """

    @checked_from(num_classes=1, latent_dim=1)
    def __init__(
        self,
        data_shape: int | Sequence[int],
        num_classes: int = 10,
        latent_dim: int = 20,
        hidden: Sequence[int] = (500, 500),
        activation: str = "relu",
        likelihood: str | Likelihood = "bernoulli",
        posterior: str | Conditional = "diagonal_normal",
        classifier: nn.Module | NetworkFactory | None = None,
    ) -> None:
        super().__init__(
            data_shape,
            num_classes,
            latent_dim,
            hidden,
            activation,
            likelihood,
            posterior,
            prior=_Clusters(num_classes, latent_dim),
            classifier=classifier,
        )

    def make_decoder(
        self, latent_dim: int, num_classes: int, hidden: Sequence[int], out_shape: torch.Size, activation: str
    ) -> nn.Module:
        return MLP(latent_dim, tuple(reversed(hidden)), out_shape, activation)

    def latent_prior(self, one_hot: Tensor) -> Any:
        """p(z|y)."""
        return self.prior(one_hot)

    def features(self, z: Tensor, one_hot: Tensor) -> Tensor:
        return self.decoder(z)


class _Clusters(Prior):
    """p(z|y): a learned diagonal Gaussian for each class."""

    def __init__(self, num_classes: int, latent_dim: int) -> None:
        super().__init__(latent_dim)
        # different from the start, or all clusters would stay equal
        self.loc = nn.Parameter(torch.randn(num_classes, latent_dim))
        self.log_scale = nn.Parameter(torch.zeros(num_classes, latent_dim))

    def forward(self, one_hot: Tensor | None = None) -> Any:
        if one_hot is None:
            raise ValueError("the prior of z depends on the class: call latent_prior(one_hot)")
        return dist.Normal(one_hot @ self.loc, bounded_exp(one_hot @ self.log_scale)).to_event(1)
