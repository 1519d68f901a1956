"""Training of the examples with critics: less momentum than usual, and a rate that falls linearly.

Not an example itself: the examples beside it import it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import torch
from torch import Tensor

import pyro_vae as pv


def adam(lr: float, betas: tuple[float, float] = (0.5, 0.999)) -> Any:
    """Adam for adversarial training, which oscillates with the usual momentum."""
    return partial(torch.optim.Adam, lr=lr, betas=betas, fused=True)


def fit_objective(
    vae: Any, x: Tensor, name: str, settings: dict[str, Any], critic: Any, options: argparse.Namespace, **training: Any
) -> tuple[pv.History, Any]:
    """Train a pair by the objective called `name`, with a critic unless it is an ELBO; history and objective."""
    adversarial = name != "mean_field"
    objective = pv.elbo.make(name, **settings, **({"critic": critic} if adversarial else {}))
    history = pv.fit(
        vae.model,
        vae.guide,
        x,
        elbo=objective,
        steps=options.steps,
        batch_size=options.batch_size,
        lr=options.lr,
        lr_schedule="linear",
        optim=adam(options.lr) if adversarial else None,
        seed=options.seed,
        **training,
    )
    return history, objective


def train_on_draws(
    pair: Any, objective: Any, draw: Callable[[int], Tensor], options: argparse.Namespace, *, compile: bool
) -> None:
    """Train on new draws in each step; the rate is constant for the first half, then falls linearly to zero."""
    svi = pv.SVI(pair.model, pair.guide, adam(options.lr, (0.5, 0.99)), objective, compile=compile)
    with pyro.validation_enabled(False):
        for step in range(options.steps):
            svi.gradients((draw(options.batch_size),), scale=1 / options.batch_size)
            for group in (group for optimizer in svi.optimizers for group in optimizer.param_groups):
                group["lr"] = options.lr * min(1.0, 2 * (1 - step / options.steps))
            svi.update()


def health(objective: Any) -> dict[str, float]:
    """The health of the objective's game, in two digits; empty for an ELBO."""
    return {key: round(value, 2) for key, value in objective.health().items()} if hasattr(objective, "health") else {}
