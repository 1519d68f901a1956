"""Traversals of a latent space: between two codes, along an attribute, along one dimension, over a plane."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from pyro_vae.support.arguments import checked, checked_from
from pyro_vae.support.random import seed_or_draw

__all__ = ["attribute_vector", "embed", "interpolate", "manifold", "traverse"]


@checked
def interpolate(a: Tensor, b: Tensor, steps: int = 8, path: Literal["linear", "spherical"] = "linear") -> Tensor:
    r"""Interpolate from `a` to `b`, both `(*, E)`: codes `(steps, *, E)`, both ends included.

    .. math:: \text{linear: } (1-t)\,a + t\,b, \qquad \text{spherical: }
        \frac{\sin((1-t)\,\omega)}{\sin \omega}\, a + \frac{\sin(t\,\omega)}{\sin \omega}\, b, \quad
        \cos \omega = \frac{a \cdot b}{|a|\,|b|}

    Draws from a standard normal in many dimensions have nearly the same norm. The straight line between two of them
    passes closer to the origin than typical draws; the spherical path keeps the norm. It is linear where `a` and `b`
    are parallel.

    Raises:
        ValueError: For codes of different shapes, fewer than two steps, or an unknown path.

    Reference: White 2016, arXiv 1609.04468 (spherical).

    >>> interpolate(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), steps=3, path="spherical")[1]
    tensor([0.7071, 0.7071])
    """
    if a.shape != b.shape or a.dim() < 1:
        raise ValueError(f"two codes (*, E) of one shape expected, got {tuple(a.shape)} and {tuple(b.shape)}")
    if steps < 2:
        raise ValueError(f"steps must be at least 2, the two ends, got {steps}")
    if path not in ("linear", "spherical"):
        raise ValueError(f"path must be 'linear' or 'spherical', got {path!r}")
    t = torch.linspace(0, 1, steps, dtype=a.dtype, device=a.device).reshape(-1, *[1] * a.dim())
    straight = (1 - t) * a + t * b
    if path == "linear":
        return straight
    angle = torch.nn.functional.cosine_similarity(a, b, -1).clamp(-1, 1).acos().unsqueeze(-1)
    sine = angle.sin()
    small = sine.abs() < 1e-4
    sine = sine.masked_fill(small, 1.0)
    curved = ((1 - t) * angle).sin() / sine * a + (t * angle).sin() / sine * b
    return torch.where(small, straight, curved)


@checked
def attribute_vector(codes: Tensor, has: Tensor) -> Tensor:
    """The direction of an attribute in latent space, `(E,)`: mean code of the data that have it minus that of the rest.

    Add multiples of it to a code and decode. Any labeled attribute works; the published example is a smile.

    Args:
        codes: `(N, E)`.
        has: `(N,)` of booleans.

    Raises:
        ValueError: If the shapes do not fit, or if all or none of the data have the attribute.

    Reference: Larsen et al. 2016, arXiv 1512.09300, section 4.1; White 2016, arXiv 1609.04468.

    >>> attribute_vector(torch.tensor([[0.0, 1.0], [2.0, 1.0]]), torch.tensor([False, True]))
    tensor([2., 0.])
    """
    if codes.dim() != 2 or has.shape != codes.shape[:1] or has.dtype != torch.bool:
        raise ValueError(
            f"codes (N, E) and booleans (N,) expected, got {tuple(codes.shape)} and {tuple(has.shape)} of {has.dtype}"
        )
    if bool(has.all()) or not bool(has.any()):
        raise ValueError(f"{int(has.sum())} of {len(has)} data have the attribute: some must have it and some must not")
    return codes[has].mean(0) - codes[~has].mean(0)


@checked_from(dims=0)
def traverse(code: Tensor, values: Tensor, dims: Sequence[int] | None = None) -> Tensor:
    """One code with one dimension at a time set to each of some values: `(dims, values, E)`.

    Args:
        code: `(E,)`, the starting point.
        values: `(V,)`, for example `torch.linspace(-2, 2, 9)`.
        dims: Which dimensions. Default: all.

    >>> traverse(torch.zeros(2), torch.tensor([-1.0, 1.0]))[1].tolist()
    [[0.0, -1.0], [0.0, 1.0]]
    """
    if code.dim() != 1 or values.dim() != 1:
        raise ValueError(f"a code (E,) and values (V,) expected, got {tuple(code.shape)} and {tuple(values.shape)}")
    chosen = list(range(len(code)) if dims is None else dims)
    result = code.repeat(len(chosen), len(values), 1)
    for row, dim in enumerate(chosen):
        result[row, :, dim] = values
    return result


@checked
def manifold(side: int = 20) -> Tensor:
    """Codes over a plane with a standard normal prior, `(side * side, 2)`: quantiles in equal steps, row by row.

    The first coordinate increases to the right, the second upward. Each code represents the same prior probability.

    Reference: Kingma and Welling 2014, arXiv 1312.6114, appendix A.

    >>> manifold(2).sign().tolist()
    [[-1.0, 1.0], [1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]]
    """
    if side < 1:
        raise ValueError(f"side must be at least 1, got {side}")
    line = torch.special.ndtri((torch.arange(side, dtype=torch.float64) + 0.5) / side).float()
    return torch.stack([line.repeat(side), line.flip(0).repeat_interleave(side)], 1)


@checked
def embed(
    codes: Tensor, *, method: Literal["tsne", "umap"] = "tsne", perplexity: float = 30.0, seed: int | None = None
) -> Tensor:
    """Codes `(N, E)` as points in a plane, `(N, 2)`, by t-SNE or by UMAP; seconds for a few thousand.

    Only neighborhoods are meaningful in such a plot, not the distances between groups or their sizes. UMAP, from the
    optional package umap-learn (`pip install pyro-vae[umap]`), draws denser groups and is faster for many data.

    Args:
        codes: `(N, E)`.
        method: "tsne" or "umap".
        perplexity: Effective number of neighbors of a datum; rounded, the `n_neighbors` of UMAP.
        seed: Seed of the layout. None draws one from torch's generator.

    Raises:
        ValueError: For codes of another shape, too few of them, or an unknown method.
        ImportError: If umap-learn is not installed, for "umap".

    Reference: van der Maaten and Hinton 2008, visualizing data using t-SNE; McInnes et al. 2018, arXiv 1802.03426
    (UMAP).
    """
    if method not in ("tsne", "umap"):
        raise ValueError(f"method must be 'tsne' or 'umap', got {method!r}")
    if codes.dim() != 2 or not perplexity < len(codes):
        raise ValueError(f"codes (N, E), N above perplexity={perplexity:g}, expected, got {tuple(codes.shape)}")
    state = seed_or_draw(seed)
    flat = codes.detach().double().cpu().numpy()
    if method == "umap":
        return torch.from_numpy(_umap(flat, max(2, round(perplexity)), state))
    from sklearn.manifold import TSNE

    return torch.from_numpy(TSNE(perplexity=perplexity, init="pca", random_state=state).fit_transform(flat))


def _umap(flat: Any, neighbors: int, seed: int) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the absent TensorFlow, and about threads, which a seed excludes
        try:
            from umap import UMAP
        except ImportError as error:
            raise ImportError(
                "method='umap' needs the package umap-learn, which is not installed: pip install umap-learn"
            ) from error
        return UMAP(n_neighbors=neighbors, random_state=seed, n_jobs=1).fit_transform(flat)
