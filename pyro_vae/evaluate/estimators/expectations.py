"""What an estimator is expected to be on an oracle: its value, and the functions whose gradients it gives."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Binomial, kl_divergence
from torch.nn.functional import softplus

from pyro_vae import elbo as elbos
from pyro_vae.oracles import BitsAndClasses, Discrete, LinearGaussian, Oracle, expected_log_mean

__all__ = ["Expected", "expected"]


class Expected(NamedTuple):
    """Means over the data, 0-d tensors; None for what is not known.

    `model` and `guide` have the expected gradient of their parameters; they need not have the value.
    """

    value: Tensor | None
    model: Tensor | None
    guide: Tensor | None


def expected(objective: Any, pair: Oracle, x: Tensor) -> Expected | None:
    """What is known of an estimator: where its bound is its own, of classes of this library alone.

    A subclass may be another estimator, so nothing is known of one with a bound of its own.
    """
    bound, k, kind = getattr(objective, "bound", "elbo"), objective.num_particles, type(objective)
    if kind is elbos.RWS:
        value = pair.iwae(x, k).mean()
        return Expected(value, value, _wake(pair, x, k))
    if kind is elbos.TailAdaptive:
        return Expected(pair.elbo(x).mean(), _ranked(pair, x, k, objective.tail_beta), None)
    if kind is elbos.PIWAE:
        value = pair.iwae(x, k).mean()
        return Expected(value, value, pair.iwae(x, k // objective.groups).mean())
    if bound in ("elbo", "iwae"):
        each: Tensor | None = pair.elbo(x) if bound == "elbo" else pair.iwae(x, k)
    else:
        each = _of_own_bound(kind, objective, pair, x)
    return None if each is None else Expected(*[each.mean()] * 3)


def _of_own_bound(kind: type, objective: Any, pair: Oracle, x: Tensor) -> Tensor | None:
    k = objective.num_particles
    if kind is elbos.MIWAE:
        return pair.iwae(x, k // objective.groups)
    if kind is elbos.CIWAE:
        return objective.beta * pair.elbo(x) + (1 - objective.beta) * pair.iwae(x, k)
    if kind is elbos.Renyi:
        (log_w, log_mass), power = pair.weights(x), 1 - objective.alpha
        return expected_log_mean(power * log_w, log_mass, k) / power
    if kind is elbos.TVO and objective.betas == (0.0,):
        return pair.elbo(x)
    if kind is elbos.WeightedKL and type(objective.elbo) in (elbos.Trace, elbos.MeanField, elbos.Reinforce):
        return pair.elbo(x, objective.weight)
    if kind in (elbos.FreeBits, elbos.Capacity) and isinstance(pair, LinearGaussian):
        return _held(objective, pair, x)
    if kind is elbos.Relaxed and _is_one_bit(pair) and not objective.straight_through:
        assert isinstance(pair, BitsAndClasses)
        return _relaxed_bit(objective, pair, x)
    return None


def _held(objective: Any, pair: LinearGaussian, x: Tensor) -> Tensor:
    """The ELBO with a function of the data's mean KL in the place of the KL."""
    q = pair.q(x)
    kl = 0.5 * (q.mean.square() + q.variance - q.variance.log() - 1).mean(0)  # (L,)
    if isinstance(objective, elbos.Capacity):
        penalty = objective.gamma * (kl.sum() - objective.capacity).abs()
    else:
        penalty = (kl if objective.per == "dimension" else kl.sum()).clamp_min(objective.bits).sum()
    return pair.log_likelihood(x) - penalty


def _is_one_bit(pair: Oracle) -> bool:
    return isinstance(pair, BitsAndClasses) and (pair.bits, pair.classes) == (1, 0) and not pair.weighting


def _relaxed_bit(objective: elbos.Relaxed, pair: BitsAndClasses, x: Tensor) -> Tensor:
    """The value of a relaxed pair of one bit, by quadrature over the uniform variable that its draw is made of."""
    import numpy as np

    nodes, mass = (torch.as_tensor(v).to(x) for v in np.polynomial.legendre.leggauss(300))
    q, tau = x @ pair.encoder_bits.T, objective.temperature  # (N, 1)
    before = (q + ((nodes + 1) / 2).logit().reshape(-1, 1, 1)) / tau
    if objective.prior == "discrete":
        kl = kl_divergence(Bernoulli(logits=q), Bernoulli(logits=pair.prior_bits.expand_as(q)))
    else:
        other = tau if objective._prior_temperature is None else float(objective._prior_temperature)
        kl = _log_concrete(before, q, tau) - _log_concrete(before, pair.prior_bits, other)
    value = pair.likelihood(before.sigmoid()).log_prob(x) - kl.sum(-1)
    return (value * (mass / 2).unsqueeze(-1)).sum(0)


def _log_concrete(value: Tensor, logits: Tensor, temperature: float) -> Tensor:
    away = temperature * value - logits
    return math.log(temperature) - away - 2 * softplus(-away)


def _wake(pair: Oracle, x: Tensor, k: int) -> Tensor | None:
    r"""A function with the guide's gradient of reweighted wake-sleep, `E[sum_k v_k grad log q(z_k|x)]`.

    The derivative of `E[log mean_k w_k]` in the logarithm of one state's weight is that state's expected share of the
    normalized weights. Known where the points of the oracle are all states, so that their masses are q.
    """
    if not isinstance(pair, Discrete | BitsAndClasses):
        return None
    log_w, log_q = pair.weights(x)
    free = log_w.detach().requires_grad_()
    (share,) = torch.autograd.grad(expected_log_mean(free, log_q.detach(), k).sum(), free)
    return (share * log_q).sum(0).mean()


def _ranked(pair: Oracle, x: Tensor, k: int, beta: float) -> Tensor:
    r"""A function with the model's gradient of the tail-adaptive estimator.

    The number of the other weights above one is binomial, with the mass of the points above it. The masses of points
    of a continuous latent stand for cells, of which half lie above their center.
    """
    log_w, log_mass = torch.broadcast_tensors(*pair.weights(x))
    with torch.no_grad():
        order = log_w.argsort(0, descending=True)
        mass = log_mass.exp()
        sorted_mass = mass.gather(0, order)
        above = torch.empty_like(mass).scatter_(0, order, sorted_mass.cumsum(0) - sorted_mass / 2)
        ranks = torch.arange(1, k + 1).to(log_w)
        factors = (ranks / k) ** beta
        binomial = Binomial(k - 1, above.clamp(0, 1).unsqueeze(0), validate_args=False)
        chances = binomial.log_prob((ranks - 1).reshape(-1, 1, 1)).exp()  # (K, M, N)
        gamma = (chances * factors.reshape(-1, 1, 1)).sum(0) * k / factors.sum()
    return (mass * gamma * log_w).sum(0).mean()
