"""Discrete codes: a codebook, the point mass at the nearest code, and distributions over arrays of codes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.distributions import constraints
from torch import Tensor, nn

from pyro_vae.conditionals import Conditional
from pyro_vae.distributed.division import shares
from pyro_vae.nets import as_sizes, leading_shape
from pyro_vae.pair.names import Named
from pyro_vae.pair.protocol import Pair
from pyro_vae.priors import Prior

__all__ = ["AutoregressiveCodes", "Codebook", "CodePrior", "NearestCode", "UniformCodes"]


class Codebook(nn.Module):
    """K vectors of d elements, `(K, d)`, learned by running averages of their encodings or by gradients.

    Args:
        codes, dim: K and d.
        decay: Decay of the running averages; None makes the vectors a parameter.
        revive: A code with fewer uses per batch than this, on average, moves to the encoding of a random datum. At the
            start of training no code has been used, so all of them do. 0: never.

    Raises:
        ValueError: For sizes below 1, a decay outside (0, 1), or a negative `revive`.

    Reference: van den Oord et al. 2017, arXiv 1711.00937, appendix A.1.
    """

    vectors: Tensor
    uses: Tensor
    sums: Tensor

    def __init__(self, codes: int, dim: int, decay: float | None = 0.99, revive: float = 0.1) -> None:
        super().__init__()
        if decay is not None and not 0 < decay < 1:
            raise ValueError(f"decay must lie between 0 and 1, or be None for a codebook with a gradient, got {decay}")
        if not 0 <= revive < math.inf:
            raise ValueError(f"revive must be a number of uses per batch >= 0, got {revive}")
        self.decay, self.revive = decay, revive
        vectors = torch.randn(as_sizes((codes, dim), "codes and embedding_dim", 2))
        if decay is None:
            self.vectors = nn.Parameter(vectors)
        else:
            self.register_buffer("vectors", vectors)
        self.register_buffer("uses", torch.zeros(codes))
        self.register_buffer("sums", torch.zeros(codes, dim))

    @torch.no_grad()
    def nearest(self, encoding: Tensor) -> Tensor:
        """Indices `(*)` of the codes nearest to encodings `(*, d)`."""
        # squares are expanded, so in single precision a code could lose to another one 1e-4 away, even against itself
        flat, vectors = encoding.reshape(-1, encoding.shape[-1]).double(), self.vectors.double()
        # the distance up to a constant over codes, in one product: adding the squares and `argmin` take longer
        with_one = F.pad(flat, (0, 1), value=1.0)
        distance = with_one @ torch.cat([-2 * vectors, vectors.square().sum(-1, keepdim=True)], -1).T
        return distance.min(-1).indices.reshape(encoding.shape[:-1])

    @torch.no_grad()
    def update(self, encoding: Tensor) -> Tensor:
        """Set the vectors to the averages so far, then average in encodings `(*, d)`; returns their codes `(*)`.

        In between, vectors that are hardly used move to random ones of the encodings.
        """
        flat = encoding.reshape(-1, encoding.shape[-1]).to(self.vectors.dtype)
        if self.decay is not None:
            known = self.uses.unsqueeze(-1).clamp_min(1e-6)
            self.vectors.copy_(torch.where(self.uses.unsqueeze(-1) > 1e-6, self.sums / known, self.vectors))
        dead = (self.uses < self.revive).unsqueeze(-1)
        chosen = flat[torch.randint(len(flat), (len(self.uses),), device=flat.device)]
        self.vectors.copy_(torch.where(dead, chosen, self.vectors))
        self.sums.copy_(torch.where(dead, chosen, self.sums))
        self.uses.copy_(torch.where(dead.squeeze(-1), torch.ones_like(self.uses), self.uses))
        codes, rate = self.nearest(flat), 1 - (0.99 if self.decay is None else self.decay)
        ones, whole = torch.ones_like(flat[:, 0]), shares()
        self.uses.lerp_(torch.zeros_like(self.uses).index_add_(0, codes, ones, alpha=whole), rate)
        self.sums.lerp_(torch.zeros_like(self.sums).index_add_(0, codes, flat, alpha=whole), rate)
        return codes.reshape(encoding.shape[:-1])

    def replica_weights(self, before: Mapping[str, Tensor], rank: int, size: int) -> dict[str, Tensor]:
        """The weights of this process's changes where `size` processes share each batch.

        Every process has moved a code that is hardly used to a datum of its own share; each takes some of the moves.
        """
        uses = before["uses"]
        mine = torch.arange(len(uses), device=uses.device) % size == rank
        weight = torch.where(uses < self.revive, mine.to(uses.dtype), 1 / size)
        return {"uses": weight, "sums": weight.unsqueeze(-1), "vectors": weight.unsqueeze(-1)}


class Quantized(dist.Delta):
    """A point mass at the codes `nearest` to an `encoding`, both `(*, *grid, d)`, with a straight-through gradient.

    The value is exactly the code, and the gradient reaches the encoding as if that were the value. It reaches the code,
    too, where the codebook is a parameter.
    """

    def __init__(self, encoding: Tensor, nearest: Tensor, event_dim: int) -> None:
        self.encoding, self.nearest = encoding, nearest
        super().__init__(nearest + (encoding - encoding.detach()), event_dim=event_dim)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Quantized:
        shape = torch.Size(batch_shape) + self.event_shape
        return Quantized(self.encoding.expand(shape), self.nearest.expand(shape), len(self.event_shape))


class NearestCode(Conditional):
    """q(z|x): the point mass at the code nearest to each vector of the features, `(*, *grid, d)`.

    In training mode, while gradients are recorded, the codebook is updated by the encodings.

    Args:
        codebook: The K vectors, `(K, d)`.
        grid: Shape of an array of codes.
    """

    def __init__(self, codebook: Codebook, grid: Sequence[int]) -> None:
        shape = (*grid, codebook.vectors.shape[-1])
        super().__init__(shape, shape)
        self.codebook = codebook

    def distribution(self, h: Tensor) -> Quantized:
        learns = self.training and torch.is_grad_enabled()
        codes = self.codebook.update(h.detach()) if learns else self.codebook.nearest(h)
        return Quantized(h, self.codebook.vectors[codes], len(self.event_shape))


class _InCodebook(constraints.Constraint):
    """Arrays of vectors, along the last dimension, that all are in a codebook."""

    is_discrete = True

    def __init__(self, codebook: Codebook, event_dim: int) -> None:
        self.codebook, self.event_dim = codebook, event_dim
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        return self.holds(value, self.codebook.nearest(value))

    def holds(self, value: Tensor, codes: Tensor) -> Tensor:
        """`check` for a value whose nearest codes are known."""
        vectors = self.codebook.vectors.detach()
        error = (value.detach() - vectors[codes]).abs().flatten(-self.event_dim).amax(-1)
        return error <= 1e-5 * (1 + vectors.abs().amax())


class CodeDistribution(dist.TorchDistribution):
    """A distribution over arrays of codes as a mass function over their vectors, `(*grid, d)`."""

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, prior: CodePrior, codebook: Codebook, batch_shape: Any = ()) -> None:
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
        codes = self.codebook.nearest(value)
        return torch.where(self.support.holds(value, codes), self.prior.log_prob(codes), -math.inf)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """Vectors of codes drawn from the prior."""
        lead = torch.Size(sample_shape) + self.batch_shape
        codes = self.prior.draw(lead.numel())
        return self.codebook.vectors.detach()[codes].reshape(lead + self.event_shape)


class CodePrior(Prior):
    """A distribution over arrays of codes, `log_prob(codes)` and `draw(n)`; `prior()` is that over their vectors.

    Args:
        codebook: The codes' vectors, which belong to the posterior.
        grid: Shape of an array of codes.
    """

    def __init__(self, codebook: Codebook, grid: Sequence[int]) -> None:
        super().__init__((*grid, codebook.vectors.shape[-1]))
        self.grid, self.codes = torch.Size(grid), codebook.vectors.shape[0]
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

    def __init__(self, codebook: Codebook, grid: Sequence[int], width: int = 64, blocks: int = 4) -> None:
        super().__init__(codebook, grid)
        if len(self.grid) > 2:
            raise ValueError(f"an autoregressive prior needs codes in one or two dimensions, got a grid {tuple(grid)}")
        self.embed = nn.Embedding(self.codes, width)
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
        h = self.first(self.embed(codes.reshape(-1, high, wide)).movedim(-1, 1))
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
