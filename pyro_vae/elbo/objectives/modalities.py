"""The sum of ELBOs over subsets of the modalities of a pair."""

from __future__ import annotations

from typing import Any, ClassVar

import pyro.infer
import torch
from torch import Tensor

from pyro_vae.elbo.estimators.bounds import MeanField, TensorELBO
from pyro_vae.pair.protocol import Program
from pyro_vae.support.arguments import checked_from

__all__ = ["SubsampledModalities"]


class SubsampledModalities(TensorELBO):
    r"""Any ELBO, summed over all modalities together, over each alone, and over k random subsets.

    .. math:: L(x_1, \dots, x_M) + \sum_{m=1}^M L(x_m) + \sum_{j=1}^k L(x_{A_j})

    For a pair that takes `(x_1, ..., x_M)` and as a last argument optionally `observed`, `(N, M)` of booleans, False
    where a datum lacks a modality, as `pyro_vae.models.MultimodalVAE`. A product of experts that is trained on complete
    data alone need not have an expert that is right by itself; each subset has a bound of its own here. A subset counts
    by those of its modalities that a datum has. All terms are bounds on log p of different data, so the sum is
    none on log p(x).

    Args:
        num_particles: Draws from the guide, for the wrapped ELBO.
        elbo: The ELBO to wrap. Default: `elbo="mean_field"`.
        random: k, subsets drawn anew for each datum and step, each modality with probability 1/2.

    Raises:
        ValueError: For a negative k. When run, for a pair called with fewer than two modalities.

    Reference: Wu and Goodman 2018, arXiv 1802.05335, section 2.2.

    Example:
        >>> import pyro_vae as pv
        >>> vae = pv.models.MultimodalVAE(6, others=[3], latent_dim=2, hidden=(8,))
        >>> x, y = torch.ones(4, 6), torch.tensor([2, -1, 0, -1])
        >>> history = pv.fit(vae.model, vae.guide, (x, y), elbo=SubsampledModalities(), epochs=2, batch_size=2)
    """

    bound: ClassVar[str] = "own"

    @checked_from(num_particles=1, random=0)
    def __init__(self, num_particles: int = 1, elbo: pyro.infer.ELBO | None = None, random: int = 0) -> None:
        super().__init__(num_particles=num_particles if elbo is None else elbo.num_particles)
        self.elbo: Any = MeanField(num_particles=num_particles) if elbo is None else elbo
        self.random = random

    def advance(self) -> None:
        """Let the wrapped ELBO move on in its own schedule, if it has one."""
        getattr(self.elbo, "advance", lambda: None)()

    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        losses = [self.elbo.differentiable_loss(model, guide, *part, **kwargs) for part in self._parts(args)]
        return sum(losses[1:], losses[0])

    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """The value of `differentiable_loss` without a gradient, a 0-d tensor."""
        with torch.no_grad():  # Pyro's ELBOs have no differentiable loss there
            losses = [torch.as_tensor(self.elbo.loss(model, guide, *part, **kwargs)) for part in self._parts(args)]
            return sum(losses[1:], losses[0])

    def _parts(self, args: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        """The arguments of the pair for each subset."""
        *values, last = args if args else (None,)
        has_mask = isinstance(last, Tensor) and last.dtype == torch.bool and last.shape[1:] == (len(values),)
        modalities: tuple[Any, ...] = tuple(values) if has_mask else args
        total = len(modalities)
        if total < 2 or not all(isinstance(value, Tensor) for value in modalities):
            raise ValueError(
                f"subsets of modalities need a pair that takes at least two tensors (x_1, x_2, ...), got {total}: "
                "train on a tuple, pv.fit(model, guide, (x_1, x_2)), on the command line with --labels all"
            )
        first = modalities[0]
        whole = torch.ones(len(first), total, dtype=torch.bool, device=first.device)
        alone = torch.eye(total, dtype=torch.bool, device=first.device)
        masks = [whole, *(row.expand_as(whole) for row in alone)]
        masks += [torch.rand(whole.shape, device=first.device) < 0.5 for _ in range(self.random)]
        return [(*modalities, mask & last if has_mask else mask) for mask in masks]
