"""A posterior family with separate weights for each datum."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from pyro.nn.auto_reg_nn import MaskedLinear
from torch import Tensor, nn

from pyro_vae.conditionals import Conditional

__all__ = ["LinearPerDatum", "per_datum"]


class LinearPerDatum(nn.Module):
    """One linear map per datum: `(*, *B, in) -> (*, *B, out)` with weights `(*B, out, in)`, B the shape of the data.

    Args:
        layer: The initial layer of every datum; the mask of a `MaskedLinear` is copied.
        batch_shape: B.
    """

    mask: Tensor | None

    def __init__(self, layer: nn.Linear, batch_shape: Sequence[int]) -> None:
        super().__init__()
        self.weight = _copies(layer.weight, batch_shape)
        self.bias = None if layer.bias is None else _copies(layer.bias, batch_shape)
        self.register_buffer("mask", layer.mask.clone() if isinstance(layer, MaskedLinear) else None)

    def forward(self, h: Tensor) -> Tensor:
        weight = self.weight if self.mask is None else self.weight * self.mask
        batch = weight.shape[:-2]
        h = h.expand(torch.broadcast_shapes(h.shape[:-1], batch) + h.shape[-1:])
        lead = h.shape[: h.dim() - 1 - len(batch)]
        # a product per datum: (B, K, in) @ (B, in, out)
        rows = h.reshape(math.prod(lead), math.prod(batch), h.shape[-1]).transpose(0, 1)
        out = torch.bmm(rows, weight.flatten(0, -3).transpose(-1, -2)).transpose(0, 1)
        out = out.reshape(*lead, *batch, weight.shape[-2])  # (*, *B, out)
        return out if self.bias is None else out + self.bias


def per_datum(family: Conditional, batch_shape: int | Sequence[int]) -> Conditional:
    """A copy of a posterior family with separate linear layers for each datum, initialized from the family's.

    A family without weights, such as a normal, is only copied. No two data share a weight, so a sum of losses over data
    is minimized separately for each datum.

    Args:
        family: A module `(*, *param_shape) -> Distribution` whose weights are in linear layers.
        batch_shape: N, or the shape of several plates.

    Raises:
        ValueError: If the family has a parameter that is not of an `nn.Linear`.
    """
    shape = torch.Size([batch_shape] if isinstance(batch_shape, int) else batch_shape)
    result = copy.deepcopy(family)
    for module in list(result.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, LinearPerDatum(child, shape))
    inside = {id(p) for m in result.modules() if isinstance(m, LinearPerDatum) for p in m.parameters()}
    shared = [name for name, p in result.named_parameters() if id(p) not in inside]
    if shared:
        raise ValueError(
            f"{type(family).__name__} has the parameter {shared[0]!r}, which is not in a linear layer, so it cannot "
            "be copied for each datum: compute it from the features (param_shape), or use an nn.Linear"
        )
    return result


def _copies(value: Tensor, batch_shape: torch.Size | Sequence[int]) -> nn.Parameter:
    return nn.Parameter(value.detach().expand(*batch_shape, *value.shape).clone())
