"""Running statistics of importance weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_vae.evaluate.marginal.khat import pareto_khat, tail_size

__all__ = ["Weights"]


class Weights:
    """Running sums over the importance weights of `n` data, and the largest weights.

    Args:
        n: Number of data.
        max_samples: Maximum number of samples per datum; it sets how many of the largest weights are stored.

    Attributes:
        count: Weights so far, `(n,)`.
        log_sum, log_sum_sq: log sum w and log sum w^2, `(n,)`, float64.
        largest: The largest log-weights in descending order, `(M + 1, n)`.
        blocks: For each j, the sum over blocks of 2^j samples of the log of the block's weight sum, `(n,)`, and the
            number of these blocks, `(n,)`.
    """

    def __init__(self, n: int, max_samples: int, device: torch.device | None = None) -> None:
        self.max_samples = max_samples
        self.count = torch.zeros(n, dtype=torch.long, device=device)
        self.log_sum = torch.full((n,), -math.inf, dtype=torch.float64, device=device)
        self.log_sum_sq = self.log_sum.clone()
        self.largest = self.log_sum.expand(tail_size(max_samples) + 1, n).clone()
        self.blocks: list[tuple[Tensor, Tensor]] = []
        self._unpaired: list[Tensor] = []  # per level the unpaired block, (1, n), or none, (0, n)

    def add(self, log_w: Tensor) -> None:
        """Add log-weights, `(K, n)`."""
        log_w = log_w.double()
        self.count += len(log_w)
        self.log_sum = torch.logaddexp(self.log_sum, log_w.logsumexp(0))
        self.log_sum_sq = torch.logaddexp(self.log_sum_sq, (2 * log_w).logsumexp(0))
        self._keep_largest(log_w)
        level = 0
        while len(log_w):  # log-sums of blocks of 2^level samples
            if level == len(self.blocks):
                self.blocks.append((torch.zeros_like(self.log_sum), torch.zeros_like(self.count)))
                self._unpaired.append(log_w[:0])
            total, number = self.blocks[level]
            self.blocks[level] = (total + log_w.sum(0), number + len(log_w))
            log_w = torch.cat([self._unpaired[level], log_w])
            even = len(log_w) - len(log_w) % 2
            self._unpaired[level] = log_w[even:]
            log_w = torch.logaddexp(log_w[:even:2], log_w[1:even:2])
            level += 1

    def merge(self, rows: Tensor, more: Weights) -> None:
        """Add the weights of some of the data, at the indices `rows`."""
        self.count[rows] += more.count
        self.log_sum[rows] = torch.logaddexp(self.log_sum[rows], more.log_sum)
        self.log_sum_sq[rows] = torch.logaddexp(self.log_sum_sq[rows], more.log_sum_sq)
        both = torch.cat([self.largest[:, rows], more.largest])
        self.largest[:, rows] = both.topk(len(self.largest), dim=0).values
        for level, (total, number) in enumerate(more.blocks):
            if level == len(self.blocks):
                self.blocks.append((torch.zeros_like(self.log_sum), torch.zeros_like(self.count)))
            self.blocks[level][0][rows] += total
            self.blocks[level][1][rows] += number

    def _keep_largest(self, log_w: Tensor) -> None:
        size = len(self.largest)
        if len(log_w) > size:  # the second search is fast with few candidates
            log_w = log_w.topk(size, dim=0).values
        self.largest = torch.cat([self.largest, log_w]).topk(size, dim=0).values

    @property
    def log_mean(self) -> Tensor:
        """Log of the mean weight, `(n,)`."""
        return self.log_sum - self.count.double().log()

    @property
    def inverse_ess(self) -> Tensor:
        """sum w^2 / (sum w)^2, `(n,)`."""
        inverse = (self.log_sum_sq - 2 * self.log_sum).exp()
        # all weights are zero: the estimate is -inf, and its error is unknown
        return torch.where(self.log_sum == -math.inf, math.inf, inverse)

    @property
    def std_error(self) -> Tensor:
        """Standard error of `log_mean` by the delta method, `(n,)`; infinite for a single sample."""
        k = self.count.double()
        return ((self.inverse_ess - 1 / k).clamp(min=0) * k / (k - 1)).sqrt().where(k > 1, math.inf)

    def khat(self, rounding: float) -> Tensor:
        """Pareto k-hat of each datum, `(n,)`."""
        columns = self.largest.T.cpu()
        found = [pareto_khat(c, int(k), rounding) for c, k in zip(columns, self.count.tolist(), strict=True)]
        return torch.tensor(found, dtype=torch.float64, device=self.log_sum.device)

    def bounds(self) -> Tensor:
        """The bounds L_1, L_2, L_4, ... from disjoint blocks of the weights, `(J, n)`; NaN where there are too few."""
        levels = [total / number - j * math.log(2) for j, (total, number) in enumerate(self.blocks)]
        return torch.stack(levels)
