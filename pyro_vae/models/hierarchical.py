"""Hierarchical VAEs: several layers of latents, with a bottom-up or a top-down guide."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae.conditionals import DiagonalNormal, Likelihood
from pyro_vae.models.parts import NetworkFactory, as_prior
from pyro_vae.models.vae import VAE
from pyro_vae.nets import ACTIVATIONS, MLP, as_sizes, lookup
from pyro_vae.priors import Prior
from pyro_vae.support.arguments import checked

__all__ = ["HierarchicalVAE", "LadderVAE"]


class HierarchicalVAE(VAE):
    r"""A VAE with L stochastic layers, z1 next to the data, and a bottom-up guide.

    .. math:: z_L \sim p(z_L), \quad z_i \sim N(z_i; f_i(z_{i+1})), \quad x \sim p(x \mid z_1); \qquad
        q(z \mid x) = q(z_1 \mid x) \prod_{i=1}^{L-1} q(z_{i+1} \mid z_i)

    The latent sites are "z1" to "zL", all conditionals diagonal normals with means and log-scales from MLPs. With one
    layer it is a `VAE`. The order of the guide allows no KL in closed form, so use "trace" or a multi-sample bound.
    Upper layers tend to collapse, which `pv.latent_report` shows.

    Args:
        data_shape: Shape of one datum: an int D, or an image shape (C, H, W).
        latent_dims: Sizes of z1, ..., zL.
        hidden: For each layer, widths of the hidden layers of the network below it in the guide; that in the model has
            them in reverse.
        activation, likelihood: As for `VAE`.
        prior: p(z_L): a name in `pv.priors.PRIORS`, or a `Prior` with event shape `(latent_dims[-1],)`.
        encoder: The network of q(z1|x), as for `VAE`.
        decoder: The network of p(x|z1), as for `VAE`.

    Raises:
        ValueError: As `VAE` does, and if `hidden` and `latent_dims` differ in length.

    Reference: Rezende et al. 2014, arXiv 1401.4082; Burda et al. 2016, arXiv 1509.00519, section 5 (two layers, 100 and
    50).

    Example:
        >>> vae = HierarchicalVAE(784, latent_dims=(100, 50))
        >>> vae.sample(2).shape
        torch.Size([2, 784])
    """

    @checked
    def __init__(
        self,
        data_shape: int | Sequence[int],
        latent_dims: Sequence[int] = (100, 50),
        hidden: Sequence[Sequence[int]] = ((200, 200), (100, 100)),
        activation: str = "tanh",
        likelihood: str | Likelihood = "bernoulli",
        prior: str | Prior = "standard_normal",
        encoder: nn.Module | NetworkFactory | None = None,
        decoder: nn.Module | NetworkFactory | None = None,
    ) -> None:
        sizes = as_sizes(latent_dims, "latent_dims")
        if len(hidden) != len(sizes):
            raise ValueError(f"expected hidden widths for each of the {len(sizes)} layers of latents, got {hidden!r}")
        super().__init__(data_shape, sizes[0], hidden[0], activation, likelihood, encoder=encoder, decoder=decoder)
        prior = as_prior(prior, sizes[-1], sizes[-2:-1] if len(sizes) > 1 else self.data_shape)
        if prior.uses_encoder:
            raise ValueError(
                f"{type(prior).__name__} cannot be the prior here: it needs an encoder of the data, and the top layer "
                "encodes a latent"
            )
        self.prior, self.latent_dims = prior, sizes
        self.up, self.down = nn.ModuleList(), nn.ModuleList()
        for (below, above), widths in zip(pairwise(sizes), hidden[1:], strict=True):
            self.up.append(MLP(below, widths, 2 * above, activation))
            self.down.append(MLP(above, tuple(reversed(widths)), 2 * below, activation))
        self.normals = nn.ModuleList(DiagonalNormal(size) for size in sizes)

    def model(self, x: Tensor) -> None:
        """The generative model of the data `x`, `(N, *data_shape)`."""
        self._check(x, batch=True)
        self._register("prior", "down", "decoder", "likelihood")
        with pyro.plate("data", len(x)):
            z = pyro.sample(f"z{len(self.latent_dims)}", self.prior())
            for i in reversed(range(len(self.down))):
                z = pyro.sample(f"z{i + 1}", self.layer_prior(i, z))
            pyro.sample("x", self.decode(z), obs=x)

    def guide(self, x: Tensor) -> None:
        """The amortized posterior of the latents of `x`, `(N, *data_shape)`, from z1 to zL."""
        self._check(x, batch=True)
        self._register("encoder", "posterior", "up")
        with pyro.plate("data", len(x)):
            z = pyro.sample("z1", self.encode(x))
            for i, net in enumerate(self.up):
                z = pyro.sample(f"z{i + 2}", self.normals[i + 1](net(z)))

    def layer_prior(self, i: int, z: Tensor) -> Any:
        """p(z_{i+1} | z_{i+2} = z) with layers counted from 1; conditional `i` is 0 at the bottom."""
        return self.normals[i](self.down[i](z))

    @torch.no_grad()
    def sample(self, n: int, *, mean: bool = False) -> Tensor:
        """`(n, *data_shape)` drawn from the model, or the means of p(x|z1) with `mean=True`."""
        if n < 1:
            raise ValueError(f"sample({n}): expected at least 1")
        z = self.prior().sample((n,))
        for i in reversed(range(len(self.down))):
            z = self.layer_prior(i, z).sample()
        p = self.decode(z)
        return p.mean if mean else p.sample()


class LadderVAE(HierarchicalVAE):
    r"""A `HierarchicalVAE` with a top-down guide, which corrects the model's conditionals by evidence from the data.

    .. math:: d_1 = h_1(x), \; d_{i+1} = h_{i+1}(d_i); \qquad q(z \mid x) = q(z_L \mid d_L) \prod_{i<L}
        q(z_i \mid z_{i+1}, d_i), \quad q(z_i \mid z_{i+1}, d_i) \propto N(z_i; d_i) \, p(z_i \mid z_{i+1})

    The upward pass is deterministic. At each layer it gives a normal, whose product with p(z_i|z_{i+1}), the
    precisions added, is q. The evidence need not repeat what the layer above knows, and upper layers stay in use. Guide
    and model have the same order, so that "mean_field" has every KL in closed form.

    Args:
        hidden: Widths of h_1, ..., h_L, at least one each; the last hidden layer of h_i is the input of h_{i+1}.
        data_shape, latent_dims, activation, likelihood, prior, decoder: As for `HierarchicalVAE`; there is no
            `encoder`.

    Raises:
        ValueError: As `HierarchicalVAE` does, and for an h_i without a hidden layer.

    Reference: Sønderby et al. 2016, arXiv 1602.02282, eq. 11 to 15 (there with batch normalization, and a warm-up).

    Example:
        >>> vae = LadderVAE(784, latent_dims=(32, 16, 8), hidden=((200,), (100,), (50,)))
        >>> vae.encode(torch.zeros(3, 784)).event_shape
        torch.Size([32])
    """

    @checked
    def __init__(
        self,
        data_shape: int | Sequence[int],
        latent_dims: Sequence[int] = (100, 50),
        hidden: Sequence[Sequence[int]] = ((200, 200), (100, 100)),
        activation: str = "elu",
        likelihood: str | Likelihood = "bernoulli",
        prior: str | Prior = "standard_normal",
        decoder: nn.Module | NetworkFactory | None = None,
    ) -> None:
        sizes, widths = [as_sizes(each, "hidden") for each in hidden], as_sizes(latent_dims, "latent_dims")
        super().__init__(data_shape, latent_dims, hidden, activation, likelihood, prior, nn.Identity(), decoder)
        act = lookup(ACTIVATIONS, activation, "activation")
        first = MLP(data_shape, sizes[0][:-1], sizes[0][-1], activation)
        rest = [MLP(a[-1], b[:-1], b[-1], activation) for a, b in pairwise(sizes)]
        self.up = nn.ModuleList(nn.Sequential(net, act()) for net in (first, *rest))
        # heads of the upward pass, at the bottom first
        self.encoder = nn.ModuleList(nn.Linear(h[-1], 2 * size) for h, size in zip(sizes, widths, strict=True))

    def guide(self, x: Tensor) -> None:
        """The amortized posterior of the latents of `x`, `(N, *data_shape)`, from zL to z1."""
        self._check(x, batch=True)
        self._register("encoder", "up", "down")
        with pyro.plate("data", len(x)):
            z = None
            for i, evidence in self._evidence(x):
                z = pyro.sample(f"z{i + 1}", self._posterior(i, evidence, z))

    def encode(self, x: Tensor) -> Any:
        """q(z1|z2, x) at one draw of the layers above: batch shape `*`, event shape `(latent_dims[0],)`."""
        self._check(x)
        q: Any = None
        for i, evidence in self._evidence(x):
            q = self._posterior(i, evidence, None if q is None else q.rsample())
        return q

    def _evidence(self, x: Tensor) -> list[tuple[int, Tensor]]:
        """The evidence of the data for each layer, features of a normal, top layer first."""
        found = []
        for net, head in zip(self.up, self.encoder.children(), strict=True):
            x = net(x)
            found.append(head(x))
        return list(reversed(list(enumerate(found))))

    def _posterior(self, i: int, evidence: Tensor, above: Tensor | None) -> Any:
        q = self.normals[i](evidence)
        if above is None:
            return q
        p = self.layer_prior(i, above)
        precisions = q.base_dist.scale.square().reciprocal(), p.base_dist.scale.square().reciprocal()
        total = precisions[0] + precisions[1]
        loc = (q.mean * precisions[0] + p.mean * precisions[1]) / total
        return dist.Normal(loc, total.rsqrt()).to_event(1)
