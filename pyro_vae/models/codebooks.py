"""Codebooks: learned vectors, several of them for what the ones before leave over, and a fixed grid of scalars."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyro_vae.distributed.division import shares
from pyro_vae.nets import as_sizes

__all__ = ["Codebook", "ResidualCodebook", "ScalarCodebook", "rotated", "straight_through"]

Path = Callable[[Tensor, Tensor], Tensor]  # (encoding, code) -> what carries the gradient, all `(*, d)`


def straight_through(encoding: Tensor, code: Tensor) -> Tensor:
    """The encoding, so that the gradient at the code becomes its own (van den Oord et al. 2017, arXiv 1711.00937)."""
    return encoding


def rotated(encoding: Tensor, code: Tensor) -> Tensor:
    r"""The encoding times the rotation and the factor that take it to the code, both held constant.

    .. math:: \lambda R e, \quad \lambda = |q| / |e|, \quad R = I - 2 r r^T + 2 \hat q \hat e^T, \quad
        r = (\hat e + \hat q) / |\hat e + \hat q|

    The gradient g at the code q becomes :math:`\lambda R^T g` at the encoding e: its angle with the encoding is that
    which it has with the code. Where one of them is zero, or they are opposite, R is undefined and the gradient is
    passed straight through.

    Reference: Fifty et al. 2024, arXiv 2410.06424, eq. 4 and section 4.2.
    """
    with torch.no_grad():
        e_norm, q_norm = encoding.norm(dim=-1, keepdim=True), code.norm(dim=-1, keepdim=True)
        e, q = encoding / e_norm.clamp_min(1e-12), code / q_norm.clamp_min(1e-12)
        sum_norm = (e + q).norm(dim=-1, keepdim=True)
        r, factor = (e + q) / sum_norm.clamp_min(1e-12), q_norm / e_norm.clamp_min(1e-12)
        defined = (e_norm > 1e-6) & (q_norm > 1e-6) & (sum_norm > 1e-3)
    turned = encoding - 2 * r * (r * encoding).sum(-1, keepdim=True) + 2 * q * (e * encoding).sum(-1, keepdim=True)
    return torch.where(defined, factor * turned, encoding)


class Codebook(nn.Module):
    """K vectors of d elements, `(K, d)`, learned by running averages of their encodings or by gradients.

    Attributes:
        depth: Codes for each encoding.

    Args:
        codes, dim: K and d.
        decay: Decay of the running averages; None makes the vectors a parameter.
        revive: A code with fewer uses per batch than this, on average, moves to the encoding of a random datum. At the
            start of training no code has been used, so all of them do. 0: never.

    Raises:
        ValueError: For sizes below 1, a decay outside (0, 1), or a negative `revive`.

    Reference: van den Oord et al. 2017, arXiv 1711.00937, appendix A.1.
    """

    depth = 1
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

    @property
    def codes(self) -> int:
        """K."""
        return len(self.vectors)

    @property
    def dim(self) -> int:
        """d."""
        return self.vectors.shape[-1]

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

    def quantize(self, encoding: Tensor, learns: bool, path: Path) -> tuple[Tensor, Tensor, Tensor]:
        """The encodings, the codes that stand for them and what carries the gradient, all `(*, d)`."""
        nearest = self.lookup(self.update(encoding.detach()) if learns else self.nearest(encoding))
        return encoding, nearest, path(encoding, nearest.detach())

    def lookup(self, codes: Tensor) -> Tensor:
        """The vectors of codes, `(*) -> (*, d)`."""
        return self.vectors[codes]

    def find(self, vectors: Tensor) -> Tensor:
        """The codes of vectors of the codebook, `(*, d) -> (*)`."""
        return self.nearest(vectors)

    def replica_weights(self, before: Mapping[str, Tensor], rank: int, size: int) -> dict[str, Tensor]:
        """The weights of this process's changes where `size` processes share each batch.

        Every process has moved a code that is hardly used to a datum of its own share; each takes some of the moves.
        """
        uses = before["uses"]
        mine = torch.arange(len(uses), device=uses.device) % size == rank
        weight = torch.where(uses < self.revive, mine.to(uses.dtype), 1 / size)
        return {"uses": weight, "sums": weight.unsqueeze(-1), "vectors": weight.unsqueeze(-1)}


class ResidualCodebook(nn.Module):
    r"""D codebooks, each for what those before it leave over of an encoding.

    .. math:: r_1 = e, \quad k_j = \arg\min_k \|r_j - c_{jk}\|, \quad r_{j+1} = r_j - c_{j k_j}; \qquad
        e \approx \sum_{j=1}^{D} c_{j k_j}

    An array of codes has the D codes of a position next to each other along its last dimension, `(*, W D)`, and their
    vectors, `(*, W D, d)`, are to be summed, D at a time. The gradient at the sum reaches the encoding once.

    Args:
        depth: D.
        codes, dim, decay, revive: As for `Codebook`, of each.

    Reference: Lee et al. 2022, arXiv 2203.01941, eq. 3 and 4; Zeghidour et al. 2021, arXiv 2107.03312, algorithm 1.
    """

    def __init__(self, depth: int, codes: int, dim: int, decay: float | None = 0.99, revive: float = 0.1) -> None:
        super().__init__()
        (self.depth,) = as_sizes(depth, "depth", 1)
        self.books = nn.ModuleList(Codebook(codes, dim, decay, revive) for _ in range(self.depth))
        self.codes, self.dim = codes, dim

    @property
    def vectors(self) -> Tensor:
        """`(D, K, d)`."""
        books: Any = self.books
        return torch.stack([book.vectors for book in books])

    def quantize(self, encoding: Tensor, learns: bool, path: Path) -> tuple[Tensor, Tensor, Tensor]:
        """What each codebook is given, its codes and what carries the gradient, `(*, W, d) -> (*, W D, d)` each."""
        rest, given, found = encoding, [], []
        books: Any = self.books
        for book in books:
            _, nearest, _ = book.quantize(rest, learns, straight_through)
            given.append(rest)
            found.append(nearest)
            rest = rest - nearest.detach()
        carried = path(encoding, sum(found[1:], start=found[0]).detach()) / self.depth
        return self._side_by_side(given), self._side_by_side(found), self._side_by_side([carried] * self.depth)

    @staticmethod
    def _side_by_side(parts: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(parts), -2).flatten(-3, -2)  # (*, W, D, d) -> (*, W D, d)

    @torch.no_grad()
    def nearest(self, encoding: Tensor) -> Tensor:
        """The codes of encodings, `(*, W, d) -> (*, W D)`."""
        return self.find(self.quantize(encoding, False, straight_through)[1])

    def lookup(self, codes: Tensor) -> Tensor:
        """The vectors of codes, `(*, W D) -> (*, W D, d)`."""
        which = torch.arange(codes.shape[-1], device=codes.device) % self.depth
        return self.vectors[which, codes]

    @torch.no_grad()
    def find(self, vectors: Tensor) -> Tensor:
        """The codes of vectors of the codebooks, `(*, W D, d) -> (*, W D)`."""
        books: Any = self.books
        parts = [book.find(vectors[..., j :: self.depth, :]) for j, book in enumerate(books)]
        return torch.stack(parts, -1).flatten(-2)


class ScalarCodebook(nn.Module):
    r"""A fixed grid: each of d elements is bounded and rounded to one of its own levels; nothing is learned.

    .. math:: k \in \{0, \dots, \textstyle\prod_i L_i - 1\}, \quad
        c_i = \mathrm{round}\big(\tfrac{L_i - 1}{2} (1 + \epsilon) \tanh(e_i + s_i) - o_i\big) / \lfloor L_i / 2 \rfloor

    The offset :math:`o_i` is a half for an even number of levels and 0 for an odd one, and the shift :math:`s_i` takes
    an encoding of zero to a code of zero. The gradient at the code passes the rounding as it is, and the tanh by its
    derivative. There are no encodings to be kept near codes: the terms of "vq" that do so are zero.

    Args:
        levels: :math:`L_1, \dots, L_d`, at least 2 each. The paper finds 5 and more best, such as (8, 5, 5, 5).

    Raises:
        ValueError: For fewer than two levels, or more codes than 2 ** 20.

    Reference: Mentzer et al. 2023, arXiv 2309.15505, section 3.1 and appendix A.
    """

    depth = 1
    vectors: Tensor
    basis: Tensor
    counts: Tensor

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        self.levels = as_sizes(levels, "levels")
        self.codes, self.dim = self.levels.numel(), len(self.levels)
        if min(self.levels) < 2 or self.codes > 2**20:
            raise ValueError(
                f"levels must be at least 2 each, and their product at most {2**20}; got {tuple(self.levels)}"
            )
        steps = torch.tensor([1, *self.levels[:-1]]).cumprod(0)
        self.register_buffer("basis", steps, persistent=False)
        self.register_buffer("counts", torch.tensor(self.levels), persistent=False)
        digits = torch.arange(self.codes).unsqueeze(-1) // steps % self.counts
        half = torch.div(self.counts, 2, rounding_mode="floor")
        self.register_buffer("vectors", (digits - half) / half, persistent=False)

    def bounded(self, encoding: Tensor) -> Tensor:
        """Encodings before they are rounded, in units of a level: `(*, d)`."""
        half_width = (self.counts - 1) * (1 + 1e-3) / 2
        offset = torch.where(self.counts % 2 == 0, 0.5, 0.0).to(encoding)
        return torch.tanh(encoding + torch.atanh(offset / half_width)) * half_width - offset

    def quantize(self, encoding: Tensor, learns: bool, path: Path) -> tuple[Tensor, Tensor, Tensor]:
        """The codes, twice, and what carries the gradient, all `(*, d)`."""
        within = self.bounded(encoding) / torch.div(self.counts, 2, rounding_mode="floor")
        nearest = self.lookup(self.nearest(encoding))
        return nearest, nearest, within

    @torch.no_grad()
    def nearest(self, encoding: Tensor) -> Tensor:
        """The codes of encodings, `(*, d) -> (*)`."""
        half = torch.div(self.counts, 2, rounding_mode="floor")
        return self._index(self.bounded(encoding).round().long() + half)

    def lookup(self, codes: Tensor) -> Tensor:
        """The vectors of codes, `(*) -> (*, d)`, elements in [-1, 1]."""
        return self.vectors[codes]

    @torch.no_grad()
    def find(self, vectors: Tensor) -> Tensor:
        """The codes of vectors of the grid, `(*, d) -> (*)`."""
        half = torch.div(self.counts, 2, rounding_mode="floor")
        return self._index(((vectors * half).round().long() + half).clamp_min(0).minimum(self.counts - 1))

    def _index(self, digits: Tensor) -> Tensor:
        return (digits * self.basis).sum(-1)
