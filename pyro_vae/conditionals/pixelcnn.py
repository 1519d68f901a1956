"""A likelihood of binary images whose pixels depend on the pixels before them: a local PixelCNN."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyro_vae.conditionals.likelihoods import Likelihood
from pyro_vae.nets import as_sizes
from pyro_vae.support.arguments import checked

__all__ = ["PixelCNN"]


class PixelCNN(Likelihood):
    r"""Binary images, pixel after pixel in raster order, each given the latent and the pixels near it and before it.

    .. math:: p(x \mid h) = \prod_i \mathrm{Bernoulli}\big(x_i; \sigma(f(x_{N(i)}, h))_i\big), \qquad
        N(i) \subset \{j : j < i\}

    The neighborhood N(i) reaches `reach` pixels up, left and right. A density takes one pass of the network f, a draw
    one for each pixel; there is no mean. With a small neighborhood the latent has to carry what is global, and the
    network what is local: strokes and edges. With a large one the latent tends to be ignored.

    Args:
        shape: `(1, H, W)` of one image.
        channels: C, feature maps of f; features `h` of an image have the shape `(C, H, W)`.
        kernel: width of the first causal convolution, odd.
        blocks: residual blocks after it, each with a causal convolution of width 3.

    Attributes:
        reach: `kernel // 2 + blocks`.

    Raises:
        ValueError: For another number of image channels than one, or an even kernel.

    Reference: van den Oord et al. 2016, arXiv 1601.06759, section 3; Chen et al. 2017, arXiv 1611.02731, section 3.1
    (local neighborhoods); Gulrajani et al. 2017, arXiv 1611.05013.

    >>> PixelCNN((1, 5, 5), channels=4)(torch.zeros(3, 4, 5, 5)).sample().shape
    torch.Size([3, 1, 5, 5])
    """

    discrete = True
    support = constraints.boolean

    @checked
    def __init__(self, shape: Sequence[int], channels: int = 32, kernel: int = 7, blocks: int = 2) -> None:
        (one, height, width), (maps,) = as_sizes(shape, "shape", 3), as_sizes(channels, "channels", 1)
        if one != 1:
            raise ValueError(f"PixelCNN is for images of one channel, shape (1, H, W); got {tuple(shape)}")
        if kernel % 2 == 0 or kernel < 3:
            raise ValueError(f"kernel must be odd and at least 3, got {kernel}")
        if blocks < 0:
            raise ValueError(f"blocks must be at least 0, got {blocks}")
        super().__init__((1, height, width), maps)
        self.net = _PixelNet(maps, kernel, blocks)
        self.reach = kernel // 2 + blocks

    def distribution(self, h: Tensor) -> TorchDistributionMixin:
        return CausalBernoulli(self.net, h, self.reach)


class CausalBernoulli(dist.TorchDistribution):
    """Binary images `(*, 1, H, W)` with the log-odds `net(x, h)`, of which each depends on earlier pixels only."""

    arg_constraints = {}  # noqa: RUF012
    support = constraints.independent(constraints.boolean, 3)

    def __init__(self, net: nn.Module, h: Tensor, reach: int, validate_args: bool | None = None) -> None:
        self.net, self.h, self.reach = net, h, reach
        super().__init__(h.shape[:-3], torch.Size((1, *h.shape[-2:])), validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> CausalBernoulli:
        h = self.h.expand(*batch_shape, *self.h.shape[-3:])
        return CausalBernoulli(self.net, h, self.reach, validate_args=self._validate_args)

    @property
    def mean(self) -> Tensor:
        """There is none in closed form.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError("the pixels of a PixelCNN depend on each other and have no mean: use mean=False")

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        logits = self.net(value, self.h)
        return dist.Bernoulli(logits=logits, validate_args=False).log_prob(value).sum((-3, -2, -1))

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        h = self.h.expand(self._extended_shape(torch.Size(sample_shape))[:-3] + self.h.shape[-3:])
        x = h.new_zeros(*h.shape[:-3], *self.event_shape)
        for row in range(x.shape[-2]):
            near = slice(max(0, row - self.reach), row + 1)  # no other rows have an effect on this one
            for column in range(x.shape[-1]):
                logits = self.net(x[..., near, :], h[..., near, :])[..., -1, column]
                x[..., row, column] = dist.Bernoulli(logits=logits).sample()
        return x


class _CausalConv(nn.Module):
    """A convolution `(N, A, H, W) -> (N, B, H, W)` that sees the rows above and, in its own row, the pixels before.

    With `strict=False` it also sees the pixel itself. Its rows reach `width // 2` up, so that nothing is computed for
    the rows below.
    """

    mask: Tensor

    def __init__(self, before: int, after: int, width: int, strict: bool) -> None:
        super().__init__()
        half = width // 2
        self.conv = nn.Conv2d(before, after, (half + 1, width))
        mask = torch.ones(half + 1, width)
        mask[-1, half + (not strict) :] = 0.0
        self.register_buffer("mask", mask, persistent=False)
        seen = float(mask.mean())
        with torch.no_grad():
            nn.init.xavier_uniform_(self.conv.weight, 1 / math.sqrt(seen))
            self.conv.weight.mul_(mask)
            nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]
        self.padding = (half, half, half, 0)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.pad(x, self.padding)
        return nn.functional.conv2d(x, self.conv.weight * self.mask, self.conv.bias)


class _PixelNet(nn.Module):
    """Log-odds of the pixels, `(*, 1, H, W), (*, C, H, W) -> (*, 1, H, W)`; leading dimensions broadcast."""

    def __init__(self, channels: int, width: int, blocks: int) -> None:
        super().__init__()
        self.first = _CausalConv(1, channels, width, strict=True)
        self.blocks = nn.ModuleList()
        for _ in range(blocks):
            causal, last = _CausalConv(channels, channels, 3, strict=False), nn.Conv2d(channels, channels, 1)
            nn.init.xavier_uniform_(last.weight, 0.1)
            self.blocks.append(nn.Sequential(nn.SiLU(), causal, nn.SiLU(), last))
        self.head = nn.Sequential(nn.SiLU(), nn.Conv2d(channels, channels, 1), nn.SiLU(), nn.Conv2d(channels, 1, 1))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        size = x.shape[-2:]
        near = self.first(2 * x.reshape(-1, 1, *size) - 1)  # unlike the padding, no pixel is zero
        y = near.reshape(*x.shape[:-3], *near.shape[1:]) + h  # (*, C, H, W)
        lead = y.shape[:-3]
        # with the channels last in memory, convolutions of few channels take half the time on a CPU
        y = y.reshape(-1, *y.shape[-3:]).contiguous(memory_format=torch.channels_last)
        for block in self.blocks:
            y = y + block(y)
        return self.head(y).reshape(*lead, 1, *size)
