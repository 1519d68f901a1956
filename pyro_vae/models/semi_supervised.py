"""The semi-supervised VAE: a class, known for some of the data, and a continuous latent for the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae.conditionals import Conditional, Likelihood
from pyro_vae.models.parts import NetworkFactory, as_likelihood, as_network, as_posterior
from pyro_vae.models.vae import VAE
from pyro_vae.nets import ACTIVATIONS, MLP, as_sizes, lookup
from pyro_vae.priors import Prior
from pyro_vae.support.arguments import checked

__all__ = ["SemiSupervisedVAE"]

IMPOSSIBLE = -1e4  # a log-probability: its exponential is 0, and unlike that of -inf, 0 times it is 0


class SemiSupervisedVAE(VAE):
    r"""A `VAE` with a class as a second latent, known for some of the data: M2 of Kingma et al.

    .. math:: y \sim \mathrm{Cat}(1/C), \quad z \sim p(z), \quad x \sim p(x \mid z, y); \qquad
        q(y \mid x)\, q(z \mid x, y)

    The pair takes `(x, y)` with y = -1 for "unlabeled"; without y all data are unlabeled. The class is a latent site of
    every datum. For a labeled datum the guide is certain of its label, so its bound is one on log p(x, y); for an
    unlabeled one it is a bound on log p(x). `bound` and `log_marginal` handle both in one batch. `elbo="enum"` sums
    over the classes exactly. The labels then train q(y|x) only through the model; `elbo="semi_supervised"` adds the
    classification loss.

    M1 is a `VAE` and any classifier of its codes; M1+M2 is this pair over such codes of D elements, with
    `likelihood=pv.conditionals.Normal(D, "pixel")`.

    Args:
        data_shape: Shape of one datum: an int D, or an image shape (C, H, W).
        num_classes: C, the number of classes; labels are 0 to C - 1.
        latent_dim: Size of z.
        hidden: Widths of the hidden layers of the classifier and the encoder; the decoder has them in reverse. The
            label enters the encoder before its last nonlinearity, so the layers before run once for all classes.
        activation, likelihood, posterior, prior: As for `VAE`; `posterior` is q(z|x, y).
        classifier: A network `(*, *data_shape) -> (*, C)`, the logits of q(y|x), in place of the default MLP; or a
            class or function that makes one from the two shapes.

    Raises:
        ValueError: As `VAE` does; for fewer than two classes, or no hidden layer. When run, for labels of another shape
            or outside -1, ..., C - 1.

    Reference: Kingma et al. 2014, arXiv 1406.5298, eq. 2, 4 and 6 to 8.

    Example:
        >>> vae = SemiSupervisedVAE(784, num_classes=10)
        >>> vae.classify(torch.zeros(3, 784)).probs.shape
        torch.Size([3, 10])
        >>> vae.sample(2, torch.tensor([3, 7])).shape
        torch.Size([2, 784])
    """

    @checked
    def __init__(
        self,
        data_shape: int | Sequence[int],
        num_classes: int = 10,
        latent_dim: int = 50,
        hidden: Sequence[int] = (500,),
        activation: str = "softplus",
        likelihood: str | Likelihood = "bernoulli",
        posterior: str | Conditional = "diagonal_normal",
        prior: str | Prior = "standard_normal",
        classifier: nn.Module | NetworkFactory | None = None,
    ) -> None:
        if as_sizes(num_classes, "num_classes", 1)[0] < 2:
            raise ValueError(f"num_classes must be at least 2, got {num_classes}")
        shape = as_sizes(data_shape, "data_shape")
        likelihood, posterior = as_likelihood(likelihood, shape), as_posterior(posterior, latent_dim)
        super().__init__(
            shape,
            latent_dim,
            hidden,
            activation,
            likelihood,
            posterior,
            prior,
            encoder=_LabeledEncoder(shape, num_classes, hidden, posterior.param_shape, activation),
            decoder=self.make_decoder(latent_dim, num_classes, hidden, likelihood.param_shape, activation),
        )
        self.num_classes = num_classes
        self.classifier = as_network(classifier, shape, torch.Size([num_classes]), hidden, activation)

    def make_decoder(
        self, latent_dim: int, num_classes: int, hidden: Sequence[int], out_shape: torch.Size, activation: str
    ) -> nn.Module:
        """The network behind p(x|z, y)."""
        return MLP(latent_dim + num_classes, tuple(reversed(hidden)), out_shape, activation)

    def model(self, x: Tensor, y: Tensor | None = None) -> None:
        """The generative model of the data `x`, `(N, *data_shape)`; it does not use the labels."""
        self._check(x, batch=True)
        self._register("prior", "decoder", "likelihood")
        with pyro.plate("data", len(x)):
            one_hot = pyro.sample("y", self.label_prior())
            z = pyro.sample("z", self.latent_prior(one_hot))
            pyro.sample("x", self.likelihood(self.features(z, one_hot)), obs=x)

    def guide(self, x: Tensor, y: Tensor | None = None) -> None:
        """The posterior of "y", one-hot, then "z" for `x`, `(N, *data_shape)`; certain where y >= 0, shape `(N,)`."""
        self._check(x, batch=True)
        self._register("encoder", "posterior", "classifier")
        with pyro.plate("data", len(x)):
            one_hot = pyro.sample("y", self._certain(self.classify(x), x, y), infer={"enumerate": "parallel"})
            pyro.sample("z", self.posterior(self.encoder(x, one_hot)))

    def label_prior(self) -> Any:
        """p(y), uniform, over one-hot vectors."""
        return dist.OneHotCategorical(logits=next(self.parameters()).new_zeros(self.num_classes))

    def latent_prior(self, one_hot: Tensor) -> Any:
        """p(z|y), here p(z)."""
        return self.prior_distribution()

    def features(self, z: Tensor, one_hot: Tensor) -> Tensor:
        """The features of p(x|z, y) for z of shape `(*, latent_dim)` and one-hot classes."""
        lead = torch.broadcast_shapes(z.shape[:-1], one_hot.shape[:-1])
        return self.decoder(torch.cat([part.expand(*lead, part.shape[-1]) for part in (z, one_hot)], -1))

    def classify(self, x: Tensor) -> Any:
        """q(y|x) over one-hot vectors: batch shape `*`, for x of shape `(*, *data_shape)`."""
        self._check(x)
        return dist.OneHotCategorical(logits=self.classifier(x))

    def encode(self, x: Tensor, y: Tensor | None = None) -> Any:
        """q(z|x, y): batch shape `*`, event shape `(latent_dim,)`; without labels, at the most probable class."""
        if y is None:
            y = self.classify(x).probs.argmax(-1)
        return self.posterior(self.encoder(x, self._one_hot(y)))

    def decode(self, z: Tensor, y: Tensor | None = None) -> Any:
        """p(x|z, y) as a distribution, for z of shape `(*, latent_dim)`; without labels, at a y from its prior."""
        one_hot = self.label_prior().sample(z.shape[:-1]) if y is None else self._one_hot(y)
        return self.likelihood(self.features(z, one_hot))

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None, *, mean: bool = False) -> Tensor:
        """`(n, *data_shape)` draws (or means) given the classes `y`, `(n,)`, or given classes drawn from p(y)."""
        if n < 1:
            raise ValueError(f"sample({n}): expected at least 1")
        one_hot = self.label_prior().sample((n,)) if y is None else self._one_hot(y).expand(n, -1)
        p = self.likelihood(self.features(self.latent_prior(one_hot).expand((n,)).sample(), one_hot))
        return p.mean if mean else p.sample()

    @torch.no_grad()
    def reconstruct(self, x: Tensor, y: Tensor | None = None, *, mean: bool = True) -> Tensor:
        """`(N, *data_shape)`: the mean of p(x|z, y) at one draw z from q(z|x, y); without y, the likeliest class."""
        x = x.to(next(self.parameters()).device)
        y = self.classify(x).probs.argmax(-1) if y is None else y.to(x.device)
        p = self.decode(self.encode(x, y).sample(), y)
        return p.mean if mean else p.sample()

    def _certain(self, q: Any, x: Tensor, y: Tensor | None) -> Any:
        """q(y|x), certain where there is a label."""
        if y is None:
            return q
        if y.shape != x.shape[:1] or y.is_floating_point():
            raise ValueError(
                f"expected integer labels of shape ({len(x)},), -1 for a datum without a label, got labels of shape "
                f"{tuple(y.shape)} and type {y.dtype}"
            )
        # reading values waits for a GPU, so like Pyro's own checks it is left out once training runs
        if pyro.distributions.is_validation_enabled() and bool(((y < -1) | (y >= self.num_classes)).any()):
            raise ValueError(
                f"expected labels from 0 to {self.num_classes - 1}, and -1 for a datum without a label, got "
                f"{int(y.min())} to {int(y.max())}"
            )
        known = (y >= 0).unsqueeze(-1)
        certain = IMPOSSIBLE * (1 - self._one_hot(y))
        return dist.OneHotCategorical(logits=torch.where(known, certain, q.logits))

    def _one_hot(self, y: Tensor) -> Tensor:
        classes = torch.arange(self.num_classes, device=y.device)
        return (y.unsqueeze(-1) == classes).to(next(self.parameters()).dtype)


class _LabeledEncoder(nn.Module):
    """A network `(*, *shape), (*, C) -> (*, *out_shape)`; the class enters before the last nonlinearity."""

    def __init__(
        self,
        shape: int | Sequence[int],
        num_classes: int,
        hidden: Sequence[int],
        out_shape: Sequence[int],
        activation: str,
    ) -> None:
        super().__init__()
        *first, last = as_sizes(hidden, "hidden")
        self.data = MLP(shape, first, last, activation)
        self.label = nn.Linear(num_classes, last, bias=False)
        self.activation = lookup(ACTIVATIONS, activation, "activation")()
        self.final = MLP(last, (), out_shape, activation)

    def forward(self, x: Tensor, one_hot: Tensor) -> Tensor:
        return self.final(self.activation(self.data(x) + self.label(one_hot)))
