"""The thermodynamic variational objective: a Riemann sum along the path from the guide to the posterior."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor

from pyro_vae.elbo.estimators.surrogate import Coefficients, SurrogateELBO
from pyro_vae.support.arguments import checked

__all__ = ["TVO"]


class TVO(SurrogateELBO):
    r"""The thermodynamic variational objective, a left Riemann sum of the integral that log p(x) is.

    .. math:: \log p(x) = \int_0^1 E_{\pi_\beta}[\log w]\, d\beta \;\ge\;
        \sum_j (\beta_{j+1} - \beta_j)\, E_{\pi_{\beta_j}}[\log w], \qquad \pi_\beta \propto q(z|x)\, w^\beta

    with `w = p(x, z) / q(z|x)`. The integrand rises from the ELBO at 0, so the sum lies between the ELBO and log p(x).
    Expectations are those of K draws from q with weights `v_k`, the softmax of `beta log w`. The gradient of each is

    .. math:: \nabla E_{\pi_\beta}[\log w] = E_{\pi_\beta}[\nabla \log w]
        + \mathrm{Cov}_{\pi_\beta}\big[\nabla \log q + \beta \nabla \log w, \log w\big]

    with the draws held fixed: no site has to be reparameterized, and none is treated as if it could be. The part of
    `grad log q` has the factor K / (K - 1), which makes it the unbiased covariance at beta = 0; `betas=(0,)` is
    `VarGrad` with all sites scored. For other beta, value and gradient are consistent, with a bias of order 1/K: the
    value of few draws may lie above the sum, as it is no bound then.

    Args:
        num_particles: K >= 2, draws from the guide per datum and step.
        betas: Where the integrand is evaluated: 0 first, then rising, below 1. The last interval ends at 1.
        vectorize_particles: As for `TensorELBO`.

    Raises:
        ValueError: For fewer than two particles, or other betas.

    Reference: Masrani, Le and Wood 2019, arXiv 1907.00031, eq. 6 (the sum), 9 and 11 (the gradient).
    """

    for_discrete: ClassVar[bool] = True
    bound: ClassVar[str] = "own"
    min_particles: ClassVar[int] = 2

    @checked
    def __init__(
        self,
        num_particles: int = 2,
        betas: Sequence[float] = (0.0, 0.3),
        vectorize_particles: bool | None = None,
    ) -> None:
        if not betas or betas[0] != 0 or not all(a < b for a, b in pairwise([*betas, 1.0])):
            raise ValueError(f"betas must begin with 0 and rise, all below 1, got {betas}")
        super().__init__(num_particles=num_particles, vectorize_particles=vectorize_particles)
        self.betas = tuple(float(beta) for beta in betas)

    def coefficients(self, log_w: Tensor, *args: Any) -> Coefficients:
        k, value = len(log_w), torch.zeros_like(log_w[0])
        model, guide, scored = (torch.zeros_like(log_w) for _ in range(3))
        for beta, end in pairwise([*self.betas, 1.0]):
            v = (beta * log_w).softmax(0)
            mean = (v * log_w).sum(0)
            away = v * (log_w - mean)
            value = value + (end - beta) * mean
            model = model + (end - beta) * (v + beta * away)
            if beta > 0:  # under q itself the score of q has mean zero
                guide = guide - (end - beta) * (v + beta * away)
            scored = scored + (end - beta) * away * k / (k - 1)
        return Coefficients(value, model, guide=guide, guide_s=guide, score=scored, score_r=scored)
