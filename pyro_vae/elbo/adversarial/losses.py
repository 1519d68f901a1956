"""Losses of a critic and of the networks that it judges, and penalties on its gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import relu, softplus

__all__ = ["GAMES", "Game", "gradient_penalty", "r1_penalty"]

Elementwise = Callable[[Tensor], Tensor]


class Game(NamedTuple):
    """Elementwise losses of a logit: the critic's for real and for fake input, and those that raise or lower it."""

    real: Elementwise
    fake: Elementwise
    up: Elementwise
    down: Elementwise


def _same(logit: Tensor) -> Tensor:
    return logit


def _negative(logit: Tensor) -> Tensor:
    return -logit


GAMES: dict[str, Game] = {
    # Goodfellow et al. 2014, arXiv 1406.2661: -log D for fake input that should look real
    "non_saturating": Game(lambda a: softplus(-a), softplus, lambda a: softplus(-a), softplus),
    # the critic as above; what it judges minimizes the logit itself, an estimate of the log-ratio of densities
    "log_ratio": Game(lambda a: softplus(-a), softplus, _negative, _same),
    # Mao et al. 2017, arXiv 1611.04076
    "least_squares": Game(
        lambda a: 0.5 * (a - 1).square(),
        lambda a: 0.5 * a.square(),
        lambda a: 0.5 * (a - 1).square(),
        lambda a: 0.5 * a.square(),
    ),
    # Miyato et al. 2018, arXiv 1802.05957, section 4
    "hinge": Game(lambda a: relu(1 - a), lambda a: relu(1 + a), _negative, _same),
    # Arjovsky et al. 2017, arXiv 1701.07875; needs a gradient penalty
    "wasserstein": Game(_negative, _same, _negative, _same),
}


def gradient_penalty(critic: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor) -> Tensor:
    """Mean of `(|grad D| - 1)**2` at random points between real and fake data.

    Gulrajani et al. 2017, arXiv 1704.00028.

    >>> double = lambda x: 2 * x.sum(-1)
    >>> float(gradient_penalty(double, torch.zeros(4, 1), torch.ones(4, 1)))
    1.0
    """
    fraction = torch.rand(len(real), *(1,) * (real.dim() - 1), dtype=real.dtype, device=real.device)
    slope = _slope(critic, torch.lerp(real.detach(), fake.detach(), fraction))
    return (slope.norm(dim=1) - 1).square().mean()


def r1_penalty(critic: Callable[[Tensor], Tensor], real: Tensor) -> Tensor:
    """Half the mean of `|grad D|**2` at the data.

    Mescheder et al. 2018, arXiv 1801.04406.

    >>> float(r1_penalty(lambda x: 2 * x.sum(-1), torch.zeros(4, 1)))
    2.0
    """
    return 0.5 * _slope(critic, real.detach().clone()).square().sum(1).mean()


def _slope(critic: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The gradient of the critic at each row, `(N, D)`."""
    with torch.enable_grad():
        x.requires_grad_()
        (slope,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
    return slope.flatten(1)
