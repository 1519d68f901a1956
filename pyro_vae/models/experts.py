"""Products of Gaussian experts, and mixtures of such products, over any subset of the experts."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

__all__ = ["NormalMixture", "normal_product", "subsets"]

IMPOSSIBLE = -1e4  # a log-probability: its exponential is 0, and unlike that of -inf, 0 times it is 0


def subsets(num_experts: int, combine: str) -> Tensor:
    """Which experts each component of the posterior multiplies, `(S, M)` of booleans.

    "poe": all. "moe": none, then each alone. "mopoe": none, then every other subset.
    """
    if combine == "poe":
        return torch.ones(1, num_experts, dtype=torch.bool)
    if combine == "moe":
        return torch.cat([torch.zeros(1, num_experts), torch.eye(num_experts)]).bool()
    return torch.tensor(list(itertools.product([False, True], repeat=num_experts)))


def normal_product(loc: Tensor, scale: Tensor, observed: Tensor, members: Tensor, prior: Tensor) -> tuple[Tensor, ...]:
    """Products of the observed experts of each subset and of the prior: their log-weights, means and scales.

    A subset counts if all of its experts are observed and there is one; where nothing is observed, the empty one does.
    All subsets that count have the same weight.

    Args:
        loc, scale: Of the experts, `(N, M, L)`.
        observed: `(N, M)` of booleans.
        members: `(S, M)` of booleans.
        prior: `(S,)`, the precision of the prior in each product, 1 or 0.

    Returns:
        Log-weights `(N, S)`, means and scales `(N, S, L)`.
    """
    precision = scale.square().reciprocal().masked_fill(~observed.unsqueeze(-1), 0.0)  # (N, M, L)
    belongs = members.to(loc)
    whole = (observed.unsqueeze(1) | ~members).all(-1) & members.any(-1)  # (N, S)
    counts = whole | (~observed.any(-1, keepdim=True) & ~members.any(-1)) | (len(members) == 1)
    total = torch.einsum("sm,nml->nsl", belongs, precision) + prior.to(loc).unsqueeze(-1)
    # a subset that does not count may hold no expert at all: it is a standard normal without weight
    total = torch.where(counts.unsqueeze(-1), total, 1.0)
    mean = torch.einsum("sm,nml->nsl", belongs, precision * loc) / total
    log_weight = torch.where(counts, 0.0, IMPOSSIBLE).to(loc).log_softmax(-1)
    return log_weight, mean, total.rsqrt()


class NormalMixture(dist.TorchDistribution):
    """A mixture of S diagonal normals over vectors of size L, with weights that depend on no parameter.

    A draw chooses a component and then moves with the component's mean and scale. Its gradient is the pathwise one,
    exactly so since the weights are constants. With `stratified`, the draws along the leading dimensions of a datum
    take the components in equal shares: each draw alone has the same distribution, but they are not independent.

    Args:
        log_weight: `(*, S)`, normalized.
        loc, scale: `(*, S, L)`.
        stratified: Whether to draw in equal shares.
    """

    arg_constraints = {  # noqa: RUF012
        "log_weight": constraints.real_vector,
        "loc": constraints.independent(constraints.real, 2),
        "scale": constraints.independent(constraints.positive, 2),
    }
    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self, log_weight: Tensor, loc: Tensor, scale: Tensor, stratified: bool = False, validate_args: Any = None
    ) -> None:
        self.log_weight, self.loc, self.scale, self.stratified = log_weight, loc, scale, stratified
        super().__init__(loc.shape[:-2], loc.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> NormalMixture:
        shape = torch.Size(batch_shape)
        log_weight, loc, scale = (part.expand(shape + part.shape[len(self.batch_shape) :]) for part in self._parts())
        return NormalMixture(log_weight, loc, scale, self.stratified, validate_args=False)

    def _parts(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.log_weight, self.loc, self.scale

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        each = dist.Normal(self.loc, self.scale, validate_args=False).log_prob(value.unsqueeze(-2)).sum(-1)
        return (each + self.log_weight).logsumexp(-1)

    def rsample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        shape = torch.Size(sample_shape) + self.batch_shape
        log_weight, loc, scale = (part.expand(torch.Size(sample_shape) + part.shape) for part in self._parts())
        chosen = self._components(shape, log_weight).unsqueeze(-1).unsqueeze(-1)  # (*, 1, 1)
        index = chosen.expand(*shape, 1, loc.shape[-1])
        loc, scale = loc.gather(-2, index).squeeze(-2), scale.gather(-2, index).squeeze(-2)
        return loc + scale * torch.randn_like(loc)

    def _components(self, shape: torch.Size, log_weight: Tensor) -> Tensor:
        """The component of each draw, `shape`: by the inverse of the distribution function of the weights."""
        uniform = torch.rand(shape, dtype=log_weight.dtype, device=log_weight.device)
        draws = shape[:-1].numel()  # those of one datum
        if self.stratified and shape and draws > 1:
            steps = torch.arange(draws, device=uniform.device).to(uniform).reshape(*shape[:-1], 1) / draws
            first = uniform.reshape(draws, -1)[0]
            uniform = (first + steps) % 1.0  # (*, N), each uniform, and together one in each of as many equal parts
        cumulative = log_weight.exp().cumsum(-1)
        # rounding may leave the last sum below a draw: clamp, to a component that has a weight
        beyond = (uniform.unsqueeze(-1) >= cumulative / cumulative[..., -1:]).sum(-1)
        return beyond.clamp_max(log_weight.shape[-1] - 1)

    @property
    def mean(self) -> Tensor:
        return (self.log_weight.exp().unsqueeze(-1) * self.loc).sum(-2)

    @property
    def variance(self) -> Tensor:
        spread = self.scale.square() + (self.loc - self.mean.unsqueeze(-2)).square()
        return (self.log_weight.exp().unsqueeze(-1) * spread).sum(-2)
