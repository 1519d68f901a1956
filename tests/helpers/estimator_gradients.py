"""Mean gradients of an estimator against exact ones."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

REPEATS, COPIES = 60, 60


def gradients(value: Tensor, pair: nn.Module) -> dict[str, Tensor]:
    names, params = zip(*pair.named_parameters(), strict=True)
    grads = torch.autograd.grad(value, params, allow_unused=True)
    return {n: torch.zeros_like(p) if g is None else g for n, p, g in zip(names, params, grads, strict=True)}


def check(elbo: Any, pair: Any, x: Tensor, value: Tensor, exact: dict[str, Tensor]) -> None:
    """The estimator's mean value and gradient are within 4.5 standard errors of the exact ones."""
    copies = x.repeat(COPIES, *[1] * (x.dim() - 1))
    draws = []
    for _ in range(REPEATS):
        loss = elbo.differentiable_loss(pair.model, pair.guide, copies) / COPIES
        draws.append(torch.cat([loss.detach().reshape(1), *(g.flatten() for g in gradients(loss, pair).values())]))
    stack = torch.stack(draws)
    truth = -torch.cat([value.detach().reshape(1), *(exact[n].flatten() for n, _ in pair.named_parameters())])
    error = stack.std(0) / math.sqrt(REPEATS)
    z_scores = (stack.mean(0) - truth) / error.clamp_min(1e-9)
    assert float(z_scores.abs().max()) < 4.5, z_scores
