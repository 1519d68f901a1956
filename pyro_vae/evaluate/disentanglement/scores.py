"""Disentanglement scores, from codes `(N, D)` and the generating factors `(N, F)` of the data."""

from __future__ import annotations

import math
import warnings
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["DCI", "beta_vae_score", "dci", "factor_vae_score", "mutual_information", "mutual_information_gap", "sap"]

BATCH = 64  # data that one vote or one example is made from
CONSTANT = 1e-6  # a spread below this share of a dimension's largest value is rounding


def varies(codes: Tensor) -> Tensor:
    """Which dimensions of the codes are more than a constant with rounding, `(D,)`, whatever their units."""
    return codes.std(0) > CONSTANT * codes.abs().amax(0)


class _Groups:
    """Draws of other data with the same value of a factor."""

    def __init__(self, factors: Tensor) -> None:
        self.n, self.count = factors.shape
        self.order = factors.argsort(0)
        self.start, self.size = torch.empty_like(factors), torch.empty_like(factors)
        for k in range(self.count):
            _, group, sizes = factors[:, k].unique(return_inverse=True, return_counts=True)
            starts = sizes.cumsum(0) - sizes
            self.start[:, k], self.size[:, k] = starts[group], sizes[group]

    def draw_same_value(self, index: Tensor, factor: Tensor, generator: torch.Generator) -> Tensor:
        """For each datum in `index`, a random one with the same value of `factor`; both have the same shape."""
        uniform = torch.rand(index.shape, generator=generator, dtype=torch.float64)
        offset = (uniform * self.size[index, factor]).long()
        return self.order[self.start[index, factor] + offset, factor]


def factor_vae_score(codes: Tensor, factors: Tensor, generator: torch.Generator, votes: int = 1000) -> float:
    """How well the code dimension with the least variance predicts which factor a batch shares.

    Each batch of data that share the value of one factor votes for the dimension with the smallest variance, relative
    to that over all data; constant dimensions are left out, so that units do not matter. The prediction
    for a dimension is the factor that most of its votes had, in a first half of the batches; the score is its accuracy
    in the second half.

    Reference: Kim and Mnih 2018, arXiv 1802.05983, section 4.
    """
    codes = codes[:, varies(codes)]
    groups, variance = _Groups(factors), codes.var(0)
    factor = torch.randint(groups.count, (2 * votes,), generator=generator)
    index = torch.randint(groups.n, (2 * votes,), generator=generator)
    same = groups.draw_same_value(index.repeat(BATCH, 1), factor.repeat(BATCH, 1), generator)  # (BATCH, votes)
    least = (codes[same].var(0) / variance).argmin(-1)
    table = torch.zeros(codes.shape[1], groups.count)
    table.index_put_((least[:votes], factor[:votes]), torch.ones(votes), accumulate=True)
    return float((table.argmax(1)[least[votes:]] == factor[votes:]).double().mean())


def beta_vae_score(codes: Tensor, factors: Tensor, generator: torch.Generator, examples: int = 1000) -> float:
    """The accuracy of a linear classifier that predicts which factor two data share from the difference of their codes.

    An example is the mean of |z_1 - z_2| over 64 pairs that share the value of one factor. The classifier is softmax
    regression on standardized differences; the score is its accuracy on the same number of other examples.

    Reference: Higgins et al. 2017, beta-VAE, section 3.
    """
    groups = _Groups(factors)
    factor = torch.randint(groups.count, (2 * examples,), generator=generator)
    one = torch.randint(groups.n, (BATCH, 2 * examples), generator=generator)
    two = groups.draw_same_value(one, factor.expand(BATCH, -1), generator)
    gap = (codes[one] - codes[two]).abs().mean(0).double()
    gap = (gap - gap[:examples].mean(0)) / gap[:examples].std(0).clamp_min(1e-12)
    inputs = torch.cat([gap, torch.ones_like(gap[:, :1])], 1)
    weight = torch.zeros(inputs.shape[1], groups.count, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(inputs[:examples] @ weight, factor[:examples])
        loss = loss + 1e-4 * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    predicted = (inputs[examples:] @ weight.detach()).argmax(1)
    return float((predicted == factor[examples:]).double().mean())


def mutual_information(codes: Tensor, factors: Tensor, bins: int = 20) -> tuple[Tensor, Tensor]:
    """I(z_j; v_k), `(D, F)`, with each z_j in `bins` bins of equal width, and the entropies H(v_k), `(F,)`; in nats.

    From N data the estimate is too high by
    about (bins - 1) (values - 1) / 2N.
    """
    low, high = codes.aminmax(dim=0)
    width = high - low
    level = ((codes - low) / width.clamp_min(1e-300) * bins).long().clamp(0, bins - 1)
    level[:, ~varies(codes)] = 0
    found = torch.zeros(codes.shape[1], factors.shape[1], dtype=torch.float64)
    entropies = torch.zeros(factors.shape[1], dtype=torch.float64)
    for k in range(factors.shape[1]):
        values, index = factors[:, k].unique(return_inverse=True)
        entropies[k] = _entropy(torch.bincount(index))
        for j in range(codes.shape[1]):
            both = torch.bincount(level[:, j] * len(values) + index)
            found[j, k] = _entropy(torch.bincount(level[:, j])) + entropies[k] - _entropy(both)
    return found.clamp_min(0), entropies


def _entropy(counts: Tensor) -> Tensor:
    p = counts[counts > 0].double() / counts.sum()
    return -(p * p.log()).sum()


def mutual_information_gap(information: Tensor, entropies: Tensor) -> float:
    """MIG: the margin of the most informative dimension over the next, relative to H; the mean over factors.

    Reference: Chen et al. 2018, arXiv 1802.04942, eq. 6.
    """
    return float((_margin(information) / entropies).mean())


def _margin(table: Tensor) -> Tensor:
    """The largest entry of each column minus the second largest."""
    if len(table) < 2:
        return table[0]
    first, second = table.topk(2, dim=0).values
    return first - second


def sap(codes: Tensor, factors: Tensor) -> float:
    """SAP: the margin of the best linear predictor of a factor over the next; the mean over factors.

    The score of a dimension is its squared correlation with the index of the factor.

    Reference: Kumar et al. 2018, arXiv 1711.00848, section 3.
    """
    z, v = (t.double() - t.double().mean(0) for t in (codes, factors))
    scale = z.norm(dim=0).clamp_min(1e-300).unsqueeze(1) * v.norm(dim=0)
    correlation = torch.where(varies(codes.double()).unsqueeze(1), z.T @ v / scale, 0.0)
    return float(_margin(correlation.square()).mean())


class DCI(NamedTuple):
    """The three scores, and the importance `(D, F)` of each dimension for each factor, columns summing to one."""

    disentanglement: float
    completeness: float
    informativeness: float
    importance: Tensor


def dci(codes: Tensor, factors: Tensor, seed: int = 0) -> DCI:
    """Whether a dimension predicts one factor (D), a factor needs one dimension (C), and how well it is predicted (I).

    A random forest predicts each factor from the codes of four fifths of the data. Its importances of the dimensions
    give D and C, its accuracy on the rest gives I. D and C are one minus an entropy relative to the uniform one.

    Reference: Eastwood and Williams 2018, a framework for the quantitative evaluation of disentangled representations.
    """
    from sklearn.ensemble import RandomForestClassifier

    cut = 4 * len(codes) // 5
    x = codes.double().cpu().numpy()
    columns, accuracy = [], []
    for k in range(factors.shape[1]):
        y = factors[:, k].cpu().numpy()
        # all dimensions at every split, so that an uninformative one gets no importance by chance
        forest = RandomForestClassifier(
            n_estimators=10, max_depth=10, min_samples_leaf=5, max_features=None, random_state=seed
        )
        with warnings.catch_warnings():
            # scikit-learn suspects a regression problem where few data have many values
            warnings.filterwarnings("ignore", "The number of unique classes")
            forest.fit(x[:cut], y[:cut])
        columns.append(torch.from_numpy(forest.feature_importances_))
        accuracy.append(float(forest.score(x[cut:], y[cut:])))
    importance = torch.stack(columns, 1)
    return DCI(*dci_scores(importance), sum(accuracy) / len(accuracy), importance)


def dci_scores(importance: Tensor) -> tuple[float, float]:
    """Disentanglement and completeness of a table of importances `(D, F)`."""
    dims, factors = importance.shape
    rows = importance / importance.sum(1, keepdim=True).clamp_min(1e-300)
    columns = importance / importance.sum(0).clamp_min(1e-300)
    weight = importance.sum(1) / importance.sum()
    by_row = 1 - _entropy_of_probabilities(rows, 1) / math.log(max(factors, 2))
    by_column = 1 - _entropy_of_probabilities(columns, 0) / math.log(max(dims, 2))
    return float((weight * by_row).sum()), float(by_column.mean())


def _entropy_of_probabilities(p: Tensor, dim: int) -> Tensor:
    return -torch.xlogy(p, p).sum(dim)
