"""The deterministic autoencoder, plain or sparse: a VAE without noise and without a prior."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from pyro_vae.conditionals import Likelihood, Point
from pyro_vae.models.parts import NetworkFactory
from pyro_vae.models.vae import VAE
from pyro_vae.priors import Prior
from pyro_vae.support.arguments import checked_from

__all__ = ["Autoencoder"]


class Autoencoder(VAE):
    r"""A deterministic autoencoder: the guide is a point mass at the code, the prior is flat.

    .. math:: p(z) \propto 1, \quad x \sim p(x \mid \mathrm{decoder}(z)); \qquad
        q(z \mid x) = \delta\big(z - \mathrm{code}(\mathrm{encoder}(x))\big)

    The negative ELBO is the reconstruction loss -log p(x|z) and nothing else: half the squared error plus a constant
    for `Normal(data_shape, scale=1.0)`, the cross entropy for "bernoulli". It is the limit of a VAE whose KL has weight
    zero, in which the noise of the posterior only costs reconstruction, and vanishes. The guide is not a density, so
    there are no importance weights; the flat prior cannot be drawn from. Asking for either raises a ValueError.

    There are three ways to make an overcomplete code sparse: `prior=LaplacePrior(D, scale)` (an L1 penalty),
    `code=TopK(k)` (k elements at a time), `code=torch.nn.Sigmoid()` under the objective "sparse" (a mean activation).
    Under `pv.elbo.Denoising` it becomes a denoising autoencoder.

    Args:
        data_shape: Shape of one datum: an int D, or an image shape (C, H, W).
        latent_dim: Size of the code.
        hidden: Widths of the encoder's hidden layers; the decoder has them in reverse.
        activation: Name of the nonlinearity, see `pv.nets`.
        likelihood: p(x|z), whose -log p(x|z) is the reconstruction loss; as for `VAE`.
        code: A module `(*, latent_dim) -> (*, latent_dim)` between encoder and code; the identity if None.
        prior: "flat", or a `Prior` whose negative log-density is a penalty on the code.
        encoder, decoder: As for `VAE`, with an encoder output `(*, latent_dim)`. `pv.nets.ConvEncoder` and
            `pv.nets.ConvDecoder` make a convolutional autoencoder.

    Raises:
        ValueError: As `VAE` does.

    Reference: Rumelhart, Hinton and Williams 1986, Nature 323; Hinton and Salakhutdinov 2006, Science 313; Makhzani and
    Frey 2014, arXiv 1312.5663 (top-k).

    Example:
        >>> import torch
        >>> ae = Autoencoder(64, latent_dim=2, likelihood="normal")
        >>> ae.code_of(torch.zeros(3, 64)).shape
        torch.Size([3, 2])
    """

    @checked_from(latent_dim=1)
    def __init__(
        self,
        data_shape: int | Sequence[int],
        latent_dim: int = 20,
        hidden: Sequence[int] = (200, 200),
        activation: str = "elu",
        likelihood: str | Likelihood = "bernoulli",
        code: nn.Module | None = None,
        prior: str | Prior = "flat",
        encoder: nn.Module | NetworkFactory | None = None,
        decoder: nn.Module | NetworkFactory | None = None,
    ) -> None:
        posterior = Point(latent_dim, code)
        super().__init__(data_shape, latent_dim, hidden, activation, likelihood, posterior, prior, encoder, decoder)

    def code_of(self, x: Tensor) -> Tensor:
        """The code `(*, latent_dim)` of data `(*, *data_shape)`."""
        code: Tensor = self.encode(x).mean
        return code
