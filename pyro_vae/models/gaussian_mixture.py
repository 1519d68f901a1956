"""The Gaussian mixture model: the simplest latent-variable model whose posterior is known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae.nets import as_sizes
from pyro_vae.pair.names import Named
from pyro_vae.pair.protocol import Pair
from pyro_vae.support.arguments import checked

__all__ = ["GaussianMixture"]


class GaussianMixture(Named, nn.Module, Pair):
    r"""A mixture of C Gaussians over vectors of D elements, with its exact posterior as the guide.

    .. math:: c \sim \mathrm{Cat}(\pi), \quad x \mid c \sim N(\mu_c, L_c L_c'); \qquad
        q(c \mid x) = p(c \mid x) \propto \pi_c\, N(x; \mu_c, L_c L_c')

    The guide computes the responsibilities from the model's own parameters. So the ELBO is log p(x), each importance
    weight is p(x), and the gradient is that of the likelihood. Train it in minibatches with `fit(..., elbo="enum")`,
    which sums over c, or call `em_step` with all data until the likelihood stops rising.

    Args:
        data_shape: D, the size of one datum.
        components: C, the number of Gaussians.
        covariance: "full" or "diagonal" covariance matrices, one per component.
        min_scale: Smallest element on the diagonal of L_c, in the units of the data. Without it, a component that
            shrinks to a single datum has an unbounded likelihood.

    Raises:
        ValueError: For sizes below 1, images (load them with `flatten=True`), an unknown covariance.

    Reference: Dempster et al. 1977, JRSS B 39 (EM); Bishop 2006, eq. 9.7 and 9.23 to 9.27.

    Example:
        >>> x = torch.cat([torch.randn(50, 2), torch.randn(50, 2) + 8.0])
        >>> mixture = GaussianMixture(2, components=2).start_at(x, seed=0)
        >>> before = [float(mixture.em_step(x)) for _ in range(5)]
        >>> before == sorted(before)
        True
        >>> mixture.encode(x).probs.shape
        torch.Size([100, 2])
    """

    @checked
    def __init__(
        self,
        data_shape: int | Sequence[int],
        components: int = 10,
        covariance: Literal["full", "diagonal"] = "full",
        min_scale: float = 1e-3,
    ) -> None:
        super().__init__()
        self.data_shape = as_sizes(data_shape, "data_shape", 1)
        (self.components,) = as_sizes(components, "components", 1)
        if covariance not in ("full", "diagonal"):
            raise ValueError(f"covariance must be 'full' or 'diagonal', got {covariance!r}")
        if not min_scale > 0:
            raise ValueError(f"min_scale must be positive, got {min_scale}")
        self.covariance, self.min_scale = covariance, min_scale
        size = self.data_shape[0]
        self.logits = nn.Parameter(torch.zeros(components))
        self.loc = nn.Parameter(torch.randn(components, size))
        self.log_scale = nn.Parameter(torch.zeros(components, size))
        if covariance == "full":
            self.lower = nn.Parameter(torch.zeros(components, size * (size - 1) // 2))

    def model(self, x: Tensor) -> None:
        """The generative model of the data `x`, `(N, D)`."""
        self._check(x)
        pyro.module(self.name, self)
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(logits=self.logits))
            pyro.sample("x", self.decode(c), obs=x)

    def guide(self, x: Tensor) -> None:
        """The exact posterior of the component of each of `x`, `(N, D)`; enumerated by `elbo="enum"`."""
        self._check(x)
        pyro.module(self.name, self)
        with pyro.plate("data", len(x)):
            pyro.sample("c", self.encode(x), infer={"enumerate": "parallel"})

    def encode(self, x: Tensor) -> Any:
        """p(c|x) as a distribution: batch shape `*`, for x of shape `(*, D)`."""
        return dist.Categorical(logits=self._log_joint(x))

    def decode(self, c: Tensor) -> Any:
        """p(x|c) as a distribution: batch shape `*`, event shape `(D,)`, for components c of shape `(*)`."""
        scale = self.min_scale + self.log_scale.exp()
        if self.covariance == "diagonal":
            return dist.Normal(self.loc[c], scale[c]).to_event(1)
        return dist.MultivariateNormal(self.loc[c], scale_tril=self._scale_tril(scale)[c])

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x), exact, in nats: shape `*`, for x of shape `(*, D)`."""
        return self._log_joint(x).logsumexp(-1)

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        """`(n, D)` draws from the mixture."""
        if n < 1:
            raise ValueError(f"sample({n}): expected at least 1")
        return self.decode(dist.Categorical(logits=self.logits).sample((n,))).sample()

    @torch.no_grad()
    def start_at(self, x: Tensor, seed: int | None = None) -> GaussianMixture:
        """Set the components to the k-means clusters of the data `x`, `(N, D)`; returns the mixture."""
        from sklearn.cluster import KMeans

        self._check(x)
        clusters = KMeans(self.components, n_init=1, random_state=seed).fit_predict(x.cpu().double().numpy())
        one_hot = nn.functional.one_hot(torch.from_numpy(clusters).long(), self.components)
        self._maximize(x, one_hot.to(x))
        return self

    @torch.no_grad()
    def em_step(self, x: Tensor) -> Tensor:
        """One iteration of expectation-maximization on all data `x`, `(N, D)`; it never lowers the likelihood.

        Returns the mean of log p(x) before the iteration, in nats per datum, a 0-d tensor.
        """
        self._check(x)
        log_joint = self._log_joint(x)
        self._maximize(x, log_joint.softmax(-1))
        return log_joint.logsumexp(-1).mean()

    def _maximize(self, x: Tensor, weight: Tensor) -> None:
        """The M-step for responsibilities `(N, C)`."""
        total = weight.sum(0) + 10 * torch.finfo(x.dtype).eps
        loc = weight.T @ x / total.unsqueeze(-1)
        self.logits.copy_(total.log())
        self.loc.copy_(loc)
        centered = x.unsqueeze(1) - loc  # (N, C, D)
        if self.covariance == "diagonal":
            variance = torch.einsum("nc,ncd->cd", weight, centered.square()) / total.unsqueeze(-1)
            self._set_scale((variance + self.min_scale**2).sqrt())
            return
        cov = torch.einsum("nc,ncd,nce->cde", weight, centered, centered) / total.reshape(-1, 1, 1)
        tril = torch.linalg.cholesky(cov + self.min_scale**2 * torch.eye(x.shape[-1]).to(x))
        row, column = torch.tril_indices(x.shape[-1], x.shape[-1], -1, device=x.device)
        self.lower.copy_(tril[:, row, column])
        self._set_scale(tril.diagonal(dim1=-2, dim2=-1))

    def _set_scale(self, scale: Tensor) -> None:
        self.log_scale.copy_((scale - self.min_scale).clamp_min(1e-12).log())

    def _scale_tril(self, scale: Tensor) -> Tensor:
        size = scale.shape[-1]
        row, column = torch.tril_indices(size, size, -1, device=scale.device)
        tril = torch.diag_embed(scale)
        tril[:, row, column] = self.lower
        return tril

    def _log_joint(self, x: Tensor) -> Tensor:
        """log p(x, c) of every component, `(*, C)`."""
        components = torch.arange(self.components, device=x.device)
        return self.logits.log_softmax(-1) + self.decode(components).log_prob(x.unsqueeze(-2))

    def _check(self, x: Tensor) -> None:
        if x.dim() != 2 or x.shape[1:] != self.data_shape:
            raise ValueError(
                f"expected data of shape (N, {self.data_shape[0]}), got {tuple(x.shape)}: build the mixture with "
                "data_shape=data.shape, and load images with flatten=True"
            )
