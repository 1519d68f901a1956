"""A deep hierarchy of convolutional latents, drawn from the top down by model and guide alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae.conditionals import Likelihood, bounded_exp
from pyro_vae.models.cells import Cell, Evidence, Upsample, branch, halved, on_images
from pyro_vae.models.parts import System, as_likelihood
from pyro_vae.nets import ACTIVATIONS, as_sizes, lookup
from pyro_vae.support.arguments import checked, count

__all__ = ["TopDownVAE"]


class TopDownVAE(System):
    r"""A deep convolutional hierarchy: residual cells from coarse to fine, each with a latent, in model and guide.

    .. math:: h_L = h_0, \quad z_i \sim N(z_i; \mu_i(h_i), \sigma_i(h_i)^2), \quad h_{i-1} = g_i(h_i, z_i), \quad
        x \sim p(x \mid h_0); \qquad q(z_i \mid h_i, x) = N\big(\mu_i + \sigma_i \delta_i, (\sigma_i s_i)^2\big)

    The guide runs the cells of the model from the top down with its own draws, and corrects the normal of each cell
    by features :math:`\delta_i, s_i` of the state and of the data, which an upward pass without noise prepares for
    each stage. What a correction costs does not depend on the scale of the prior:
    :math:`\mathrm{KL}_i = \frac12 \sum (\delta_i^2 + s_i^2 - 1) - \log s_i`. Log-scales are bounded. The latent sites
    are "z1" (the finest, drawn last) to "zL"; "mean_field" has each KL in closed form.

    Args:
        data_shape: Shape (C, H, W) of one image.
        channels: Feature maps at each stage, finest first; each stage halves height and width, rounding up.
        cells: Number of cells, each with one latent, at each stage; 0 where a stage is only passed through.
        latents: Channels of each latent at a stage; height and width are those of the stage.
        activation: Name of the nonlinearity, see `pv.nets`.
        likelihood: p(x|h_0): a name in `pv.conditionals.LIKELIHOODS`, or a `Likelihood` with event shape `data_shape`,
            for binary images also `pv.conditionals.PixelCNN`.

    Raises:
        ValueError: For unknown names, sizes below 1, parts whose shapes do not fit, or `channels`, `cells` and
            `latents` of different lengths.

    Reference: Sønderby et al. 2016, arXiv 1602.02282 (the ladder); Kingma et al. 2016, arXiv 1606.04934, section 4;
    Vahdat and Kautz 2020, arXiv 2007.03898, eq. 2 (residual normals); Child 2021, arXiv 2011.10650 (cells).

    Example:
        >>> vae = TopDownVAE((1, 28, 28), channels=(16, 32), cells=(1, 2), latents=(2, 4))
        >>> vae.sample(2).shape
        torch.Size([2, 1, 28, 28])
    """

    @checked
    def __init__(
        self,
        data_shape: Sequence[int],
        channels: Sequence[int] = (24, 48, 64),
        cells: Sequence[int] = (1, 2, 2),
        latents: Sequence[int] = (1, 4, 8),
        activation: str = "silu",
        likelihood: str | Likelihood = "bernoulli",
    ) -> None:
        super().__init__(as_sizes(data_shape, "data_shape", 3))
        widths = as_sizes(channels, "channels")
        counts = tuple(count("cells", each, least=0) for each in cells)
        if len(counts) != len(widths) or counts[-1] < 1:
            raise ValueError(
                f"cells must have {len(widths)} numbers from 0, at least one in the last stage; got {counts}"
            )
        depths = as_sizes(latents, "latents", len(widths))
        act = lookup(ACTIVATIONS, activation, "activation")
        self.likelihood = as_likelihood(likelihood, self.data_shape)
        if len(self.likelihood.param_shape) != 3:
            raise ValueError(f"the likelihood takes features {tuple(self.likelihood.param_shape)}, expected images")
        sizes = halved(self.data_shape[1], self.data_shape[2], len(widths))
        self.encoder = Evidence(self.data_shape[0], widths, counts, act)
        self.start = nn.ParameterDict({"state": nn.Parameter(0.1 * torch.randn(widths[-1], *sizes[-1]))})
        self.cells, self.corrections = nn.ModuleList(), nn.ModuleList()
        # the stage of each cell, finest first
        self.stages = [stage for stage, number in enumerate(counts) for _ in range(number)]
        for stage in self.stages:
            width, depth = widths[stage], depths[stage]
            self.cells.append(Cell(width, depth, act))
            self.corrections.append(branch(2 * width, max(width // 2, 1), 2 * depth, act, 0.3))
        self.ups = nn.ModuleList(
            Upsample(above, below, size, act) for below, above, size in zip(widths, widths[1:], sizes[1:], strict=False)
        )
        self.decoder = Upsample(widths[0], self.likelihood.param_shape[0], sizes[0], act)

    @property
    def latent_names(self) -> list[str]:
        """The latent sites in the order in which they are drawn, "zL" first."""
        return [f"z{i + 1}" for i in reversed(range(len(self.stages)))]

    def model(self, x: Tensor) -> None:
        """The generative model of the data `x`, `(N, *data_shape)`."""
        self._check(x, batch=True)
        self._register("start", "cells", "ups", "decoder", "likelihood")
        with pyro.plate("data", len(x)):
            state = self._descend(lambda i, h, p: pyro.sample(f"z{i + 1}", p))
            pyro.sample("x", self.decode(state), obs=x)

    def guide(self, x: Tensor) -> None:
        """The amortized posterior of the latents of `x`, `(N, *data_shape)`, from zL to z1."""
        self._check(x, batch=True)
        self._register("encoder", "corrections", "start", "cells", "ups")
        with pyro.plate("data", len(x)):
            evidence = self.encoder(x)
            self._descend(lambda i, h, p: pyro.sample(f"z{i + 1}", self._corrected(i, h, p, evidence)), finishes=False)

    def encode(self, x: Tensor) -> Any:
        """q(z1|z2, ..., zL, x) at one draw of the latents above: batch shape `*`, event shape that of z1."""
        self._check(x)
        evidence, found = self.encoder(x), []

        def draw(i: int, h: Tensor, p: Any) -> Tensor:
            found.append(self._corrected(i, h, p, evidence))
            return found[-1].rsample()

        self._descend(draw, finishes=False)
        return found[-1]

    def decode(self, state: Tensor) -> Any:
        """p(x|h_0) as a distribution, batch shape `*`, for the last state, `(*, channels[0], H', W')`."""
        return self.likelihood(self.decoder(state))

    @torch.no_grad()
    def sample(self, n: int, *, mean: bool = False) -> Tensor:
        """`(n, *data_shape)` drawn from the model, or the means of p(x|h_0) with `mean=True`.

        Raises:
            ValueError: For n below one.
            NotImplementedError: For the mean under a likelihood without one, as `PixelCNN` is.
        """
        if n < 1:
            raise ValueError(f"sample({n}): expected at least 1")
        state = self._descend(lambda i, h, p: p.expand([n]).sample())
        p = self.decode(state)
        return p.mean if mean else p.sample()

    @torch.no_grad()
    def reconstruct(self, x: Tensor, *, mean: bool = True) -> Tensor:
        """`(N, *data_shape)`: the mean of p(x|h_0) at one draw of the latents from the guide, or a draw from it.

        Raises:
            NotImplementedError: For the mean under a likelihood without one, as `PixelCNN` is.
        """
        self._check(x)
        evidence = self.encoder(x.to(self.start["state"].device))
        p = self.decode(self._descend(lambda i, h, p: self._corrected(i, h, p, evidence).sample()))
        return p.mean if mean else p.sample()

    def _descend(self, draw: Callable[[int, Tensor, Any], Tensor], finishes: bool = True) -> Tensor:
        """The state after all cells; `draw(i, h, p)` gives the latent i, 0 at the bottom, whose prior at h is p.

        A guide needs no state after the last latent (`finishes=False`).
        """
        h: Tensor = self.start["state"]
        stage = len(self.ups)
        for i in reversed(range(len(self.cells))):
            while stage > self.stages[i]:
                stage -= 1
                h = self.ups[stage](h)
            cell: Any = self.cells[i]
            features, h = cell(h)
            loc, log_scale = features.chunk(2, -3)
            z = draw(i, h, dist.Normal(loc, bounded_exp(log_scale)).to_event(3))
            if i > 0 or finishes:
                h = cell.add(h, z)
        for up in reversed(self.ups[:stage] if finishes else ()):
            h = up(h)
        return h

    def _corrected(self, i: int, h: Tensor, p: Any, evidence: Sequence[Tensor]) -> Any:
        """q(z_i | h, x): the prior p at the state h, moved and scaled in units of its own scale."""
        data = evidence[self.stages[i]]
        lead = torch.broadcast_shapes(h.shape[:-3], data.shape[:-3])
        both = torch.cat([part.expand(*lead, *part.shape[-3:]) for part in (h, data)], -3)
        shift, log_factor = on_images(self.corrections[i], both).chunk(2, -3)
        loc, scale = p.base_dist.loc, p.base_dist.scale
        return dist.Normal(loc + scale * shift, scale * bounded_exp(log_factor)).to_event(3)
