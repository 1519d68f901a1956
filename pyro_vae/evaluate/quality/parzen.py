"""The Parzen-window estimate of a log-likelihood, for comparison with papers that report it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_vae.support.arguments import checked

__all__ = ["parzen_log_likelihood"]


@checked
def parzen_log_likelihood(
    samples: Tensor, valid: Tensor, test: Tensor, scales: Sequence[float] | None = None
) -> tuple[float, float, float]:
    """Mean log-density of test data under Gaussians around samples, its standard error over the data, and the scale.

    This is the protocol of Goodfellow et al. 2014 and Makhzani et al. 2015 (with 10,000 samples): the scale is the one
    with the highest mean on the validation data. Do not choose a model by this number: in many dimensions it is far
    from the log-likelihood at any feasible number of samples, and models that memorize, or k-means centers, beat the
    data's own samples (Theis et al. 2016, arXiv 1511.01844, section 3.2). For a pair with a likelihood,
    `pv.log_marginal` estimates the true one.

    Args:
        samples, valid, test: `(N, ...)` of each kind.
        scales: Candidate scales; by default 20 from 0.05 to 1, evenly spaced in the logarithm.

    >>> zero = torch.zeros(1, 1)
    >>> mean, _, _ = parzen_log_likelihood(zero, zero, zero + 2.0, scales=[1.0])
    >>> round(mean, 4)  # log N(2; 0, 1)
    -2.9189
    """
    scales = torch.logspace(math.log10(0.05), 0, 20).tolist() if scales is None else list(scales)
    centers, validation, x = (v.flatten(1).double() for v in (samples, valid, test))
    best = max(scales, key=lambda scale: float(_log_density(centers, validation, scale).mean()))
    found = _log_density(centers, x, best)
    error = float(found.std()) / math.sqrt(len(found)) if len(found) > 1 else math.nan
    return float(found.mean()), error, best


def _log_density(centers: Tensor, x: Tensor, scale: float) -> Tensor:
    dims = x.shape[1]
    parts = [
        torch.logsumexp(-0.5 * (torch.cdist(part, centers) / scale).square(), 1) - math.log(len(centers))
        for part in x.split(500)
    ]
    return torch.cat(parts) - dims * (math.log(scale) + 0.5 * math.log(2 * math.pi))
