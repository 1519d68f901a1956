"""Multi-sample bounds: importance-weighted, doubly reparameterized and combined ones, and the Renyi bound."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from pyro_vae.elbo.estimators.surrogate import Coefficients, SurrogateELBO
from pyro_vae.support.arguments import checked

__all__ = ["CIWAE", "DReG", "IWAE", "MIWAE", "PIWAE", "RWS", "Renyi", "StickingTheLanding", "TailAdaptive"]


def log_mean(log_w: Tensor) -> Tensor:
    """`log mean_k w_k` per datum, from `(K, N)`.

    Weights below exp(-60) of the largest are raised to that. The mean stays the same in floating point, and their
    gradients are zero instead of denormal numbers, which a processor handles slowly.
    """
    log_w = log_w.maximum(log_w.detach().amax(0) - 60)
    return log_w.logsumexp(0) - math.log(len(log_w))


class IWAE(SurrogateELBO):
    r"""The importance-weighted bound, per datum.

    .. math:: L_K = E\Big[\log \frac1K \sum_k w_k\Big], \quad w_k = \frac{p(x, z_k)}{q(z_k|x)}; \qquad
        L_1 \le L_K \le L_{K+1} \le \log p(x)

    The logarithm is taken for each datum, so the loss is a bound on subsampled plates too, where Pyro's `RenyiELBO`
    puts the scale inside it. The gradient is unbiased for the bound; its signal-to-noise ratio for the guide's
    parameters falls like `1/sqrt(K)` (Rainforth et al. 2018, arXiv 1802.04537): see `DReG`. Sites that cannot be
    reparameterized get a score-function gradient whose signal is the whole bound, of high variance: see `VIMCO`.

    Args:
        num_particles: K, draws from the guide per datum and step.
        vectorize_particles: As for `TensorELBO`.

    Reference: Burda et al. 2016, arXiv 1509.00519, eq. 8 and 14.
    """

    bound: ClassVar[str] = "iwae"
    follows_value: ClassVar[bool] = True

    def coefficients(self, log_w: Tensor, *args: Any) -> Coefficients:
        value, w = log_mean(log_w), log_w.softmax(0)
        return Coefficients(value, model=w, path=w, guide=-w, score=value, guide_s=-w)


class DReG(SurrogateELBO):
    r"""The importance-weighted bound with the doubly reparameterized gradient for the guide.

    .. math:: \nabla_\phi L_K = E\Big[\sum_k \tilde w_k^2 \frac{\partial \log w_k}{\partial z_k} \nabla_\phi z_k\Big],
        \quad \tilde w_k = \frac{w_k}{\sum_j w_j}

    Same value and same expected gradient as `IWAE`; the signal-to-noise ratio for the guide grows like `sqrt(K)`, and
    at the exact posterior the variance is zero. The model's gradient is IWAE's.

    Args:
        num_particles: K, draws from the guide per datum and step.
        vectorize_particles: As for `TensorELBO`.

    Raises:
        ValueError: For a latent site that cannot be reparameterized.

    Reference: Tucker et al. 2019, arXiv 1810.04152, eq. 8.
    """

    bound: ClassVar[str] = "iwae"
    needs_path: ClassVar[bool] = True

    def coefficients(self, log_w: Tensor, *args: Any) -> Coefficients:
        w = log_w.softmax(0)
        # what a scale or a mask makes of log q in the weight is not in its score, and is left as it is in IWAE
        return Coefficients(log_mean(log_w), model=w, path=w.square(), guide=-w, score_r=w)


class StickingTheLanding(SurrogateELBO):
    r"""The ELBO with the guide's gradient through the draws alone.

    .. math:: \nabla_\phi L = E\Big[\frac{\partial \log w}{\partial z} \nabla_\phi z\Big]

    Leaves out the score term, whose expectation is zero: same expected gradient as the ELBO, and no variance at all
    where the guide is the exact posterior. Pyro's `Trace_ELBO` does not have that property.

    Args:
        num_particles: K, draws from the guide per datum and step.
        vectorize_particles: As for `TensorELBO`.

    Raises:
        ValueError: For a latent site that cannot be reparameterized.

    Reference: Roeder et al. 2017, arXiv 1703.09194, eq. 8.
    """

    needs_path: ClassVar[bool] = True

    def coefficients(self, log_w: Tensor, *args: Any) -> Coefficients:
        even = torch.full_like(log_w, 1 / len(log_w))
        return Coefficients(log_w.mean(0), model=even, path=even)


class MIWAE(SurrogateELBO):
    r"""The mean of `groups` importance-weighted bounds of `K / groups` samples each.

    .. math:: \frac1M \sum_{m=1}^M \log \frac{M}{K} \sum_{k \in m} w_k

    Between the ELBO (`groups = K`) and `IWAE` (`groups = 1`): a looser bound whose guide gradient has more signal.

    Args:
        num_particles: K, draws from the guide per datum and step.
        groups: M, a divisor of K.
        vectorize_particles: As for `TensorELBO`.

    Raises:
        ValueError: If `groups` does not divide `num_particles`.

    Reference: Rainforth et al. 2018, arXiv 1802.04537, eq. 14.
    """

    bound: ClassVar[str] = "own"
    follows_value: ClassVar[bool] = True

    @checked
    def __init__(self, num_particles: int = 1, groups: int = 1, vectorize_particles: bool | None = None) -> None:
        if groups < 1 or num_particles % groups:
            raise ValueError(f"groups must divide num_particles={num_particles}, got {groups}")
        super().__init__(num_particles=num_particles, vectorize_particles=vectorize_particles)
        self.groups = groups

    def grouped(self, log_w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The mean bound `(N,)`, each group's bound for its particles and the particles' weights, `(K, N)`."""
        split = log_w.unflatten(0, (self.groups, -1))
        bounds = split.logsumexp(1, keepdim=True) - math.log(split.shape[1])
        return bounds.mean((0, 1)), bounds.expand_as(split).flatten(0, 1), split.softmax(1).flatten(0, 1) / self.groups

    def coefficients(self, log_w: Tensor, *args: Any) -> Coefficients:
        value, bound, w = self.grouped(log_w)
        return Coefficients(value, model=w, path=w, guide=-w, score=bound / self.groups, guide_s=-w)


class PIWAE(MIWAE):
    r"""`IWAE` for the model and `MIWAE` for the guide: a tight bound for the one, gradient signal for the other.

    .. math:: \nabla_\theta \log \frac1K \sum_k w_k, \qquad
        \nabla_\phi \frac1M \sum_{m=1}^M \log \frac{M}{K} \sum_{k \in m} w_k

    The value is the IWAE bound.

    Args:
        num_particles, groups, vectorize_particles: As for `MIWAE`.

    Raises:
        ValueError: If `groups` does not divide `num_particles`.

    Reference: Rainforth et al. 2018, arXiv 1802.04537, section 4.
    """

    bound: ClassVar[str] = "iwae"
    follows_value: ClassVar[bool] = False

    def coefficients(self, log_w: Tensor, *args: Any) -> Coefficients:
        miwae = super().coefficients(log_w)
        return miwae._replace(value=log_mean(log_w), model=log_w.softmax(0), term=miwae.model)


class CIWAE(SurrogateELBO):
    r"""A convex combination of the ELBO and the importance-weighted bound.

    .. math:: \beta\, L_1 + (1 - \beta)\, L_K

    Args:
        num_particles: K, draws from the guide per datum and step.
        beta: Weight of the ELBO, in [0, 1].
        vectorize_particles: As for `TensorELBO`.

    Raises:
        ValueError: For `beta` outside [0, 1].

    Reference: Rainforth et al. 2018, arXiv 1802.04537, eq. 15.
    """

    bound: ClassVar[str] = "own"
    follows_value: ClassVar[bool] = True

    @checked
    def __init__(self, num_particles: int = 1, beta: float = 0.5, vectorize_particles: bool | None = None) -> None:
        if not 0 <= beta <= 1:
            raise ValueError(f"beta must be in [0, 1], got {beta}")
        super().__init__(num_particles=num_particles, vectorize_particles=vectorize_particles)
        self.beta = beta

    def coefficients(self, log_w: Tensor, *args: Any) -> Coefficients:
        b, k = self.beta, len(log_w)
        bound = log_mean(log_w)
        w = b / k + (1 - b) * log_w.softmax(0)
        value = b * log_w.mean(0) + (1 - b) * bound
        score = b * log_w / k + (1 - b) * bound
        return Coefficients(value, model=w, path=w, guide=-w, score=score, guide_s=-w)


class Renyi(SurrogateELBO):
    r"""The variational Renyi bound of order `alpha`, per datum.

    .. math:: L_\alpha = \frac{1}{1-\alpha} \log \frac1K \sum_k w_k^{1-\alpha}

    `alpha = 0` is `IWAE`; `alpha -> 1` the ELBO. Right on subsampled plates, where Pyro's is not a bound.

    Args:
        num_particles: K, draws from the guide per datum and step.
        alpha: The order, any number except 1.
        vectorize_particles: As for `TensorELBO`.

    Raises:
        ValueError: For `alpha` 1, which is the ELBO.

    Reference: Li and Turner 2016, arXiv 1602.02311, eq. 9.
    """

    bound: ClassVar[str] = "own"
    follows_value: ClassVar[bool] = True

    @checked
    def __init__(self, num_particles: int = 1, alpha: float = 0.5, vectorize_particles: bool | None = None) -> None:
        if alpha == 1:
            raise ValueError("the Renyi bound of order alpha=1 is the ELBO: use elbo='trace' or 'mean_field'")
        super().__init__(num_particles=num_particles, vectorize_particles=vectorize_particles)
        self.alpha = alpha

    def coefficients(self, log_w: Tensor, *args: Any) -> Coefficients:
        power = (1 - self.alpha) * log_w
        value, w = log_mean(power) / (1 - self.alpha), power.softmax(0)
        return Coefficients(value, model=w, path=w, guide=-w, score=value, guide_s=-w)


class RWS(SurrogateELBO):
    r"""Reweighted wake-sleep: the model maximizes the importance-weighted bound, the guide fits the weighted draws.

    .. math:: \nabla_\theta = \sum_k \tilde w_k \nabla_\theta \log p(x, z_k), \quad
        \nabla_\phi = \sum_k \tilde w_k \nabla_\phi \log q(z_k|x)

    The guide's part (wake-phase phi) minimizes KL(p(z|x) || q(z|x)), so it covers the posterior, and needs no
    reparameterization; with few particles it is biased. The reported value is the importance-weighted bound.

    Args:
        num_particles: K >= 2, draws from the guide per datum and step.
        vectorize_particles: As for `TensorELBO`.

    Raises:
        ValueError: For fewer than two particles.

    Reference: Bornschein and Bengio 2015, arXiv 1406.2751; Le et al. 2019, arXiv 1805.10469.
    """

    bound: ClassVar[str] = "iwae"
    min_particles: ClassVar[int] = 2

    def coefficients(self, log_w: Tensor, *args: Any) -> Coefficients:
        w = log_w.softmax(0)
        return Coefficients(log_mean(log_w), model=w, score=w, score_r=w)


class TailAdaptive(SurrogateELBO):
    r"""Variational inference with a tail-adaptive f-divergence: particles are weighted by the rank of their weight.

    .. math:: \gamma_k \propto \Big(\frac1K \sum_j 1[w_j \ge w_k]\Big)^{\beta}, \quad
        \nabla_\phi = \sum_k \gamma_k \frac{\partial \log w_k}{\partial z_k} \nabla_\phi z_k

    Ranks have bounded moments even where weights do not, so the guide learns to cover the posterior without the
    variance of importance weighting. Ranked per datum (Pyro's `TraceTailAdaptive_ELBO` ranks the batch as a whole). The
    model's gradient takes the same factors; the reported value is the ELBO.

    Args:
        num_particles: K >= 2, draws from the guide per datum and step.
        tail_beta: beta < 0; the smaller, the more the largest weights count.
        vectorize_particles: As for `TensorELBO`.

    Raises:
        ValueError: For fewer than two particles, for `tail_beta` >= 0, and for a latent site that cannot be
            reparameterized.

    Reference: Wang, Liu and Liu 2018, arXiv 1810.11943, algorithm 1.
    """

    needs_path: ClassVar[bool] = True
    min_particles: ClassVar[int] = 2

    @checked
    def __init__(
        self, num_particles: int = 2, tail_beta: float = -1.0, vectorize_particles: bool | None = None
    ) -> None:
        if not tail_beta < 0:
            raise ValueError(f"tail_beta must be negative, so that large weights count more, got {tail_beta}")
        super().__init__(num_particles=num_particles, vectorize_particles=vectorize_particles)
        self.tail_beta = tail_beta

    def coefficients(self, log_w: Tensor, *args: Any) -> Coefficients:
        # (K, N): the fraction of weights that are at least as large
        above = (log_w.unsqueeze(0) >= log_w.unsqueeze(1)).to(log_w.dtype).mean(1)
        gamma = above**self.tail_beta
        gamma = gamma / gamma.sum(0)
        return Coefficients(log_w.mean(0), model=gamma, path=gamma)
