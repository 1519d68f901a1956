"""Quality of samples, by features and by images."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pyro_vae.evaluate.deprecated import accepts_earlier_form
from pyro_vae.evaluate.quality.distances import class_score, frechet_distance, kernel_distance, manifold_scores
from pyro_vae.evaluate.quality.features import in_batches
from pyro_vae.evaluate.quality.images import pairwise_ms_ssim, sharpness
from pyro_vae.evaluate.quality.result import SampleQuality, SampleQualityMetrics
from pyro_vae.support.arguments import checked
from pyro_vae.support.random import seed_or_draw

__all__ = ["sample_quality"]


@accepts_earlier_form
@checked
def sample_quality(
    data: Tensor, samples: Tensor, features: Any = None, *, neighbors: int = 5, seed: int | None = None
) -> SampleQuality:
    """Compare samples of any origin with data that the model has not seen.

    The data are split in halves. The samples are compared with the first half, and so is the second half, which shows
    the values of perfect samples. To compare two models, use the same data, features and numbers.

    Args:
        data: Unseen images `(N, C, H, W)` with values in [0, 1].
        samples: Generated images; only as many are used as each half has.
        features: A network that maps images to features `(N, F)` by its method `features` if it has one, else by a
            call: `train_features(...)`, or your own. With the method, the call gives the logits of a classifier.
            Default: the pixels.
        neighbors: k of precision, recall, density and coverage.
        seed: Seed of the pairs and blocks that are compared. None draws one from torch's generator.

    Raises:
        ValueError: For images of different shapes, too few of them, or values outside [0, 1].
    """
    for what, x in (("data", data), ("samples", samples)):
        if x.dim() != 4 or x.shape[1:] != data.shape[1:]:
            raise ValueError(f"{what} of shape {tuple(x.shape)} came, images (N, C, H, W) of one shape were expected")
        if not bool(((x >= -1e-4) & (x <= 1 + 1e-4)).all()):
            raise ValueError(f"{what} have values outside [0, 1], from {float(x.min()):.3g} to {float(x.max()):.3g}")
    size = min(len(data) // 2, len(samples))
    if size <= neighbors:
        raise ValueError(
            f"{len(data)} data and {len(samples)} samples are too few: {2 * neighbors + 2} and {neighbors + 1} needed"
        )
    reference, unseen, made = data[:size], data[size : 2 * size], samples[:size].to(data)
    base_seed = seed_or_draw(seed)
    found = [_metrics(reference, x, features, neighbors, base_seed) for x in (made, unseen)]
    width = _features(features, reference[:2]).shape[1] if features is not None else 0
    return SampleQuality(found[0], found[1], size, size, width, made[:64].clone())


def _features(net: Any, x: Tensor) -> Tensor:
    if net is None:
        return x.flatten(1)
    return in_batches(net, "features" if hasattr(net, "features") else "__call__", x)


def _metrics(reference: Tensor, x: Tensor, net: Any, neighbors: int, seed: int) -> SampleQualityMetrics:
    ours, theirs = _features(net, x), _features(net, reference)
    kernel, error = kernel_distance(theirs, ours, seed=seed)
    score = math.nan
    if hasattr(net, "features"):
        score = class_score(in_batches(net, "__call__", x).log_softmax(1))
    with torch.no_grad():
        return SampleQualityMetrics(
            frechet=frechet_distance(theirs, ours),
            kernel=kernel,
            kernel_error=error,
            **manifold_scores(theirs, ours, neighbors),
            class_score=score,
            ms_ssim=pairwise_ms_ssim(x, seed=seed),
            sharpness=float(sharpness(x).double().mean()),
        )
