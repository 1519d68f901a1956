"""The beta-TC-VAE objective: a weight on the dependence between latent dimensions only."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.distributions import Normal

from pyro_vae.elbo.objectives.aggregate import AggregateELBO, Posterior
from pyro_vae.pair.plates import DataPlate
from pyro_vae.support.arguments import checked_from

__all__ = ["BetaTC"]


class BetaTC(AggregateELBO):
    r"""The ELBO with the total correlation of the aggregate posterior weighted by `beta`.

    .. math:: L = E_{q(z|x)}[\log p(x|z)] - KL(q(z|x) \| p(z)) - (\beta - 1)\, TC, \qquad
        TC = KL\Big(q(z) \,\Big\|\, \prod_j q(z_j)\Big), \quad q(z) = \frac1N \sum_n q(z|x_n)

    The mean KL over the data is I(n; z) + TC + the KL of each dimension's own aggregate posterior. A beta-VAE weights
    all three; this objective weights TC only. TC is estimated from the batch, M of the N data, in one of
    two ways, each for every draw z of a datum:

    - "weighted" sampling, :math:`q(z) \approx \frac{1}{NM} \sum_m q(z|x_m)`: biased, like the one that follows for its
      logarithm; a wrong N only shifts the value, never the gradient.
    - "stratified" sampling, :math:`q(z) \approx \frac1N q(z|x_{own}) + \frac{N-1}{N} \frac{1}{M-1} \sum_{m \ne own}
      q(z|x_m)`: unbiased for q(z). The paper gives one of the other data a weight of its own; equal ones have the same
      mean and less variance.

    With the whole data as the batch, "stratified" is exact. A KL weight of `fit` multiplies the KL alone. For
    beta >= 1 the value is below the ELBO unless TC is underestimated, but it is not a useful bound.

    Args:
        num_particles: K, draws from the guide per step.
        beta: Weight of the total correlation.
        num_data: N. Default: the size of the plate over the data before subsampling, which is that of the batch
            unless the pair subsamples.
        sampling: "weighted" or "stratified".
        vectorize_particles: As for `TensorELBO`.

    Raises:
        ValueError: For a latent that is not Gaussian given the data, or has no independent elements; for a latent that
            depends on the draw of another one; for a batch larger than `num_data`.

    Reference: Chen et al. 2018, arXiv 1802.04942, eq. 2, 4 and appendix C.
    """

    @checked_from(num_data=1)
    def __init__(
        self,
        num_particles: int = 1,
        beta: float = 6.0,
        num_data: int | None = None,
        sampling: Literal["weighted", "stratified"] = "weighted",
        vectorize_particles: bool | None = None,
    ) -> None:
        if not 0 <= beta < math.inf:
            raise ValueError(f"beta must be a number >= 0, got {beta}")
        if sampling not in ("weighted", "stratified"):
            raise ValueError(f"sampling must be 'weighted' or 'stratified', got {sampling!r}")
        super().__init__(num_particles=num_particles, vectorize_particles=vectorize_particles)
        self.beta, self.num_data, self.sampling = beta, num_data, sampling

    def penalty(self, posterior: Posterior, plate: DataPlate) -> Tensor:
        return (self.beta - 1) * self.total_correlation(posterior, plate)

    def total_correlation(self, posterior: Posterior, plate: DataPlate) -> Tensor:
        """The estimate of TC from a batch, in nats, a 0-d tensor."""
        z, loc, variance = posterior
        if variance.dim() == 4:
            raise ValueError(
                "a latent has correlated elements given the data, and BetaTC needs independent ones: use "
                "posterior='diagonal_normal' in a VAE, dist.Normal(...).to_event(1) in a guide"
            )
        total = self.num_data or plate.full_size
        if total < plate.size:
            raise ValueError(
                f"num_data is {total}, less than the batch of {plate.size} data: pass the size of the data"
            )
        q = Normal(loc.unsqueeze(1), variance.unsqueeze(1).sqrt(), validate_args=False)
        each = q.log_prob(z.unsqueeze(2))  # (K, N, N, E): the draws of one datum under the posterior of another
        log_weight = self._log_weights(plate.size, total, z)
        log_q = (each.sum(-1) + log_weight).logsumexp(2)
        log_product = (each + log_weight.unsqueeze(-1)).logsumexp(2).sum(-1)
        return (log_q - log_product).mean()

    def _log_weights(self, size: int, total: int, like: Tensor) -> Tensor:
        """Log-weight of each posterior `(N, N)` in the estimate of q at each draw."""
        if self.sampling == "weighted":
            return like.new_full((size, size), -math.log(total * size))
        others = (total - 1) / (total * (size - 1)) if size > 1 else 0.0
        weight = like.new_full((size, size), others)
        return weight.fill_diagonal_(1 / total).log() if size > 1 else torch.zeros_like(weight)
