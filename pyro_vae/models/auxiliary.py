"""The auxiliary VAE: a richer posterior by a second latent, on which the data do not depend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from pyro_vae.conditionals import Conditional, DiagonalNormal, Likelihood
from pyro_vae.models.parts import NetworkFactory, as_posterior
from pyro_vae.models.vae import VAE
from pyro_vae.nets import ACTIVATIONS, MLP, as_sizes, lookup
from pyro_vae.priors import Prior
from pyro_vae.support.arguments import checked

__all__ = ["AuxiliaryVAE"]


class AuxiliaryVAE(VAE):
    r"""A `VAE` whose posterior is a continuous mixture over an auxiliary latent a.

    .. math:: z \sim p(z), \quad x \sim p(x \mid z), \quad a \sim r(a \mid x, z); \qquad
        q(z \mid x) = \int q(a \mid x)\, q(z \mid x, a)\, da

    The integral has no closed form, so the model draws a as well, from a learned r(a|x, z). Since r integrates to one,
    log p(x) is that of the VAE, and every bound of the pair is a bound on it; the further r is from q(a|x, z), the
    looser. The pair is an ordinary one with the latents "a" and "z": any estimator and any evaluation applies.

    Args:
        data_shape: Shape of one datum: an int D, or an image shape (C, H, W).
        latent_dim: Size of z.
        auxiliary_dim: Size of a.
        hidden: Widths of the hidden layers of each of the encoders; the decoder has them in reverse. The data pass
            all but the last layer once, whatever the number of particles.
        activation, likelihood, posterior, prior, decoder: As for `VAE`; `posterior` is q(z|x, a), and q(a|x) and r are
            diagonal normals.

    Raises:
        ValueError: As `VAE` does, and for no hidden layer.

    Reference: Ranganath et al. 2016, arXiv 1511.02386, eq. 4 and 7; Maaløe et al. 2016, arXiv 1602.05473, eq. 3 and 4.

    Example:
        >>> vae = AuxiliaryVAE(784, latent_dim=10, auxiliary_dim=5)
        >>> vae.encode(torch.zeros(3, 784)).event_shape
        torch.Size([10])
    """

    @checked
    def __init__(
        self,
        data_shape: int | Sequence[int],
        latent_dim: int = 20,
        auxiliary_dim: int = 20,
        hidden: Sequence[int] = (200, 200),
        activation: str = "elu",
        likelihood: str | Likelihood = "bernoulli",
        posterior: str | Conditional = "diagonal_normal",
        prior: str | Prior = "standard_normal",
        decoder: nn.Module | NetworkFactory | None = None,
    ) -> None:
        posterior = as_posterior(posterior, latent_dim)
        encoder = _JointEncoder(data_shape, auxiliary_dim, hidden, posterior.param_shape, activation)
        super().__init__(
            data_shape, latent_dim, hidden, activation, likelihood, posterior, prior, encoder=encoder, decoder=decoder
        )
        self.auxiliary = DiagonalNormal(auxiliary_dim)
        self.auxiliary_encoder = MLP(data_shape, hidden, self.auxiliary.param_shape, activation)
        self.reverse = _JointEncoder(data_shape, latent_dim, hidden, self.auxiliary.param_shape, activation)

    def model(self, x: Tensor) -> None:
        """The generative model of the data `x`, `(N, *data_shape)`, followed by the auxiliary latent."""
        self._check(x, batch=True)
        self._register("prior", "decoder", "likelihood", "reverse")
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", self.decode(z), obs=x)
            pyro.sample("a", self.auxiliary(self.reverse(x, z)))

    def guide(self, x: Tensor) -> None:
        """The amortized posterior of "a" and then "z" for `x`, `(N, *data_shape)`."""
        self._check(x, batch=True)
        self._register("encoder", "posterior", "auxiliary_encoder")
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", self.auxiliary(self.auxiliary_encoder(x)))
            pyro.sample("z", self.posterior(self.encoder(x, a)))

    def encode(self, x: Tensor) -> Any:
        """q(z|x, a) at one draw of a from q(a|x): batch shape `*`, event shape `(latent_dim,)`."""
        self._check(x)
        a = self.auxiliary(self.auxiliary_encoder(x)).rsample()
        return self.posterior(self.encoder(x, a))


class _JointEncoder(nn.Module):
    """A network `(*, *shape), (*, in) -> (*, *out_shape)` whose first layers see the first input only."""

    def __init__(
        self, shape: int | Sequence[int], in_dim: int, hidden: Sequence[int], out_shape: Sequence[int], activation: str
    ) -> None:
        super().__init__()
        *first, last = as_sizes(hidden, "hidden")
        (in_dim,) = as_sizes(in_dim, "auxiliary_dim or latent_dim", 1)
        self.data = MLP(shape, first, last, activation)
        self.activation = lookup(ACTIVATIONS, activation, "activation")()
        self.both = MLP(last + in_dim, (last,), out_shape, activation)

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        h = self.activation(self.data(x))
        lead = torch.broadcast_shapes(h.shape[:-1], other.shape[:-1])
        h, other = h.expand(*lead, h.shape[-1]), other.expand(*lead, other.shape[-1])
        return self.both(torch.cat([h, other], -1))
