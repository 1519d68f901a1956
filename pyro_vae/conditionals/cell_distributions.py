"""Distributions of the values in a row of a table: levels by their number, and columns of several kinds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

__all__ = ["Cells", "LeveledCategorical"]


class LeveledCategorical(dist.TorchDistribution):
    """A categorical distribution over the numbers 0 to L - 1 as floats, with a mean that is one of the numbers' values.

    Args:
        logits: unnormalized log-probabilities `(*, L)`, -inf of levels that do not exist; the batch shape is `*`.
    """

    arg_constraints = {"logits": constraints.independent(constraints.interval(-torch.inf, torch.inf), 1)}  # noqa: RUF012

    def __init__(self, logits: Tensor, validate_args: bool | None = None) -> None:
        self.logits = logits.log_softmax(-1)
        super().__init__(logits.shape[:-1], validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> Any:
        return constraints.integer_interval(0, (self.logits > -torch.inf).sum(-1) - 1)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> LeveledCategorical:
        new = self._get_checked_instance(LeveledCategorical, _instance)
        new.logits = self.logits.expand(*batch_shape, -1)
        super(LeveledCategorical, new).__init__(torch.Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    def _moment(self, power: int) -> Tensor:
        levels = torch.arange(self.logits.shape[-1], dtype=self.logits.dtype, device=self.logits.device)
        return (self.logits.exp() * levels**power).sum(-1)

    @property
    def mean(self) -> Tensor:
        return self._moment(1)

    @property
    def variance(self) -> Tensor:
        return self._moment(2) - self.mean.square()

    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        level = dist.Categorical(logits=self.logits, validate_args=False).sample(torch.Size(sample_shape))
        return level.to(self.logits.dtype)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        level, logits = torch.broadcast_tensors(value.long().unsqueeze(-1), self.logits)
        return logits.gather(-1, level[..., :1]).squeeze(-1)


class CellSupport(constraints.Constraint):
    """What each column's own support allows."""

    is_discrete = False

    def __init__(self, places: Sequence[Sequence[int]], supports: Sequence[Any]) -> None:
        self.places, self.supports = places, supports
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        found = torch.ones_like(value, dtype=torch.bool)
        for at, support in zip(self.places, self.supports, strict=True):
            found[..., list(at)] = support.check(value[..., list(at)])
        return found

    def __repr__(self) -> str:
        return f"for each column what its type allows ({len(self.supports)} kinds of columns)"


class Cells(dist.TorchDistribution):
    """Independent values of C columns, groups of which have a distribution each: batch shape `(*, C)`.

    Args:
        places: the columns of each group; together they are 0 to C - 1.
        parts: the distributions of the groups, of batch shapes `(*, n)` with equal leading dimensions.
    """

    arg_constraints = {}  # noqa: RUF012

    def __init__(
        self, places: Sequence[Sequence[int]], parts: Sequence[Any], validate_args: bool | None = None
    ) -> None:
        self.places, self.parts = places, list(parts)
        order = [j for at in places for j in at]
        self._back = sorted(range(len(order)), key=order.__getitem__)
        lead = torch.broadcast_shapes(*(part.batch_shape[:-1] for part in parts))
        super().__init__(torch.Size((*lead, len(order))), validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self) -> CellSupport:
        return CellSupport(self.places, [part.support for part in self.parts])

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Cells:
        *lead, _ = batch_shape
        parts = [part.expand((*lead, len(at))) for at, part in zip(self.places, self.parts, strict=True)]
        return Cells(self.places, parts, validate_args=False)

    def _joined(self, values: Sequence[Tensor]) -> Tensor:
        lead = torch.broadcast_shapes(*(value.shape[:-1] for value in values))
        return torch.cat([value.expand(*lead, -1) for value in values], -1)[..., self._back]

    @property
    def mean(self) -> Tensor:
        return self._joined([part.mean for part in self.parts])

    @property
    def variance(self) -> Tensor:
        return self._joined([part.variance for part in self.parts])

    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        with torch.no_grad():
            return self._joined([part.sample(torch.Size(sample_shape)) for part in self.parts])

    def log_prob(self, value: Tensor) -> Tensor:
        return self._joined([p.log_prob(value[..., list(at)]) for at, p in zip(self.places, self.parts, strict=True)])
