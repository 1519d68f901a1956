"""Distances between two sets of feature vectors, `(N, F)` each, and how well they cover each other."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["class_score", "frechet_distance", "kernel_distance", "manifold_scores"]


def frechet_distance(a: Tensor, b: Tensor) -> float:
    r"""Squared Fréchet distance of the normals with the means and covariances of `a` and `b`.

    .. math:: \|\mu_a - \mu_b\|^2 + \mathrm{tr}\big(S_a + S_b - 2 (S_a^{1/2} S_b S_a^{1/2})^{1/2}\big)

    Biased upward, the more so the fewer rows there are: compare only values for equal numbers of rows and the same
    features.

    Reference: Heusel et al. 2017, arXiv 1706.08500 (the FID, with Inception's features).

    >>> a = torch.randn(100, 3)
    >>> round(frechet_distance(a, a + 2.0), 4)
    12.0
    """
    a, b = _check(a, b)
    root = _root(_covariance(a))
    overlap = torch.linalg.eigvalsh(root @ _covariance(b) @ root).clamp_min(0).sqrt().sum()
    shift = (a.mean(0) - b.mean(0)).square().sum()
    return float((shift + a.var(0).sum() + b.var(0).sum() - 2 * overlap).clamp_min(0))


def kernel_distance(a: Tensor, b: Tensor, *, block: int = 500, seed: int = 0) -> tuple[float, float]:
    r"""Squared maximum mean discrepancy under the kernel `(a'b / F + 1)**3`, and its standard error.

    The mean over blocks of about `block` rows of each set, in random order. It is unbiased, so it may be negative.

    Reference: Binkowski et al. 2018, arXiv 1801.01401 (the KID, with Inception's features).
    """
    a, b = _check(a, b)
    generator = torch.Generator().manual_seed(seed)
    n = min(len(a), len(b))
    a, b = (v[torch.randperm(len(v), generator=generator).to(v.device)[:n]] for v in (a, b))
    blocks = max(1, n // block)
    found = torch.stack([_mmd(*pair) for pair in zip(a.tensor_split(blocks), b.tensor_split(blocks), strict=True)])
    error = float(found.std()) / math.sqrt(blocks) if blocks > 1 else math.nan
    return float(found.mean()), error


def manifold_scores(real: Tensor, fake: Tensor, k: int = 5) -> dict[str, float]:
    """Precision, recall, density and coverage by balls to the k-th neighbor.

    Precision is the fraction of fake rows in the ball of some real row, recall the fraction of real rows in the ball of
    some fake row. Density is the mean number of real balls that contain a fake row, over k, and may exceed 1. Coverage
    is the fraction of real rows whose ball contains a fake row. Two sets from one distribution have a density near 1
    and a coverage near `1 - 2**-k`.

    Raises:
        ValueError: If a set has at most k rows.

    Reference: Kynkäänniemi et al. 2019, arXiv 1904.06991; Naeem et al. 2020, arXiv 2002.09797.
    """
    real, fake = _check(real, fake)
    if not 1 <= k < min(len(real), len(fake)):
        raise ValueError(f"k={k} neighbors need more than k rows, got {len(real)} real and {len(fake)} fake ones")
    real_radius, fake_radius = _radius(real, k), _radius(fake, k)
    inside_real = torch.zeros(len(fake), dtype=torch.long, device=fake.device)
    covered, recalled = [], []
    for part, radius in zip(real.split(1000), real_radius.split(1000), strict=True):
        distance = torch.cdist(part, fake)
        within = distance <= radius.unsqueeze(1)
        inside_real += within.sum(0)
        covered.append(within.any(1))
        recalled.append((distance <= fake_radius).any(1))
    return {
        "precision": float((inside_real > 0).double().mean()),
        "recall": float(torch.cat(recalled).double().mean()),
        "density": float(inside_real.double().mean() / k),
        "coverage": float(torch.cat(covered).double().mean()),
    }


def class_score(log_probs: Tensor) -> float:
    r"""`exp E KL(p(y|x) || p(y))` of a classifier's log-probabilities, `(N, C)`: from 1 to C.

    It is high if each row has a clear class and all classes are equally frequent. It ignores variation within a class.

    Reference: Salimans et al. 2016, arXiv 1606.03498 (the inception score, with Inception as the classifier).

    >>> round(class_score(torch.eye(4).log()), 4)
    4.0
    """
    log_p = log_probs.double().clamp_min(-1e4)
    marginal = log_p.exp().mean(0).log().clamp_min(-1e4)
    return float((log_p.exp() * (log_p - marginal)).sum(1).mean().exp())


def _check(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    if a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(
            f"two sets of features (N, F) with N >= 2 were expected, got {tuple(a.shape)}, {tuple(b.shape)}"
        )
    for rows in (a, b):
        if not bool(rows.isfinite().all()):
            raise ValueError(f"{int((~rows.isfinite()).any(1).sum())} of {len(rows)} rows of features are not finite")
    return a.double(), b.double()


def _covariance(rows: Tensor) -> Tensor:
    centered = rows - rows.mean(0)
    return centered.T @ centered / (len(rows) - 1)


def _root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T


def _mmd(a: Tensor, b: Tensor) -> Tensor:
    def kernel(u: Tensor, v: Tensor) -> Tensor:
        return (u @ v.T / u.shape[1] + 1) ** 3

    def off_diagonal(u: Tensor) -> Tensor:
        gram = kernel(u, u)
        return (gram.sum() - gram.diagonal().sum()) / (len(u) * (len(u) - 1))

    return off_diagonal(a) + off_diagonal(b) - 2 * kernel(a, b).mean()


def _radius(rows: Tensor, k: int) -> Tensor:
    # the nearest row is the row itself
    parts = [torch.cdist(part, rows).kthvalue(k + 1, dim=1).values for part in rows.split(1000)]
    return torch.cat(parts)
