"""A discrete pair, its draws and gradients."""

from __future__ import annotations

from typing import Any

import pyro
import torch
from torch import Tensor, nn

X = torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]], dtype=torch.float64)


def flat_gradient(value: Tensor, pair: nn.Module) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, list(pair.parameters()))])


def draws(fn: Any) -> Any:
    def program(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", fn)

    return program
