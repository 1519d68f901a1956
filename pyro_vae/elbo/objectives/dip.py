"""The DIP-VAE objectives: a penalty on the covariance of the aggregate posterior."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from pyro_vae.elbo.objectives.aggregate import AggregateELBO, Posterior
from pyro_vae.pair.plates import DataPlate
from pyro_vae.support.arguments import checked

__all__ = ["DIP"]


class DIP(AggregateELBO):
    r"""The ELBO less a penalty that pulls the covariance of the aggregate posterior toward the identity matrix.

    .. math:: L = \mathrm{ELBO} - \lambda_{od} \sum_{i \ne j} C_{ij}^2 - \lambda_d \sum_i (C_{ii} - 1)^2

    with :math:`C = \mathrm{Cov}_x[E_q z]` (DIP-VAE-I) or :math:`C = \mathrm{Cov}_x[E_q z] + E_x[\mathrm{Cov}_q z]`, the
    covariance of q(z) itself (DIP-VAE-II). C is that of the batch, so the gradient depends on the batch size; with one
    datum the covariance of the means is zero. The value is at most the ELBO, so it is a bound, too.

    Args:
        num_particles: K, draws from the guide per step.
        off_diagonal: lambda_od, the weight on covariances.
        diagonal: lambda_d, the weight on variances.
        kind: "I" or "II". The paper has lambda_d = 10 lambda_od for "I" and both equal for "II".
        vectorize_particles: As for `TensorELBO`.

    Raises:
        ValueError: For a latent that is not Gaussian given the data, or depends on the draw of another one; for
            negative weights or an unknown `kind`.

    Reference: Kumar et al. 2018, arXiv 1711.00848, eq. 6 and 7.
    """

    @checked
    def __init__(
        self,
        num_particles: int = 1,
        off_diagonal: float = 10.0,
        diagonal: float = 10.0,
        kind: Literal["I", "II"] = "II",
        vectorize_particles: bool | None = None,
    ) -> None:
        if not (0 <= off_diagonal < math.inf and 0 <= diagonal < math.inf):
            raise ValueError(f"off_diagonal and diagonal must be numbers >= 0, got {off_diagonal} and {diagonal}")
        if kind not in ("I", "II"):
            raise ValueError(f"kind must be 'I' or 'II', got {kind!r}")
        super().__init__(num_particles=num_particles, vectorize_particles=vectorize_particles)
        self.off_diagonal, self.diagonal, self.kind = off_diagonal, diagonal, kind

    def penalty(self, posterior: Posterior, plate: DataPlate) -> Tensor:
        loc = posterior.loc - posterior.loc.mean(1, keepdim=True)
        covariance = loc.transpose(1, 2) @ loc / plate.size  # (K, E, E)
        if self.kind == "II":
            within = posterior.covariance
            covariance = covariance + (within if within.dim() == 4 else within.diag_embed()).mean(1)
        variance = covariance.diagonal(dim1=-2, dim2=-1)
        off = covariance.square().sum((-2, -1)) - variance.square().sum(-1)
        on = (variance - 1).square().sum(-1)
        return torch.mean(self.off_diagonal * off + self.diagonal * on)
