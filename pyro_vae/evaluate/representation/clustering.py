"""Agreement of clusters, found without labels, with the labels."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_vae.support.arguments import checked

__all__ = ["clustering_accuracy"]


@checked
def clustering_accuracy(clusters: Tensor, labels: Tensor) -> float:
    """The fraction of data whose label is that of their cluster, under the best one-to-one matching.

    If there are more clusters than labels, the data of unmatched clusters count as wrong, so more clusters do not raise
    the accuracy by themselves.

    Args:
        clusters, labels: Integers from 0, `(N,)` each.

    Raises:
        ValueError: For tensors of other shapes or types, and for negative numbers.

    Reference: Kuhn 1955 (the matching); Xie et al. 2016, arXiv 1511.06335, eq. 10 (the measure).

    Example:
        >>> clustering_accuracy(torch.tensor([2, 2, 0, 0, 0]), torch.tensor([0, 0, 1, 1, 0]))
        0.8
    """
    from scipy.optimize import linear_sum_assignment

    for name, found in (("clusters", clusters), ("labels", labels)):
        if found.dim() != 1 or found.is_floating_point() or found.shape != labels.shape or not len(found):
            raise ValueError(
                f"{name} of shape {tuple(found.shape)} and type {found.dtype} came, integers of shape (N,) were "
                "expected, as many clusters as labels: take the argmax of probabilities"
            )
        if bool((found < 0).any()):
            raise ValueError(f"{name} hold the number {int(found.min())}: expected 0 or more, leave unlabeled data out")
    size = int(max(clusters.max(), labels.max())) + 1
    pairs = clusters.cpu().long() * size + labels.cpu().long()
    counts = torch.bincount(pairs, minlength=size * size).reshape(size, size).numpy()
    rows, columns = linear_sum_assignment(counts, maximize=True)
    return float(counts[rows, columns].sum()) / len(labels)
