"""The conditional variational autoencoder: data given a label, or given a visible part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from pyro_vae.conditionals import Conditional, DiagonalNormal, Likelihood
from pyro_vae.models.parts import as_likelihood, as_posterior
from pyro_vae.models.vae import VAE
from pyro_vae.nets import MLP, as_sizes
from pyro_vae.support.arguments import checked

__all__ = ["ConditionalVAE", "Quadrants"]


class ConditionalVAE(VAE):
    r"""A VAE of x given a condition c, which every network sees.

    .. math:: z \sim N(z; f(c)), \quad x \sim p(x \mid \mathrm{decoder}(z, c)); \qquad
        q(z \mid x, c) = \mathrm{posterior}(\mathrm{encoder}(x, c))

    The pair takes the condition as a second argument, `model(x, c)` and `guide(x, c)`: train it with
    `pv.fit(vae.model, vae.guide, (x, c))`, ask `pv.log_marginal(vae.model, vae.guide, x, c)` for log p(x|c). With a
    label as c it draws a chosen class. With the visible part of an image as c and the hidden part as x it inpaints, see
    `Quadrants`. The prior is a diagonal normal that depends on c; all networks are MLPs on flattened inputs.

    Args:
        data_shape: Shape of one datum: an int D, or an image shape (C, H, W).
        condition: An int C for labels 0, ..., C - 1, `(N,)`; or the shape of one condition, `(D,)` or `(C, H, W)`.
        latent_dim: Size of z.
        hidden: Widths of the encoder's hidden layers, and of the prior's; the decoder has them in reverse.
        activation, likelihood, posterior: As for `VAE`.

    Raises:
        ValueError: As `VAE` does. When run, for data without a condition, or for one of another shape; while Pyro
            validates values, also for labels outside 0, ..., C - 1 (there is no class for unlabeled data).

    Reference: Sohn, Lee and Yan 2015, NIPS 28, eq. 4; Kingma et al. 2014, arXiv 1406.5298 (labels).

    Example:
        >>> import torch
        >>> vae = ConditionalVAE(784, condition=10, latent_dim=5)
        >>> vae.sample(3, condition=torch.tensor([7, 7, 1])).shape
        torch.Size([3, 784])
    """

    @checked
    def __init__(
        self,
        data_shape: int | Sequence[int],
        condition: int | Sequence[int] = 10,
        latent_dim: int = 20,
        hidden: Sequence[int] = (200, 200),
        activation: str = "elu",
        likelihood: str | Likelihood = "bernoulli",
        posterior: str | Conditional = "diagonal_normal",
    ) -> None:
        shape = as_sizes(data_shape, "data_shape")
        condition_shape = as_sizes(condition, "condition")
        likelihood, posterior = as_likelihood(likelihood, shape), as_posterior(posterior, latent_dim)
        size, down = condition_shape.numel(), tuple(reversed(hidden))
        encoder = MLP(shape.numel() + size, hidden, posterior.param_shape, activation)
        decoder = MLP(latent_dim + size, down, likelihood.param_shape, activation)
        super().__init__(
            data_shape,
            latent_dim,
            hidden,
            activation,
            likelihood,
            posterior,
            encoder=encoder,
            decoder=decoder,
        )
        self.condition_shape, self.labels = condition_shape, isinstance(condition, int)
        self.prior_net = MLP(size, hidden, 2 * latent_dim, activation)
        self.prior_family = DiagonalNormal(latent_dim)

    def model(self, x: Tensor, condition: Tensor | None = None) -> None:
        """The generative model of the data `x`, `(N, *data_shape)`, given N conditions."""
        self._check(x, batch=True)
        c = self._encode_condition(condition, len(x))
        self._register("prior_net", "decoder", "likelihood")
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior_family(self.prior_net(c)))
            pyro.sample("x", self.likelihood(self.decoder(_concatenate(z, c))), obs=x)

    def guide(self, x: Tensor, condition: Tensor | None = None) -> None:
        """The amortized posterior of the latents of `x`, `(N, *data_shape)`, given N conditions."""
        self._check(x, batch=True)
        self._register("encoder", "posterior")
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.encode(x, condition))

    def encode(self, x: Tensor, condition: Tensor | None = None) -> Any:
        """q(z|x, c) as a distribution: batch shape `(N,)`, event shape `(latent_dim,)`."""
        self._check(x, batch=True)
        return self.posterior(self.encoder(_concatenate(x.flatten(1), self._encode_condition(condition, len(x)))))

    def decode(self, z: Tensor, condition: Tensor | None = None) -> Any:
        """p(x|z, c) as a distribution: batch shape `(*, N)`, event shape `data_shape`, for z `(*, N, latent_dim)`."""
        return self.likelihood(self.decoder(_concatenate(z, self._encode_condition(condition, z.shape[-2]))))

    @torch.no_grad()
    def sample(self, n: int, *, mean: bool = False, condition: Tensor | None = None) -> Tensor:
        """`(n, *data_shape)`, drawn for each of n conditions, or the means of p(x|z, c) with `mean=True`."""
        c = self._encode_condition(condition, n)
        p = self.likelihood(self.decoder(_concatenate(self.prior_family(self.prior_net(c)).sample(), c)))
        return p.mean if mean else p.sample()

    @torch.no_grad()
    def reconstruct(self, x: Tensor, *, mean: bool = True, condition: Tensor | None = None) -> Tensor:
        """`(N, *data_shape)`: the mean of p(x|z, c) at one draw z from q(z|x, c), or a draw with `mean=False`."""
        p = self.decode(self.encode(x, condition).sample(), condition)
        return p.mean if mean else p.sample()

    def _encode_condition(self, condition: Tensor | None, n: int) -> Tensor:
        """The conditions as the networks take them, `(N, E)`: flattened, or one-hot labels."""
        expected = f"labels ({n},)" if self.labels else f"a tensor ({', '.join(map(str, (n, *self.condition_shape)))})"
        if condition is None:
            raise ValueError(
                f"expected a condition as second argument, {expected}, got none: train with `pv.fit(model, guide, "
                "(x, c))` (`--labels all` on the command line), and evaluate with `(model, guide, x, c)`; for data "
                "without labels use a semi-supervised model"
            )
        if condition.shape != ((n,) if self.labels else (n, *self.condition_shape)):
            raise ValueError(f"expected as condition {expected}, got one of shape {tuple(condition.shape)}")
        if not self.labels:
            return condition.flatten(1)
        (classes,) = self.condition_shape
        labels = condition.long()
        # read only where Pyro reads values as well, since it waits for a GPU
        if pyro.distributions.is_validation_enabled() and not bool(((labels >= 0) & (labels < classes)).all()):
            raise _out_of_range(labels, classes)
        try:
            return one_hot(labels, classes).to(next(self.prior_net.parameters()))
        except RuntimeError as error:  # on a CPU, torch checks by itself
            if "Class values" not in str(error):
                raise
            raise _out_of_range(labels, classes) from error


def _out_of_range(labels: Tensor, classes: int) -> ValueError:
    return ValueError(
        f"expected labels from 0 to {classes - 1}, got {int(labels.min())} to {int(labels.max())}: leave unlabeled "
        "data out, or use a semi-supervised model"
    )


def _concatenate(a: Tensor, b: Tensor) -> Tensor:
    """`(*, N, A)` and `(N, B)` as `(*, N, A + B)`."""
    lead = torch.broadcast_shapes(a.shape[:-1], b.shape[:-1])
    return torch.cat([a.expand(*lead, a.shape[-1]), b.expand(*lead, b.shape[-1])], -1)


@checked
@dataclass(frozen=True)
class Quadrants:
    """Cuts images `(N, C, H, W)` into a hidden and a visible part, both as vectors, and joins them again.

    The visible quadrants start at the bottom left and continue clockwise.

    Args:
        shape: `(C, H, W)`.
        visible: Number of visible quadrants, 1 to 3.

    Raises:
        ValueError: For another number of quadrants, or images of another shape.

    Reference: Sohn, Lee and Yan 2015, NIPS 28, section 5.1.

    >>> cut = Quadrants((1, 4, 4), visible=1)
    >>> hidden, visible = cut.split(torch.arange(16.0).reshape(1, 1, 4, 4))
    >>> visible
    tensor([[ 8.,  9., 12., 13.]])
    >>> cut.join(hidden, visible).flatten().equal(torch.arange(16.0))
    True
    """

    shape: tuple[int, int, int]
    visible: int = 1

    def __post_init__(self) -> None:
        as_sizes(self.shape, "shape", 3)
        if self.visible not in (1, 2, 3):
            raise ValueError(f"visible must be 1, 2 or 3 quadrants, got {self.visible!r}")

    @property
    def seen(self) -> Tensor:
        """The mask of visible elements, booleans `(C, H, W)`."""
        _, height, width = self.shape
        seen = torch.zeros(self.shape, dtype=torch.bool)
        top, left = slice(None, height // 2), slice(None, width // 2)
        bottom, right = slice(height // 2, None), slice(width // 2, None)
        for rows, columns in ((bottom, left), (top, left), (top, right))[: self.visible]:
            seen[:, rows, columns] = True
        return seen

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The hidden part `(N, Dh)` and the visible part `(N, Dv)`."""
        if x.shape[1:] != self.shape:
            expected = ", ".join(map(str, self.shape))
            raise ValueError(f"expected images of shape (N, {expected}), got {tuple(x.shape)}")
        seen = self.seen.flatten().to(x.device)
        return x.flatten(1)[:, ~seen], x.flatten(1)[:, seen]

    def join(self, hidden: Tensor, visible: Tensor) -> Tensor:
        """The images `(N, C, H, W)` of two parts."""
        seen = self.seen.flatten().to(hidden.device)
        x = hidden.new_zeros(len(hidden), len(seen))
        x[:, seen], x[:, ~seen] = visible, hidden
        return x.reshape(-1, *self.shape)
