"""Compiled importance weights, for many runs of the same size."""

from __future__ import annotations

from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from pyro_vae.compilation.gradients import compiled_function, layout_of
from pyro_vae.evaluate.marginal.proposals import Proposal
from pyro_vae.pair.protocol import Data

__all__ = ["FastWeights"]


class FastWeights:
    """`proposal.weigh` for `count` samples, compiled for data like `data`; other calls return None.

    Raises:
        Exception: Any error of tracing or compilation.
    """

    def __init__(self, proposal: Proposal, data: Data, count: int) -> None:
        self.count = count
        leaves, spec = tree_flatten(data)
        self._rest = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]

        def weights(*tensors: Tensor) -> Tensor:
            given = iter(tensors)
            filled = [next(given) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
            prior = proposal.prior_fraction == 1
            return proposal.draw_log_weights(
                tree_unflatten(filled, spec), count, prior, proposal.prior_fraction
            ).double()

        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        self._layout = [layout_of(t) for t in tensors]
        self._run = compiled_function(weights, tensors)

    def __call__(self, data: Data, count: int) -> Tensor | None:
        """Log-weights `(count, N)`, or None if the layout of the data or the count differ."""
        leaves = tree_flatten(data)[0]
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        rest = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        same = (
            all(a is b for a, b in zip(rest, self._rest, strict=True))
            and [layout_of(t) for t in tensors] == self._layout
        )
        # a slightly smaller last run takes its rows from a full one
        if not same or not 0.9 * self.count <= count <= self.count:
            return None
        return self._run(*tensors)[:count]
