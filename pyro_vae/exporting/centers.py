"""One value that stands for a distribution: its mean, its most probable value, or what a flow makes of a mean."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import TransformedDistribution

from pyro_vae.pair.site_masks import base_distribution

__all__ = ["center", "expectation", "probabilities"]

CLASSES = (dist.Bernoulli, dist.Categorical, dist.OneHotCategorical)


def center(name: str, fn: Any) -> tuple[Tensor, str]:
    """The value of a latent that goes on to whatever depends on it, and what it is, in words.

    Raises:
        ValueError: If there is none.
    """
    base = base_distribution(fn)
    if isinstance(base, CLASSES):
        return _most_probable(base).expand(fn.batch_shape + fn.event_shape), "most probable value"
    if base.support.is_discrete:
        raise ValueError(
            f"the latent site {name!r} is a {type(base).__name__}, a discrete distribution whose most probable value "
            "has no formula here: only Bernoulli, Categorical and OneHotCategorical latents are exported"
        )
    if (mean := _mean(fn)) is not None:
        return mean, "mean"
    if (image := _image(base)) is not None:
        return image, "image of the mean of the base distribution"
    raise ValueError(
        f"the latent site {name!r} has a distribution without a formula of its mean, {type(base).__name__}, so that no "
        "single value stands for it: give this latent a family with a mean, or one that is made from such a family by "
        "transforms"
    )


def expectation(name: str, fn: Any) -> tuple[Tensor, str]:
    """The mean of an observed site; for classes, whose mean says nothing, their probabilities.

    Raises:
        ValueError: If it has no mean.
    """
    base = base_distribution(fn)
    if isinstance(base, dist.Categorical):
        return base.probs, "probabilities"
    found = _mean(fn)
    if found is None:
        raise ValueError(
            f"the observed site {name!r} has a distribution without a formula of its mean, "
            f"{type(getattr(base, 'base_dist', base)).__name__}: only='encoder' writes the encoder alone"
        )
    return found, "mean"


def probabilities(fn: Any) -> Tensor | None:
    """The probabilities of a distribution over classes, with the classes last unless there are two; else None."""
    base = base_distribution(fn)
    if not isinstance(base, CLASSES):
        return None
    found: Tensor = base.probs
    return found


def _image(fn: Any) -> Tensor | None:
    """What the transforms of a distribution make of the mean of its base."""
    fn = base_distribution(fn)
    if not isinstance(fn, TransformedDistribution):
        return None
    value = _mean(fn.base_dist)
    value = _image(fn.base_dist) if value is None else value
    for transform in fn.transforms if value is not None else ():
        value = transform(value)
    return value


def _mean(fn: Any) -> Tensor | None:
    try:
        mean: Tensor = fn.mean
    except (NotImplementedError, AttributeError):
        return None
    return mean


def _most_probable(base: Any) -> Tensor:
    if isinstance(base, dist.Bernoulli):
        return (base.logits > 0).to(base.logits.dtype)
    best = base.logits.argmax(-1)
    if isinstance(base, dist.Categorical):
        return best
    return (best.unsqueeze(-1) == torch.arange(base.logits.shape[-1], device=best.device)).to(base.logits.dtype)
