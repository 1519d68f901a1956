"""The auxiliary deep generative model: a semi-supervised pair with a second latent, which makes its guide richer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae.conditionals import Conditional, DiagonalNormal, Likelihood
from pyro_vae.models.parts import NetworkFactory, as_network, as_posterior
from pyro_vae.models.semi_supervised import SemiSupervisedVAE
from pyro_vae.nets import ACTIVATIONS, MLP, as_sizes, lookup
from pyro_vae.priors import Prior
from pyro_vae.support.arguments import checked_from, count

__all__ = ["AuxiliaryDGM"]


class AuxiliaryDGM(SemiSupervisedVAE):
    r"""A `SemiSupervisedVAE` with an auxiliary latent a, which the class is read from, too.

    .. math:: y \sim \mathrm{Cat}(1/C), \quad z \sim p(z), \quad a \sim p(a \mid z, y), \quad
        x \sim p(x \mid z, y) \;\text{or}\; p(x \mid a, z, y); \qquad
        q(a \mid x)\, q(y \mid a, x)\, q(z \mid a, y, x)

    Without `skip` the data do not depend on a, and a is drawn from p(a|z, y, x): log p(x) is that of the
    `SemiSupervisedVAE`, and a only makes q(y, z|x) a mixture, with correlations between class and z. With `skip` a is
    a latent like others, between z and x (the skip deep generative model). The pair takes `(x, y)`, y = -1 for
    "unlabeled"; `elbo="semi_supervised"` sums over the classes exactly and adds the classification loss, at one draw
    of a.

    Args:
        data_shape: Shape of one datum: an int D, or an image shape (C, H, W).
        num_classes: C, the number of classes; labels are 0 to C - 1.
        latent_dim: Size of z.
        auxiliary_dim: Size of a.
        hidden: Widths of the hidden layers of every network; those of p(x|...) in reverse. What a network has besides
            the data enters before its last nonlinearity, so the layers before run once for all classes.
        activation, likelihood, posterior, prior: As for `VAE`; `posterior` is q(z|a, y, x), and q(a|x) and p(a|...) are
            diagonal normals.
        classifier: A network `(*, *data_shape) -> (*, hidden[-1])` in place of the first layers of q(y|a, x), to whose
            output a is added; or a class or function that makes one from these shapes.
        skip: Whether the data depend on a.

    Raises:
        ValueError: As `SemiSupervisedVAE` does.

    Reference: Maaløe et al. 2016, arXiv 1602.05473, eq. 3, 4 and 8 to 10, section 3.4 (skip).

    Example:
        >>> vae = AuxiliaryDGM(784, num_classes=10)
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
        latent_dim: int = 100,
        auxiliary_dim: int = 100,
        hidden: Sequence[int] = (500, 500),
        activation: str = "relu",
        likelihood: str | Likelihood = "bernoulli",
        posterior: str | Conditional = "diagonal_normal",
        prior: str | Prior = "standard_normal",
        classifier: nn.Module | NetworkFactory | None = None,
        skip: bool = False,
    ) -> None:
        (size,) = as_sizes(auxiliary_dim, "auxiliary_dim", 1)
        widths = as_sizes(hidden, "hidden")
        posterior = as_posterior(posterior, latent_dim)
        shape = as_sizes(data_shape, "data_shape")
        inputs: dict[str, Any] = {"shape": shape, "hidden": widths, "activation": activation}
        joined = _Joined(sizes=(size,), out_shape=(num_classes,), data=classifier, **inputs)
        super().__init__(
            shape, num_classes, latent_dim, hidden, activation, likelihood, posterior, prior, classifier=joined
        )
        self.skip, self.auxiliary_dim = skip, size
        self.auxiliary = DiagonalNormal(size)
        self.auxiliary_encoder = MLP(shape, widths, self.auxiliary.param_shape, activation)
        sizes = (size, num_classes)
        self.encoder = _Joined(sizes=sizes, out_shape=posterior.param_shape, **inputs)
        whole = latent_dim + num_classes
        if skip:
            self.decoder = self.make_decoder(
                latent_dim + size, num_classes, hidden, self.likelihood.param_shape, activation
            )
            self.reverse: nn.Module = MLP(whole, widths, self.auxiliary.param_shape, activation)
        else:
            self.reverse = _Joined(sizes=(latent_dim, num_classes), out_shape=self.auxiliary.param_shape, **inputs)

    def model(self, x: Tensor, y: Tensor | None = None) -> None:
        """The generative model of the data `x`, `(N, *data_shape)`; it does not use the labels."""
        self._check(x, batch=True)
        self._register("prior", "decoder", "likelihood", "reverse")
        with pyro.plate("data", len(x)):
            one_hot = pyro.sample("y", self.label_prior())
            z = pyro.sample("z", self.latent_prior(one_hot))
            if self.skip:
                a = pyro.sample("a", self.auxiliary_prior(z, one_hot))
                pyro.sample("x", self.likelihood(self.features(z, one_hot, a)), obs=x)
            else:
                pyro.sample("x", self.likelihood(self.features(z, one_hot)), obs=x)
                pyro.sample("a", self.auxiliary_prior(z, one_hot, x))

    def guide(self, x: Tensor, y: Tensor | None = None) -> None:
        """The posterior of "a", "y", one-hot, and "z" for `x`, `(N, *data_shape)`; "y" is certain where y >= 0."""
        self._check(x, batch=True)
        self._register("auxiliary_encoder", "encoder", "posterior", "classifier")
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", self.encode_auxiliary(x))
            q = self._certain(dist.OneHotCategorical(logits=self.classifier(x, a)), x, y)
            one_hot = pyro.sample("y", q, infer={"enumerate": "parallel"})
            pyro.sample("z", self.posterior(self.encoder(x, a, one_hot)))

    def auxiliary_prior(self, z: Tensor, one_hot: Tensor, x: Tensor | None = None) -> Any:
        """p(a|z, y, x), or with `skip` p(a|z, y): event shape `(auxiliary_dim,)`."""
        if not self.skip:
            return self.auxiliary(self.reverse(x, z, one_hot))
        lead = torch.broadcast_shapes(z.shape[:-1], one_hot.shape[:-1])
        return self.auxiliary(self.reverse(torch.cat([part.expand(*lead, -1) for part in (z, one_hot)], -1)))

    def features(self, z: Tensor, one_hot: Tensor, a: Tensor | None = None) -> Tensor:
        """The features of p(x|z, y), or with `skip` of p(x|a, z, y), at a draw of a where none is given."""
        if not self.skip:
            return super().features(z, one_hot)
        a = self.auxiliary_prior(z, one_hot).sample() if a is None else a
        lead = torch.broadcast_shapes(z.shape[:-1], a.shape[:-1])
        return super().features(torch.cat([part.expand(*lead, -1) for part in (a, z)], -1), one_hot)

    def encode_auxiliary(self, x: Tensor) -> Any:
        """q(a|x): batch shape `*`, event shape `(auxiliary_dim,)`."""
        return self.auxiliary(self.auxiliary_encoder(x))

    def classify(self, x: Tensor, num_samples: int = 10) -> Any:
        """q(y|x) over one-hot vectors, the mean of q(y|a, x) over draws of a: batch shape `*`."""
        self._check(x)
        a = self.encode_auxiliary(x).sample((count("num_samples", num_samples),))
        log_q = self.classifier(x, a).log_softmax(-1).logsumexp(0)
        return dist.OneHotCategorical(logits=log_q)

    def encode(self, x: Tensor, y: Tensor | None = None) -> Any:
        """q(z|a, y, x) at one draw of a: event shape `(latent_dim,)`; without labels, at the most probable class."""
        if y is None:
            y = self.classify(x).probs.argmax(-1)
        return self.posterior(self.encoder(x, self.encode_auxiliary(x).rsample(), self._one_hot(y)))


class _Joined(nn.Module):
    """A network of the data and of other inputs, which enter before its last nonlinearity, `(*, *out_shape)`."""

    def __init__(
        self,
        shape: torch.Size,
        hidden: Sequence[int],
        activation: str,
        sizes: Sequence[int],
        out_shape: Sequence[int],
        data: nn.Module | NetworkFactory | None = None,
    ) -> None:
        super().__init__()
        *first, last = hidden
        self.data = as_network(data, shape, torch.Size([last]), first, activation)
        self.others = nn.ModuleList(nn.Linear(size, last, bias=False) for size in sizes)
        self.activation = lookup(ACTIVATIONS, activation, "activation")()
        self.final = MLP(last, (), out_shape, activation)

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        h = self.data(x)
        for net, other in zip(self.others, others, strict=True):
            h = h + net(other)
        return self.final(self.activation(h))
