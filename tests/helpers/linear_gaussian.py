"""A linear-Gaussian pair with its exact ELBO and gradient."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

LAYOUTS: dict[str, dict[str, Any]] = {
    "one particle": {"num_particles": 1},
    "vectorised": {"num_particles": 3, "vectorize_particles": True},
    "looped": {"num_particles": 3, "vectorize_particles": False},
}


def check_mean(draws: Tensor, exact: Tensor, deviations: float = 4.5) -> None:
    """`exact` lies within some standard errors of the mean over the first dimension of `draws`."""
    error = draws.std(0) / math.sqrt(len(draws))
    z_scores = (draws.mean(0) - exact) / error.clamp_min(1e-9)
    assert float(z_scores.abs().max()) < deviations, z_scores


def gradient(elbo: Any, pair: Any, *args: Any) -> Tensor:
    """One draw of the loss and its gradient in all parameters of the pair, as one vector."""
    loss = elbo.differentiable_loss(pair.model, pair.guide, *args)
    grads = torch.autograd.grad(loss, list(pair.parameters()))
    return torch.cat([loss.detach().reshape(1), *(g.reshape(-1) for g in grads)])


def exact_gradient(loss: Tensor, pair: nn.Module) -> Tensor:
    grads = torch.autograd.grad(loss, list(pair.parameters()))
    return torch.cat([loss.detach().reshape(1), *(g.reshape(-1) for g in grads)])
