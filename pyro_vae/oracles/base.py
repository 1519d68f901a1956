"""The base of pairs whose exact values are known."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_vae.support.arguments import checked_from

__all__ = ["Weighting", "Oracle", "Side", "expected_log_mean", "normal_parameters"]


Side = Literal["model", "guide"]
LARGE = 50.0  # a logarithm of what nothing is left of in exp(-x)


@dataclass(frozen=True)
class Weighting:
    r"""How much each site of a pair counts: its scale and its mask, on either side.

    .. math:: E_q\Big[\sum_i a_i \log p_i - \sum_i b_i \log q_i\Big]

    is the objective then, and the importance-weighted bound has these terms in each weight. Nothing is drawn otherwise
    and nothing reads another value: only `a` and `b`, the scales times the masks, differ from one.

    Args:
        scales: Of sites, as `{("model", "z"): 0.3, ("guide", "z"): torch.tensor(0.3)}`.
        masks: Sites that count for data `x > 0` alone, as `{("guide", "z")}`.
    """

    scales: Mapping[tuple[Side, str], float | Tensor] = field(default_factory=dict)
    masks: Collection[tuple[Side, str]] = ()

    def __bool__(self) -> bool:
        return bool(self.scales or self.masks)

    def context(self, side: Side, site: str, x: Tensor) -> AbstractContextManager[Any]:
        """The handlers that scale and mask a site."""
        stack = ExitStack()
        if (side, site) in self.scales:
            stack.enter_context(poutine.scale(scale=self.scales[side, site]))
        if (side, site) in self.masks:
            mask: Any = x > 0
            stack.enter_context(poutine.mask(mask=mask))
        return stack

    def factor(self, side: Side, site: str, x: Tensor) -> Tensor | float:
        """Scale times mask, `(N,)` or a number."""
        mask = (x > 0).to(x) if (side, site) in self.masks else 1.0
        return self.scales.get((side, site), 1.0) * mask


class Oracle(nn.Module):
    """A model/guide pair whose log p(x), ELBO and importance-weighted bounds are known, with their gradients.

    Every value is differentiable in the parameters, so the gradient of `elbo(x).sum()` is the expected gradient of an
    unbiased estimator. Parameters are float64, and `x` must be, too. Subclass it for a pair of your own:
    `check_estimator` accepts it.
    """

    guide_parameters: ClassVar[tuple[str, ...]] = ()  # names of the guide's parameters; all others are the model's
    reparameterized: ClassVar[bool] = False  # whether all latent sites are reparameterized

    @property
    def is_bound(self) -> bool:
        """Whether the ELBO is one, at most log p(x): not with sites that are scaled or masked."""
        return True

    def num_data(self, x: Tensor) -> int:
        """How many data a loss of `x` is summed over: more than its own, if `x` is a minibatch to the pair."""
        return len(x)

    def model(self, x: Tensor) -> None:
        """The generative model of `x`, N data along the first dimension."""
        raise NotImplementedError(f"{type(self).__name__} must define model(x)")

    def guide(self, x: Tensor) -> None:
        """The guide of the same latent sites."""
        raise NotImplementedError(f"{type(self).__name__} must define guide(x)")

    def simulate(self, n: int) -> Tensor:
        """`n` data drawn from the model."""
        raise NotImplementedError(f"{type(self).__name__} must define simulate(n)")

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x), `(N,)`, nats."""
        raise NotImplementedError(f"{type(self).__name__} must define log_prob(x)")

    def elbo(self, x: Tensor, weight: float = 1.0) -> Tensor:
        """The ELBO with its KL times `weight`, `(N,)`, nats."""
        raise NotImplementedError(f"{type(self).__name__} must define elbo(x, weight)")

    def weights(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """log p(x, z) - log q(z|x) and log q of M points that represent all of q, `(M, N)` each.

        The points are all states of discrete latents, and a fine grid over Gaussian ones; their probabilities sum to
        one over the first dimension.
        """
        raise NotImplementedError(f"{type(self).__name__} must define weights(x)")

    def iwae(self, x: Tensor, num_particles: int) -> Tensor:
        """The importance-weighted bound L_K of K particles, `(N,)`, nats: see `expected_log_mean`."""
        return expected_log_mean(*self.weights(x), num_particles)

    def at_posterior(self) -> Oracle | None:
        """A copy whose guide is the exact posterior, or None if the guide cannot be.

        For the copy, the ELBO, every L_K and log p(x) are equal, and each importance weight is p(x).
        """
        return None


@checked_from(num_particles=1)
def expected_log_mean(log_w: Tensor, log_mass: Tensor, num_particles: int) -> Tensor:
    r"""`E[log mean_k w_k]` over K independent weights, exactly, for any K.

    .. math:: E[\log S] = \int_0^\infty \frac{e^{-t} - E[e^{-t S}]}{t} \, dt, \qquad
        E\big[e^{-t \sum_k w_k}\big] = E[e^{-t w}]^K

    Frullani's integral of the logarithm turns the expectation over K draws into one over a single draw. The integral
    over log t uses the trapezoidal rule, whose error for such a smooth function is of the order of rounding. It reaches
    from the largest to the smallest weight of which there is a chance.

    Args:
        log_w: Log-weights of M points, `(M, N)`.
        log_mass: Log-probabilities of the points, `(M, N)` or `(M, 1)`, summing to one over M.
        num_particles: K.

    Returns:
        `(N,)`, differentiable in both tensors.

    Raises:
        ValueError: For `num_particles` below 1.
    """
    if num_particles < 1:
        raise ValueError(f"num_particles must be at least 1, got {num_particles}")
    if num_particles == 1:
        return (log_mass.exp() * log_w).sum(0)
    total = (log_w + log_mass).logsumexp(0)
    log_v = log_w - total  # of weights of mean one
    smallest = torch.where(log_mass > -36, log_v, 0.0).min()
    last = 40.0 + max(160.0, -float(smallest.detach()))
    step = 0.5
    integral = torch.zeros_like(total)
    for part in torch.arange(-36.0, last, step, dtype=log_w.dtype, device=log_w.device).split(64):
        u = part.reshape(-1, 1, 1)
        power = num_particles * (log_mass - (u + log_v).clamp_max(LARGE).exp()).logsumexp(1)
        integral = integral + step * ((-u.squeeze(-1).clamp_max(LARGE).exp()).exp() - power.exp()).sum(0)
    return total - math.log(num_particles) + integral


def normal_parameters(seed: int, scale: float = 1.0) -> Callable[..., nn.Parameter]:
    """Draws parameters of the shape asked for, in float64."""
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: nn.Parameter(scale * torch.randn(shape, generator=generator, dtype=torch.float64))
