"""Supports of continuous sites: the bijection from real vectors, and the push-forward of a family through it."""

from __future__ import annotations

import math
import re
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import AffineTransform, biject_to, constraints
from torch.distributions.transforms import ReshapeTransform

from pyro_vae.conditionals import FlowDistribution
from pyro_vae.pair.bijections import base_constraint, is_real
from pyro_vae.pair.site_masks import base_distribution

__all__ = ["UnconstrainedSite", "fixed_support"]


def fixed_support(name: str, fns: list[Any]) -> Any:
    """The support of a latent site, the same for all data and in all runs.

    Args:
        name: The site, for errors.
        fns: Its distribution in several runs of the model.

    Raises:
        ValueError: If the support has no bijection from real vectors, or if its bounds differ between data or runs.
    """
    fn = fns[0]
    if isinstance(base_distribution(fn), dist.VonMises):  # one turn of the circle
        return _independent(constraints.interval(-math.pi, math.pi), len(fn.event_shape))
    try:
        biject_to(fn.support)
    except (NotImplementedError, AttributeError):
        raise ValueError(
            f"no family of this library covers the support {_name_of(fn.support)} of the latent site {name!r} "
            f"({type(base_distribution(fn)).__name__}): write this site's guide by hand, or parametrize the model by a "
            "latent whose support has a bijection (torch.distributions.biject_to)"
        ) from None
    core = base_constraint(fn.support)
    bounds = {key: _common_bound(name, key, fns) for key in ("lower_bound", "upper_bound") if hasattr(core, key)}
    if not bounds:
        return fn.support
    return _independent(type(core)(*bounds.values()), fn.support.event_dim - core.event_dim)


def _common_bound(name: str, key: str, fns: list[Any]) -> Any:
    """A bound of a site's support, if it is the same for all data and in all runs."""
    found = []
    for fn in fns:
        bound = torch.as_tensor(getattr(base_constraint(fn.support), key))
        found += list(bound.expand(fn.batch_shape + fn.event_shape).reshape(-1, *fn.event_shape).unbind())
    if any(not torch.equal(each, found[0]) for each in found):
        raise ValueError(
            f"the support of the latent site {name!r} ({type(base_distribution(fns[0])).__name__}) depends on the data "
            f"or on other latents (its {key.replace('_', ' ')} varies): draw a latent of fixed support, such as "
            "Uniform(0, 1), and scale it in the model"
        )
    bound = found[0]
    first = bound.flatten()[0]
    return float(first) if bool((bound == first).all()) else bound


def _independent(constraint: Any, depth: int) -> Any:
    return constraints.independent(constraint, depth) if depth else constraint


def _name_of(support: Any) -> str:
    """The kind of a support in words: `_CorrCholesky` -> "corr cholesky"."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(support).__name__.strip("_")).replace("_", " ").lower()


class UnconstrainedSite(nn.Module):
    """A site's values as the image of real vectors: `value = bijection(offset + scale u)`, u of shape `(U,)`.

    Args:
        support: The support of the site's distribution.
        event_shape: Shape of one value.
        draws: Values of the site, `(S, *event_shape)`, whose median and spread become `offset` and `scale`, so that
            u = 0 is typical.
    """

    offset: Tensor
    scale: Tensor

    def __init__(self, support: Any, event_shape: torch.Size, draws: Tensor) -> None:
        super().__init__()
        self.bijection = biject_to(support)
        self.event_shape = event_shape
        self.shape = self.bijection.inverse_shape(event_shape)
        self.size = self.shape.numel()
        self.real = is_real(support)
        self.label = "real" if self.real else _label(support)
        u = draws if self.real else self.bijection.inv(draws)
        low, middle, high = (
            torch.nanquantile(u.reshape(len(u), -1).clamp(-1e6, 1e6), q, dim=0) for q in (0.16, 0.5, 0.84)
        )
        spread = (high - low) / 2
        self.register_buffer("offset", middle)
        self.register_buffer("scale", torch.where(spread > 0, spread, 1.0))

    def unconstrained(self, value: Tensor) -> Tensor:
        """u of a value: `(*, *event_shape)` -> `(*, U)`. Free of clamping where the value came from a bounded u."""
        lead = value.shape[: value.dim() - len(self.event_shape)]
        u = value if self.real else self.bijection.inv(value)
        return (u.reshape(*lead, self.size) - self.offset) / self.scale

    def forward(self, q: Any) -> Any:
        """The distribution of the value, for a distribution `q` of u."""
        if self.real and (moved := self._affine(q)) is not None:
            return moved
        steps: list[Any] = [AffineTransform(self.offset, self.scale, event_dim=1)]
        if self.shape != (self.size,):
            steps.append(ReshapeTransform(torch.Size([self.size]), self.shape))
        return FlowDistribution(q, steps if self.real else [*steps, self.bijection])

    def _affine(self, q: Any) -> Any:
        """The same for a normal distribution over a real site: again a normal, so that its KL keeps a closed form."""
        if isinstance(q, dist.Independent) and isinstance(q.base_dist, dist.Normal):
            shape = (*q.batch_shape, *self.shape)
            loc, scale = self.offset + self.scale * q.base_dist.loc, self.scale * q.base_dist.scale
            return dist.Normal(loc.reshape(shape), scale.reshape(shape)).to_event(len(self.shape))
        if self.shape != (self.size,):
            return None
        if isinstance(q, dist.MultivariateNormal):
            loc = self.offset + self.scale * q.loc
            return dist.MultivariateNormal(loc, scale_tril=self.scale.unsqueeze(-1) * q.scale_tril)
        if isinstance(q, dist.LowRankMultivariateNormal):
            loc = self.offset + self.scale * q.loc
            factor = self.scale.unsqueeze(-1) * q.cov_factor
            return dist.LowRankMultivariateNormal(loc, factor, self.scale.square() * q.cov_diag)
        return None

    def extra_repr(self) -> str:
        return f"{self.label}, event_shape={tuple(self.event_shape)}"


def _label(support: Any) -> str:
    """A support in words: "positive", "interval (0, 1)", "simplex"."""
    support = base_constraint(support)
    lower, upper = getattr(support, "lower_bound", None), getattr(support, "upper_bound", None)
    if isinstance(lower, int | float) and isinstance(upper, int | float):
        return f"interval ({lower:g}, {upper:g})"
    if isinstance(lower, int | float):
        return "positive" if lower == 0 else f"above {lower:g}"
    return _name_of(support)
