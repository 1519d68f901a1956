"""Data beside what the pair generates: of which kind they are, and how alike both look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_vae.evaluate import LatentReport, SampleQuality, decode, sample_quality, traverse
from pyro_vae.pair.networks import eval_mode
from pyro_vae.pair.tracing import has_mask, trace_pair
from pyro_vae.plots import as_images
from pyro_vae.reports.pictures import are_images

__all__ = [
    "Column",
    "Traversal",
    "columns_of",
    "Observation",
    "kind_of_data",
    "mean_variance",
    "observation_of",
    "quality_of",
    "traversal_of",
]

DIMENSIONS = 8  # that a traversal shows
VALUES = 9  # along each of them
COLUMNS = 12  # that are drawn


@dataclass(frozen=True)
class Traversal:
    """Decoded data `(dims * VALUES, ...)`, the name of each row, and the values along it as a text."""

    decoded: Tensor
    rows: list[str]
    note: str


@dataclass(frozen=True)
class Column:
    """A column of the data and of as many draws from the pair, and the distance of their distributions."""

    name: str
    data: Tensor
    draws: Tensor
    distance: float


@dataclass(frozen=True)
class Observation:
    """What the model observes of a datum.

    Attributes:
        is_density: Whether log p(x) is a log-density, since some element is continuous.
        num_dims: The observed elements of a datum; None where a mask leaves some of them out.
    """

    is_density: bool
    num_dims: int | None


def observation_of(model: Any, guide: Any, args: tuple[Tensor, ...]) -> Observation:
    """What a model observes of each of a few data."""
    with torch.no_grad(), eval_mode(model, guide):
        traces = trace_pair(model, guide, args, {})
    sites = [site for site in (traces.model.nodes[n] for n in traces.observed) if site["value"].numel()]
    is_density = any(not site["fn"].support.is_discrete for site in sites)
    total = sum(site["value"].numel() for site in sites)
    return Observation(is_density, None if any(map(has_mask, sites)) else total // len(args[0]))


def kind_of_data(x: Tensor) -> str:
    """Whether data are "images", "counts" (whole numbers from 0, some above 1) or other "columns"."""
    if are_images(x):
        return "images"
    values = x.detach().double()
    values = values[values.isfinite()]
    whole = bool((values >= 0).all()) and bool((values == values.round()).all())
    return "counts" if whole and len(values) and float(values.max()) > 1 else "columns"


def traversal_of(model: Any, args: tuple[Tensor, ...], codes: Tensor | None, latent: LatentReport | None) -> Traversal:
    """One datum's code with one dimension at a time moved through the range of the codes, decoded.

    Raises:
        ValueError: Without codes, or if the pair cannot decode them.
    """
    if codes is None:
        raise ValueError("the codes of the data are not known")
    names = [f"dimension {i}" for i in range(codes.shape[1])]
    order = codes.double().var(0).argsort(descending=True).tolist()
    if latent is not None:
        known = [d for d in latent.dimensions if d.status != "auxiliary"]
        if len(known) == len(names):
            names = [d.name for d in known]
            place = {name: i for i, name in enumerate(names)}
            order = [place[d.name] for d in latent.ordered if d.name in place]
    order = order[:DIMENSIONS]
    low, high = codes.double().quantile(torch.tensor([0.01, 0.99], dtype=torch.float64, device=codes.device), 0)
    rows = []
    for dim in order:
        values = torch.linspace(float(low[dim]), float(high[dim]), VALUES).to(codes)
        rows.append(traverse(codes[0], values, [dim])[0])
    first = tuple(a[:1] for a in args)
    decoded = decode(model, torch.cat(rows), *first)
    note = "The code of the first datum; one dimension in each row, from its 1 % to its 99 % quantile over the data."
    return Traversal(decoded, [names[dim] for dim in order], note)


def quality_of(kind: str, x: Tensor | None, samples: Tensor, seed: int) -> SampleQuality:
    """Sample quality of images by their pixels.

    Raises:
        ValueError: If the data are no images.
    """
    if kind != "images" or x is None:
        raise ValueError("sample quality is a question about images")
    return sample_quality(as_images(x), as_images(samples), seed=seed)


def columns_of(x: Tensor, draws: Tensor, names: Sequence[str] = ()) -> list[Column]:
    """The columns in which draws differ most from the data, those first, by the Kolmogorov-Smirnov distance."""
    a, b = (values.detach().double().cpu().reshape(len(values), -1) for values in (x, draws))
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"data of {a.shape[1]} columns and draws of {b.shape[1]} do not match")
    found = []
    for i in range(a.shape[1]):
        data, made = a[:, i][a[:, i].isfinite()], b[:, i][b[:, i].isfinite()]
        if len(data) and len(made):
            found.append(Column(names[i] if names else f"column {i}", data, made, _distance(data, made)))
    return sorted(found, key=lambda column: -column.distance)[:COLUMNS]


def _distance(a: Tensor, b: Tensor) -> float:
    """The largest difference of two empirical distribution functions."""
    points = torch.cat([a, b]).sort().values
    shares = [torch.searchsorted(v.sort().values, points, right=True) / len(v) for v in (a, b)]
    return float((shares[0] - shares[1]).abs().max())


def mean_variance(x: Tensor) -> Tensor:
    """Mean and variance of each column, `(D, 2)`."""
    values = x.detach().double().cpu().reshape(len(x), -1)
    return torch.stack([values.mean(0), values.var(0)], 1)
