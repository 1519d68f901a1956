"""Discrete codes: the point mass at the nearest code of a codebook, and distributions over arrays of codes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.distributions import constraints
from torch import Tensor, nn

from pyro_vae.conditionals import Conditional
from pyro_vae.models.codebooks import Codebook, ResidualCodebook, ScalarCodebook, rotated, straight_through
from pyro_vae.nets import leading_shape
from pyro_vae.pair.names import Named
from pyro_vae.pair.protocol import Pair
from pyro_vae.priors import Prior

__all__ = ["AutoregressiveCodes", "CodePrior", "NearestCode", "UniformCodes"]

AnyCodebook = Codebook | ResidualCodebook | ScalarCodebook


class Quantized(dist.Delta):
    """A point mass at the codes `nearest` to an `encoding`, both `(*, *grid, d)`, with a gradient by another way.

    The value is exactly the code, and its gradient reaches what `path`, of the same shape, is made of, as if that were
    the value: by default the encoding. It reaches the code, too, where the codebook is a parameter.
    """

    def __init__(self, encoding: Tensor, nearest: Tensor, event_dim: int, path: Tensor | None = None) -> None:
        self.encoding, self.nearest = encoding, nearest
        self.path = encoding if path is None else path
        super().__init__(nearest + (self.path - self.path.detach()), event_dim=event_dim)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Quantized:
        shape = torch.Size(batch_shape) + self.event_shape
        return Quantized(
            self.encoding.expand(shape), self.nearest.expand(shape), len(self.event_shape), self.path.expand(shape)
        )


class NearestCode(Conditional):
    """q(z|x): the point mass at the codes nearest to the vectors of the features, `(*, *grid, d)`.

    In training mode, while gradients are recorded, a learned codebook is updated by the encodings.

    Args:
        codebook: The codes and their vectors.
        grid: Shape of an array of encodings.
        rotates: Whether the gradient is rotated as the encoding is to its code, or passed straight through.

    Attributes:
        grid: Shape of an array of codes: `depth` of them for each encoding, along the last dimension.
    """

    def __init__(self, codebook: AnyCodebook, grid: Sequence[int], rotates: bool = False) -> None:
        self.grid = torch.Size((*grid[:-1], grid[-1] * codebook.depth))
        super().__init__((*self.grid, codebook.dim), (*grid, codebook.dim))
        self.codebook, self.rotates = codebook, rotates

    def distribution(self, h: Tensor) -> Quantized:
        learns = self.training and torch.is_grad_enabled()
        encoding, nearest, path = self.codebook.quantize(h, learns, rotated if self.rotates else straight_through)
        return Quantized(encoding, nearest, len(self.event_shape), path)


class _InCodebook(constraints.Constraint):
    """Arrays of vectors, along the last dimension, that all are in a codebook."""

    is_discrete = True

    def __init__(self, codebook: AnyCodebook, event_dim: int) -> None:
        self.codebook, self.event_dim = codebook, event_dim
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        return self.holds(value, self.codebook.find(value))

    def holds(self, value: Tensor, codes: Tensor) -> Tensor:
        """`check` for a value whose nearest codes are known."""
        vectors = self.codebook.lookup(codes).detach()
        error = (value.detach() - vectors).abs().flatten(-self.event_dim).amax(-1)
        return error <= 1e-5 * (1 + self.codebook.vectors.detach().abs().amax())


class CodeDistribution(dist.TorchDistribution):
    """A distribution over arrays of codes as a mass function over their vectors, `(*grid, d)`."""

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, prior: CodePrior, codebook: AnyCodebook, batch_shape: Any = ()) -> None:
        self.prior, self.codebook = prior, codebook
        super().__init__(torch.Size(batch_shape), prior.event_shape, validate_args=False)

    @property
    def support(self) -> _InCodebook:
        """Arrays of vectors that all are in the codebook."""
        return _InCodebook(self.codebook, len(self.event_shape))

    def expand(self, batch_shape: Any, _instance: Any = None) -> CodeDistribution:
        return CodeDistribution(self.prior, self.codebook, batch_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """log p of the codes of the vectors, in nats; -inf where a vector is not in the codebook."""
        codes = self.codebook.find(value)
        return torch.where(self.support.holds(value, codes), self.prior.log_prob(codes), -math.inf)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """Vectors of codes drawn from the prior."""
        lead = torch.Size(sample_shape) + self.batch_shape
        codes = self.prior.draw(lead.numel())
        return self.codebook.lookup(codes).detach().reshape(lead + self.event_shape)


class CodePrior(Prior):
    """A distribution over arrays of codes, `log_prob(codes)` and `draw(n)`; `prior()` is that over their vectors.

    Args:
        codebook: The codes' vectors, which belong to the posterior.
        grid: Shape of an array of codes.
    """

    def __init__(self, codebook: AnyCodebook, grid: Sequence[int]) -> None:
        super().__init__((*grid, codebook.dim))
        self.grid, self.codes = torch.Size(grid), codebook.codes
        self._codebook = [codebook]  # in a list, since its weights belong to the posterior

    def forward(self) -> CodeDistribution:
        return CodeDistribution(self, self._codebook[0])

    def log_prob(self, codes: Tensor) -> Tensor:
        """log p of arrays of codes, `(*, *grid) -> (*)`."""
        raise NotImplementedError(f"{type(self).__name__} must define log_prob(codes)")

    def draw(self, n: int) -> Tensor:
        """`(n, *grid)` codes."""
        raise NotImplementedError(f"{type(self).__name__} must define draw(n)")


class UniformCodes(CodePrior):
    """The uniform distribution over arrays of codes: log K nats for each code.

    Args:
        codebook, grid: As for `CodePrior`.
    """

    def log_prob(self, codes: Tensor) -> Tensor:
        rate = self.grid.numel() * math.log(self.codes)
        return self._codebook[0].vectors.new_full(leading_shape(codes, self.grid, "log_prob"), -rate)

    def draw(self, n: int) -> Tensor:
        return torch.randint(self.codes, (n, *self.grid), device=self._codebook[0].vectors.device)


class AutoregressiveCodes(Named, CodePrior, Pair):
    r"""A small PixelCNN, each code given those above it and to its left; also a pair over observed codes.

    .. math:: p(k) = \prod_i p(k_i \mid k_1, \dots, k_{i-1})

    Inside a `VQVAE` it is trained with everything else. Its own `model`, and a `guide` without latents, train it alone
    on codes `(N, *grid)`.

    Args:
        codebook, grid: As for `CodePrior`; a grid of one or two dimensions.
        width: Channels of the hidden layers.
        blocks: Residual blocks after the first layer.

    Raises:
        ValueError: For a grid of more than two dimensions.

    Reference: van den Oord et al. 2016, arXiv 1601.06759.
    """

    def __init__(self, codebook: AnyCodebook, grid: Sequence[int], width: int = 64, blocks: int = 4) -> None:
        super().__init__(codebook, grid)
        if len(self.grid) > 2:
            raise ValueError(f"an autoregressive prior needs codes in one or two dimensions, got a grid {tuple(grid)}")
        self.depth = codebook.depth
        self.embed = nn.Embedding(self.depth * self.codes, width)  # the codebooks of a residual one apart
        self.first = _Masked(width, width, 5, itself=False)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.ReLU(), _Masked(width, width, 3), nn.ReLU(), nn.Conv2d(width, width, 1))
            for _ in range(blocks)
        )
        self.last = nn.Sequential(nn.ReLU(), nn.Conv2d(width, self.codes, 1))

    def model(self, codes: Tensor) -> None:
        """Observed codes `(N, *grid)`."""
        pyro.module(self.name, self)
        with pyro.plate("data", len(codes)):
            given_before = dist.Categorical(logits=self.logits(codes)).to_event(len(self.grid))
            pyro.sample("codes", given_before, obs=codes)

    def guide(self, codes: Tensor) -> None:
        """Nothing is latent."""

    def logits(self, codes: Tensor) -> Tensor:
        """The logits of each code given those before it, `(*, *grid, K)`, for codes `(*, *grid)`."""
        lead = leading_shape(codes, self.grid, "logits")
        high, wide = (1, *self.grid)[-2:]
        which = torch.arange(self.grid[-1], device=codes.device) % self.depth * self.codes
        h = self.first(self.embed((codes + which).reshape(-1, high, wide)).movedim(-1, 1))
        for block in self.blocks:
            h = h + block(h)
        return self.last(h).movedim(1, -1).reshape(*lead, *self.grid, self.codes)

    def log_prob(self, codes: Tensor) -> Tensor:
        return dist.Categorical(logits=self.logits(codes)).log_prob(codes).flatten(-len(self.grid)).sum(-1)

    @torch.no_grad()
    def draw(self, n: int) -> Tensor:
        codes = torch.zeros(n, self.grid.numel(), dtype=torch.long, device=self.embed.weight.device)
        for i in range(codes.shape[1]):
            logits = self.logits(codes.reshape(n, *self.grid)).reshape(n, -1, self.codes)[:, i]
            codes[:, i] = dist.Categorical(logits=logits).sample()
        return codes.reshape(n, *self.grid)


class _Masked(nn.Conv2d):
    """A convolution that sees what comes before a pixel in reading order, and the pixel `itself` or not."""

    mask: Tensor

    def __init__(self, before: int, after: int, kernel: int, itself: bool = True) -> None:
        super().__init__(before, after, kernel, padding=kernel // 2)
        mask = torch.ones(kernel * kernel)
        mask[kernel * kernel // 2 + int(itself) :] = 0
        self.register_buffer("mask", mask.reshape(kernel, kernel), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.mask, self.bias, padding=self.padding)
